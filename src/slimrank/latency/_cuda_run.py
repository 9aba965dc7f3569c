# SPDX-License-Identifier: Apache-2.0
"""A model that PyTorch runs on a GPU, as a CUDA graph, and what each of its operations takes there."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrank._errors import LatencyError, OptionError
from slimrank.deploy import TimedFile, read_samples
from slimrank.forward import Batch, map_tensors
from slimrank.latency._torch_run import node_times
from slimrank.surgery import quiet_copy

_WARM_UP = 3
# Cycles that the GPU waits, some 50 ms, while a run is handed to it: else it would wait between operations.
_WAIT = 100_000_000


def check_cuda() -> None:
    """Refuses machines without a GPU.

    Raises:
        OptionError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise OptionError(
            "backend='cuda': torch finds no GPU on this machine; measure where torch.cuda.is_available(), or "
            "give another backend, such as 'onnxruntime'"
        )


def open_on_cuda(
    model: nn.Module, batches: Iterable[Batch], folder: Path, *, batch: int, threads: int
) -> TimedFile:
    """Opens a model on the current GPU, as it is: no norm is folded, nothing is fused.

    Args:
        model: to run; it is not changed.
        batches: real inputs, checked.
        folder: not used.
        batch: samples in the batch.
        threads: not used.

    Returns:
        The open model: what is run is a CUDA graph, until it is over.

    Raises:
        OptionError: there is no GPU.
        LatencyError: the model cannot be captured as a CUDA graph.
    """
    del folder, threads
    check_cuda()
    private = quiet_copy(model).cuda().eval()
    given = _on_gpu(read_samples(batches).take(0, batch))

    def once() -> object:
        with torch.no_grad():
            return private(*given.args, **given.kwargs)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = once()
    except RuntimeError as error:
        raise LatencyError(
            f"{type(model).__name__} cannot be captured as a CUDA graph ({error}); keep what waits for the "
            "GPU (.item(), print, an if on values) out of forward"
        ) from error

    def run() -> object:
        graph.replay()
        torch.cuda.synchronize()
        # The graph writes to what it returned when it was captured.
        return kept

    def waited() -> object:
        torch.cuda._sleep(_WAIT)
        return once()

    return TimedFile(
        run=run, batch=given.n_samples, nodes=lambda: node_times(private, waited, _event, _seconds)
    )


def _on_gpu(batch: Batch) -> Batch:
    args = tuple(map_tensors(value, Tensor.cuda) for value in batch.args)
    return replace(
        batch, args=args, kwargs={key: map_tensors(value, Tensor.cuda) for key, value in batch.kwargs.items()}
    )


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(marks: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> list[float]:
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in marks]
