# SPDX-License-Identifier: Apache-2.0
"""The runtimes that networks are timed in: a row each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from slimrank.deploy import (
    FORMATS,
    OpenFile,
    Precision,
    TimedFile,
    format_named,
    write_compiled,
    write_timed,
)
from slimrank.forward import Batch
from slimrank.latency._cuda_run import check_cuda, open_on_cuda
from slimrank.latency._torch_run import open_model


class Opener(Protocol):
    """Opens a model for its times."""

    def __call__(
        self, model: nn.Module, batches: Iterable[Batch], folder: Path, *, batch: int, threads: int
    ) -> OpenFile:
        """Gives what runs a batch; a ``TimedFile`` where the runtime tells what its parts take.

        Args:
            model: to open; it is not changed.
            batches: real inputs, checked.
            folder: to write to; it is made.
            batch: samples in the batch.
            threads: of the runtime.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A runtime.

    Attributes:
        open: opens a model in it.
        format: of the files that it runs; "" where PyTorch runs the model itself.
        parts_of: the runtime whose times of parts stand in for those that this one does not tell: formulas
            start from them, and are fitted to whole times of this one. "" where it tells them itself.
        has_int8: tables of its int8 files can be measured.
        is_gpu: it runs on a GPU, whose work does not show in the time of the processor.
    """

    open: Opener
    format: str = ""
    parts_of: str = ""
    has_int8: bool = False
    is_gpu: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """Whose versions times depend on."""
        return ("torch", *(FORMATS[self.format].packages if self.format else ()))

    def check(self) -> None:
        """Refuses a runtime that is not here.

        Raises:
            MissingPackageError: a package is not installed.
            OptionError: there is no GPU.
        """
        if self.format:
            format_named(self.format)
        if self.is_gpu:
            check_cuda()

    def machine(self, name: str) -> str:
        """A machine's name; with that of its GPU where it counts."""
        has_gpu = self.is_gpu and torch.cuda.is_available()
        return f"{name}, {torch.cuda.get_device_name()}" if has_gpu else name

    def clock_threads(self, threads: int) -> int:
        """Threads as ``compare_in_turns`` takes them: the clock counts for a GPU as it does for several."""
        return 2 if self.is_gpu else threads


def _file(format: str, *, has_int8: bool = False) -> Backend:
    """A runtime that tells what the nodes of its files take."""
    return Backend(format=format, open=partial(write_timed, format=format), has_int8=has_int8)


BACKENDS: Mapping[str, Backend] = {
    "onnxruntime": _file("onnx", has_int8=True),
    "openvino": _file("openvino", has_int8=True),
    "torch": Backend(open=open_model),
    "torch-channels-last": Backend(open=partial(open_model, channels_last=True)),
    "torch-compile": Backend(format="torch", open=write_compiled, parts_of="torch"),
    "cuda": Backend(open=open_on_cuda, is_gpu=True),
    "executorch": _file("executorch"),
}


def open_timed(
    backend: str,
    model: nn.Module,
    batches: Iterable[Batch],
    folder: Path,
    *,
    batch: int,
    threads: int,
    quantize: Precision | None = None,
) -> TimedFile:
    """Opens a model in a runtime, with the times of its parts: its own, or those that stand in for them.

    Args:
        backend: a name of ``BACKENDS``.
        model: to open; it is not changed.
        batches: real inputs, checked.
        folder: to write to; it is made, and must stay while the model is timed.
        batch: samples in the batch.
        threads: of the runtime.
        quantize: precision of the file, of a runtime that tells its parts; None for float.

    Returns:
        The open model. ``batch`` differs where it takes one other size only.

    Raises:
        SlimrankError: as ``deploy.write_timed``.
    """
    row = BACKENDS[backend]
    if quantize is not None:
        return write_timed(
            model,
            batches,
            folder,
            format=row.format,
            batch=batch,
            threads=threads,
            quantize=quantize,
        )
    given = list(batches)
    file = row.open(model, given, folder, batch=batch, threads=threads)
    if isinstance(file, TimedFile):
        return file
    parts = open_timed(row.parts_of, model, given, folder / "parts", batch=file.batch, threads=threads)
    return TimedFile(run=file.run, batch=file.batch, nodes=parts.nodes)
