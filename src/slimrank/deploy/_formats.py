# SPDX-License-Identifier: Apache-2.0
"""The formats that a model can be exported to: a row each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch.export import ExportedProgram

from slimrank._errors import ExportError, UnknownNameError
from slimrank._names import nearest
from slimrank.deploy import _executorch, _onnx, _openvino, _openvino_int8, _pt2e
from slimrank.deploy._executorch import (
    executorch_notes,
    open_executorch,
    open_executorch_inside,
    write_executorch,
)
from slimrank.deploy._executorch_int8 import write_executorch_int8
from slimrank.deploy._executorch_profile import profile_executorch
from slimrank.deploy._node_times import Profiler
from slimrank.deploy._onnx import open_onnx, open_onnx_inside, write_onnx
from slimrank.deploy._onnx_int8 import write_onnx_int8, write_onnx_int8_weights
from slimrank.deploy._onnx_profile import profile_onnx
from slimrank.deploy._openvino import open_openvino, open_openvino_inside, write_openvino
from slimrank.deploy._openvino_int8 import write_openvino_int8, write_openvino_int8_weights
from slimrank.deploy._openvino_profile import profile_openvino
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program
from slimrank.deploy._quantizer import Quantizer
from slimrank.deploy._runtime import Runtime
from slimrank.deploy._torch import open_torch, open_torch_inside, write_torch
from slimrank.deploy._torch_int8 import (
    open_torch_compiled,
    open_torch_int8,
    write_torch_int8,
)
from slimrank.records import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        suffix: of its files.
        extra: of slimrank that brings its packages; "" where torch is enough.
        packages: that it needs.
        write: writes a program to a file, and others beside it where the format has more; returns the program
            whose nodes have the names of the values in the file.
        open: opens a file that was written, with so many threads.
        open_inside: opens a file with inner values as outputs; None where the runtime cannot.
        notes: what the user should know of a file that was written; None where there is nothing.
        largest_batch: samples that its files take at least where they take several numbers of samples, since
            the format needs a bound; None where it needs none.
        precisions: how it writes int8, by the value of ``quantize``.
        profile: opens a file so that the runtime tells what each node takes; None where it does not.
    """

    suffix: str
    extra: str
    packages: tuple[str, ...]
    write: Callable[[Program, Path], ExportedProgram]
    open: Callable[[Path, Program, int], Runtime]
    open_inside: Callable[[Path, Program, Sequence[str]], tuple[tuple[str, ...], Runtime]] | None = None
    notes: Callable[[Path, Program], Sequence[Note]] | None = None
    largest_batch: int | None = None
    precisions: Mapping[str, Quantizer] = field(default_factory=dict)
    profile: Callable[[Path, Program, int], Profiler] | None = None


FORMATS: dict[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        extra=_onnx.EXTRA,
        packages=_onnx.PACKAGES,
        write=write_onnx,
        open=open_onnx,
        open_inside=open_onnx_inside,
        precisions={
            "int8": Quantizer(write=write_onnx_int8),
            "int8_weights": Quantizer(write=write_onnx_int8_weights, has_batches=False),
        },
        profile=profile_onnx,
    ),
    "torch": Format(
        suffix=".pt2",
        extra="",
        packages=(),
        write=write_torch,
        open=open_torch,
        open_inside=open_torch_inside,
        precisions={
            "int8": Quantizer(
                write=write_torch_int8,
                extra=_pt2e.EXTRA,
                packages=_pt2e.PACKAGES,
                open=open_torch_int8,
                open_timed=open_torch_compiled,
            ),
            "int8_weights": Quantizer(
                write=partial(write_torch_int8, is_dynamic=True),
                extra=_pt2e.EXTRA,
                packages=_pt2e.PACKAGES,
                open=open_torch_int8,
                open_timed=open_torch_compiled,
                has_batches=False,
            ),
        },
    ),
    "openvino": Format(
        suffix=".xml",
        extra=_openvino.EXTRA,
        packages=_openvino.PACKAGES,
        write=write_openvino,
        open=open_openvino,
        open_inside=open_openvino_inside,
        precisions={
            "int8": Quantizer(
                write=write_openvino_int8, extra=_openvino.EXTRA, packages=_openvino_int8.PACKAGES
            ),
            "int8_weights": Quantizer(
                write=write_openvino_int8_weights,
                extra=_openvino.EXTRA,
                packages=_openvino_int8.PACKAGES,
                has_batches=False,
            ),
        },
        profile=profile_openvino,
    ),
    "executorch": Format(
        suffix=".pte",
        extra=_executorch.EXTRA,
        packages=_executorch.PACKAGES,
        write=write_executorch,
        open=open_executorch,
        open_inside=open_executorch_inside,
        notes=executorch_notes,
        largest_batch=_executorch.LARGEST_BATCH,
        precisions={
            "int8": Quantizer(write=write_executorch_int8),
            "int8_weights": Quantizer(
                write=partial(write_executorch_int8, is_dynamic=True), has_batches=False
            ),
        },
        profile=profile_executorch,
    ),
}


def format_named(name: object) -> Format:
    """A row of the table, its packages installed.

    Raises:
        UnknownNameError: no such format.
        MissingPackageError: a package of the format is not installed.
    """
    row = FORMATS.get(name) if isinstance(name, str) else None
    if row is None:
        raise UnknownNameError(f"format={name!r}; {nearest(str(name), list(FORMATS))}")
    for package in row.packages:
        import_package(package, extra=row.extra, what=f"format={name!r}")
    return row


def format_of(path: Path) -> str:
    """The format that the ending of a file's name says; "onnx" where it says none."""
    return _said_by(path) or "onnx"


def check_suffix(path: Path, name: str) -> None:
    """Refuses a file name that says another format, which runtimes would not open.

    Raises:
        ExportError: another suffix.
    """
    wanted = FORMATS[name].suffix
    if path.suffix == wanted:
        return
    other = _said_by(path)
    if other is None:
        cure = f"give {path.with_name(path.name + wanted) if path.name else f'a file that ends in {wanted}'}"
    else:
        cure = f"pass format={other!r}, or give {path.with_suffix(wanted)}"
    raise ExportError(f"{path}: files of format={name!r} end in {wanted}; {cure}")


def _said_by(path: Path) -> str | None:
    """The format whose ending a file's name has; None where it is none of them."""
    return next((name for name, row in FORMATS.items() if row.suffix == path.suffix), None)
