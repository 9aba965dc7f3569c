# SPDX-License-Identifier: Apache-2.0
"""The way of an int8 file: calibrated, written, judged on other samples, refused where little is left."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from slimrank._errors import (
    BatchesError,
    ExportError,
    FileError,
    OptionError,
    SlimrankError,
    UnknownNameError,
)
from slimrank._names import listed, nearest
from slimrank.deploy._check import Reading
from slimrank.deploy._formats import FORMATS, Format
from slimrank.deploy._judge import Judge, Judged
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program
from slimrank.deploy._quantizer import Quantized, Quantizer
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Runtime
from slimrank.deploy._samples import Samples, count_told, is_constant
from slimrank.forward import Batch
from slimrank.records import Note

# Samples that are run at a time, where a file takes any number.
_SIZE = 8
# Share of what outputs tell that int8 may lose, and signal over noise in decibels that it shall have: outputs
# beyond are of no use, whatever the task.
_MOST_LOST, _LEAST_DB = 0.25, 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatFile:
    """What an int8 file is made of.

    Attributes:
        format: its name.
        row: the format.
        program: that was captured.
        path: of the float file.
        model: that was exported, in eval mode on the CPU.
        samples: real ones, more than a float file is checked with.
        reading: how outputs are read.
        threads: of the runtime.
    """

    format: str
    row: Format
    program: Program
    path: Path
    model: nn.Module
    samples: Samples
    reading: Reading
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8File:
    """An int8 file that was written.

    Attributes:
        path: of the file.
        runtime: with it.
        quantized: what became of layers.
        judged: how far it is from the float model.
        kept: layers that stayed in float since they hurt.
        notes: what the user should know.
    """

    path: Path
    runtime: Runtime
    quantized: Quantized
    judged: Judged
    kept: tuple[str, ...]
    notes: tuple[Note, ...]


def quantizer_for(format: str, precision: object) -> Quantizer:
    """How a format writes a precision, its packages installed.

    Args:
        format: a name of the table.
        precision: what was asked for.

    Returns:
        The quantizer.

    Raises:
        UnknownNameError: no format has such a precision.
        OptionError: this format has none of it.
        MissingPackageError: a package that it needs is not installed.
    """
    known = list(dict.fromkeys(name for row in FORMATS.values() for name in row.precisions))
    if not isinstance(precision, str) or precision not in known:
        raise UnknownNameError(f"quantize={precision!r}; {nearest(str(precision), known)}, or None for float")
    found = FORMATS[format].precisions.get(precision)
    if found is None:
        others = [repr(name) for name, row in FORMATS.items() if precision in row.precisions]
        raise OptionError(
            f"format={format!r} has no quantize={precision!r}; take format={' or '.join(others)}, or leave "
            "quantize out"
        )
    for package in found.packages:
        import_package(package, extra=found.extra, what=f"format={format!r} with quantize={precision!r}")
    return found


def check_drop(max_drop: object, precision: object) -> float | None:
    """``max_quant_drop`` as a number.

    Raises:
        OptionError: no number from 0 on, or nothing is quantised.
    """
    if max_drop is None:
        return None
    if precision is None:
        raise OptionError("max_quant_drop= goes with quantize=, which is not given")
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not max_drop >= 0:
        raise OptionError(
            f"max_quant_drop={max_drop!r}; give the divergence per sample that int8 may add, from 0 on, or "
            "float('inf') to take any result"
        )
    return float(max_drop)


def quantize_file(
    source: FloatFile, quantizer: Quantizer, precision: str, folder: Path, max_drop: float | None
) -> Int8File:
    """Writes the int8 file of a float file.

    Args:
        source: the float file.
        quantizer: how.
        precision: its name, for messages.
        folder: to write to; it is made.
        max_drop: divergence per sample that may be added, for which layers stay in float; inf takes any
            result; None keeps none in float, and refuses a result of no use.

    Returns:
        The file.

    Raises:
        ExportError: it cannot be written, or has little left.
        BatchesError: it cannot be calibrated with these samples.
        FileError: it cannot be written to disk.
    """
    calibration, judged_on = source.samples.split()
    notes = []
    if quantizer.has_batches:
        _check_samples(calibration, precision)
        if calibration is judged_on:
            text = (
                f"{count_told(calibration.batch.n_samples)}: too few to keep some for judging, so int8 is "
                "calibrated and judged on the same; give 64 or more"
            )
            notes.append(Note(where=precision, text=text))
    batches = _batches(source.program, calibration)
    judge = Judge(source.program, source.model, _batches(source.program, judged_on), source.reading)
    folder.mkdir(parents=True)
    path = folder / source.path.name
    file = _written(source, quantizer, precision, path, batches, judge, kept=())
    if max_drop is None:
        _check_left(file.judged, precision)
    notes += _left_notes(file.quantized, precision)
    return Int8File(
        path=path,
        runtime=file.runtime,
        quantized=file.quantized,
        judged=file.judged,
        kept=(),
        notes=(*notes, *file.quantized.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Try:
    """One int8 file, judged."""

    quantized: Quantized
    runtime: Runtime
    judged: Judged


def _written(
    source: FloatFile,
    quantizer: Quantizer,
    precision: str,
    path: Path,
    batches: list[Batch],
    judge: Judge,
    kept: Collection[str],
) -> _Try:
    try:
        with quiet_exporter():
            quantized = quantizer.write(source.program, source.path, path, batches, kept)
    except SlimrankError:
        raise
    except OSError as error:
        raise FileError(f"{path.name} cannot be written ({error}); give a folder with room") from error
    except Exception as error:
        raise ExportError(
            f"{source.program.model.title} cannot be written with quantize={precision!r} for "
            f"format={source.format!r}: {told(error)}; pass quantize=None, or take another format"
        ) from error
    if not quantized.layers and not kept:
        left = f": {listed([name for name, _ in quantized.left])} stay in float" if quantized.left else ""
        raise ExportError(
            f"{source.program.model.title} has no layer that format={source.format!r} runs with "
            f"quantize={precision!r}{left}; pass quantize=None, or the other precision"
        )
    runtime = (quantizer.open or source.row.open)(path, source.program, source.threads)
    return _Try(quantized=quantized, runtime=runtime, judged=judge.judge(runtime))


def _check_left(judged: Judged, precision: str) -> None:
    """Refuses an int8 file whose outputs are of no use."""
    lost = 0.0 if judged.agreement is None else judged.agreement.lost
    # Not "above": nan is of no use, either.
    if lost <= _MOST_LOST and judged.worst_db >= _LEAST_DB:
        return
    worst = min(judged.noise_db, key=lambda name: judged.noise_db[name])
    raise ExportError(
        f"quantize={precision!r} leaves little of the outputs: {lost:.0%} of what they tell is lost, and "
        f"{worst} has {judged.worst_db:.1f} dB of signal over noise (allowed {_MOST_LOST:.0%}, "
        f"{_LEAST_DB:g} dB); pass max_quant_drop=, the divergence that int8 may add, and layers that hurt "
        "stay in float; float('inf') takes the file as it is"
    )


def _check_samples(samples: Samples, precision: str) -> None:
    """Refuses samples from which no range can be read."""
    if is_constant(samples.batch):
        raise BatchesError(
            f"quantize={precision!r} reads the range of values from the batches, and every input in them is "
            "one constant; give real inputs"
        )


def _left_notes(quantized: Quantized, precision: str) -> list[Note]:
    """A note for each reason for which something stays in float."""
    reasons: dict[str, list[str]] = {}
    for name, reason in quantized.left:
        reasons.setdefault(reason, []).append(name)
    return [
        Note(where=precision, text=f"kept in float: {listed(names)}; {reason}")
        for reason, names in reasons.items()
    ]


def _batches(program: Program, samples: Samples) -> list[Batch]:
    """Samples in batches of a size that a program takes."""
    size = program.batch.n_samples
    if program.is_dynamic:
        size = min(_SIZE, program.largest_batch or _SIZE)
    n_batches = math.ceil(samples.batch.n_samples / size)
    if not program.is_dynamic:
        return [samples.take(index * size, size) for index in range(n_batches)]
    n_samples = samples.batch.n_samples
    return [samples.take(start, min(size, n_samples - start)) for start in range(0, n_samples, size)]
