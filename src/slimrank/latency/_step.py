# SPDX-License-Identifier: Apache-2.0
"""The steps of a runtime on this machine: of how many channels its kernels compute at a time."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrank.deploy import NodeTime, Precision
from slimrank.forward import Batch, as_batch
from slimrank.latency._backends import open_timed
from slimrank.plan import Structure
from slimrank.records import Steps

# Widths that are tried, and what is tried on: a map, or rows, large enough that kernels are not waited for.
_WIDTHS = (12, 16, 20, 24, 28, 32, 36, 40, 44, 48)
_INPUTS, _SIDE, _ROWS = 48, 24, 256
# For each step, from the largest on: a width just above an edge, and the next edge. Where both cost about the
# same, kernels round up; halfway to what the widths themselves would make of it.
_PAIRS = {16: ((20, 32), (36, 48)), 8: ((12, 16), (20, 24), (28, 32), (36, 40), (44, 48))}
_LEAST = 4


class _Widths(nn.Module):
    """Layers that write several widths, and layers that read them, on the same input."""

    def __init__(self, *, convolutions: bool) -> None:
        super().__init__()

        def layer(n_inputs: int, n_outputs: int, size: int) -> nn.Module:
            if convolutions:
                return nn.Conv2d(n_inputs, n_outputs, size, padding=size // 2)
            return nn.Linear(n_inputs, n_outputs)

        self.rows = nn.ModuleList(layer(_INPUTS, width, 3) for width in _WIDTHS)
        self.makers = nn.ModuleList(layer(_INPUTS, width, 1) for width in _WIDTHS)
        self.columns = nn.ModuleList(layer(width, _INPUTS, 3) for width in _WIDTHS)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all outputs, by sample."""
        outputs = [writes(x) for writes in self.rows]
        outputs += [reads(makes(x)) for makes, reads in zip(self.makers, self.columns, strict=True)]
        return torch.stack([output.flatten(1).mean(1) for output in outputs]).sum(0)


def find_steps(
    structure: Structure, folder: Path, *, backend: str, threads: int, quantize: Precision | None
) -> Steps:
    """Times layers of some widths, and finds the steps of the stairs that they make.

    Args:
        structure: of the network: convolutions are tried where it has any, else linear layers.
        folder: to write to; it is made.
        backend: a name of ``BACKENDS``.
        threads: of the runtime.
        quantize: precision of the files; None for float.

    Returns:
        As ``steps_of_nodes``.
    """
    model, batch = step_network(structure)
    file = open_timed(
        backend, model, [batch], folder, batch=batch.n_samples, threads=threads, quantize=quantize
    )
    return steps_of_nodes(file.nodes())


def step_network(structure: Structure) -> tuple[nn.Module, Batch]:
    """Layers that write and read several widths, and a batch for them.

    Args:
        structure: of the network: convolutions are tried where it has any, else linear layers.

    Returns:
        Both; the same at every call.
    """
    convolutions = any(spec.kind.startswith("conv") for spec in structure.layers.values())
    model = _Widths(convolutions=convolutions).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    shape = (2, _INPUTS, _SIDE, _SIDE) if convolutions else (2, _ROWS, _INPUTS)
    return model, as_batch(torch.randn(shape, generator=generator))


def steps_of_nodes(nodes: Iterable[NodeTime]) -> Steps:
    """The steps that the layers of ``step_network`` show.

    Args:
        nodes: of its file.

    Returns:
        Each 16, 8, or 4 where neither shows; that of what is read is at most that of what is written.
    """
    times = {kind: dict.fromkeys(_WIDTHS, 0.0) for kind in Steps._fields}
    for node in nodes:
        kind, _, index = node.module.partition(".")
        if kind in times and index.isdecimal() and not node.is_beside:
            times[kind][_WIDTHS[int(index)]] += node.nanoseconds
    rows, columns = (step_told(times[kind]) for kind in Steps._fields)
    return Steps(rows=rows, columns=min(rows, columns))


def step_told(times: dict[int, float]) -> int:
    """The step that times by width show.

    Args:
        times: of each width.

    Returns:
        16, 8, or 4 where neither shows.
    """
    for step, pairs in _PAIRS.items():
        shown = [times[low] > (1 + low / high) / 2 * times[high] for low, high in pairs]
        if sum(shown) > len(shown) / 2:
            return step
    return _LEAST
