# SPDX-License-Identifier: Apache-2.0
"""The way of an int8 file: calibrated, written, judged on other samples, refused where little is left."""

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path

import torch
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
from slimrank.deploy._layer_noise import LayerNoise, noisiest_layers
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
_FLOAT_ADVICE = "; weights that are not float32 stay as they are: export model.float()"
# Samples that the layers are ranked on, one after another, and layers that a refusal names.
_RANKED_ON, _TOLD = 16, 3


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
        raise UnknownNameError(
            f"quantize={precision!r}; {nearest(str(precision), known)} (None writes float)"
        )
    found = FORMATS[format].precisions.get(precision)
    if found is None:
        others = [repr(name) for name, row in FORMATS.items() if precision in row.precisions]
        raise OptionError(
            f"format={format!r} has no quantize={precision!r}; take format={' or '.join(others)}, or leave "
            "quantize out"
        )
    # Some of them print what does not fit this machine when they are imported.
    with quiet_exporter():
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
    number = math.nan
    if isinstance(max_drop, Real | Decimal) and not isinstance(max_drop, bool):
        # Whole numbers that no float holds, and Decimal('sNaN'), are refused below.
        with contextlib.suppress(OverflowError, ValueError):
            number = float(max_drop)
    if not number >= 0:
        raise OptionError(
            f"max_quant_drop={max_drop!r}; give the divergence per sample that int8 may add, from 0 on, or "
            "float('inf') to take any result"
        )
    return number


def quantize_file(
    source: FloatFile, quantizer: Quantizer, precision: str, folder: Path, max_drop: float | None
) -> Int8File:
    """Writes the int8 file of a float file.

    Args:
        source: the float file.
        quantizer: how.
        precision: its name, for messages.
        folder: to write to; it is made.
        max_drop: divergence per sample that may be added, for which layers stay in float (where outputs are
            whole numbers, the share of them that differs); inf takes any result; None keeps none in float,
            and refuses a result of no use.

    Returns:
        The file.

    Raises:
        ExportError: it cannot be written, or has little left.
        BatchesError: it cannot be calibrated with these samples.
        FileError: it cannot be written to disk.
    """
    calibration, judged_on = source.samples.split()
    notes = []
    _check_samples(source.samples, precision)
    if quantizer.has_batches and calibration is judged_on:
        text = (
            f"{count_told(calibration.batch.n_samples)}: too few to keep some for judging, so int8 is "
            "calibrated and judged on the same; give 64 or more"
        )
        notes.append(Note(where=precision, text=text))
    batches = _batches(source.program, calibration)
    judge = Judge(source.program, source.model, _batches(source.program, judged_on), source.reading)
    way = _Way(
        source=source,
        quantizer=quantizer,
        precision=precision,
        path=folder / source.path.name,
        batches=batches,
        judge=judge,
        ranked_on=_batches(source.program, judged_on.part(0, _RANKED_ON)),
    )
    folder.mkdir(parents=True)
    if judge.not_finite and max_drop is not None and not math.isinf(max_drop) and not judge.has_divergence:
        raise ExportError(
            f"outputs {listed(judge.not_finite)} of {source.program.model.title} hold inf or nan, so "
            "divergence, which max_quant_drop= limits, cannot be told; pass outputs= that picks finite ones, "
            "or leave max_quant_drop out"
        )
    plain = way.written(())
    kept: Sequence[LayerNoise] = ()
    final = plain
    if max_drop is not None:
        kept, final = _within(way, plain, max_drop)
        notes += _kept_notes(way, kept, max_drop)
    if final.judged.not_finite:
        raise ExportError(
            f"outputs {listed(final.judged.not_finite)} of the int8 file hold nan or inf where the model's "
            "do not; pass max_quant_drop=, the divergence that int8 may add, which keeps layers in float, or "
            "quantize=None"
        )
    little = _little_left(way, final)
    if little and max_drop is None:
        raise ExportError(_useless(way, final, little))
    if little:
        text = f"little is left of the outputs: {little}; max_quant_drop={max_drop:g} takes it all the same"
        notes.append(Note(where=precision, text=text, is_warning=True))
    notes += [*_output_notes(judge, final.judged, precision), *_left_notes(final.quantized, precision)]
    return Int8File(
        path=way.path,
        runtime=final.runtime,
        quantized=final.quantized,
        judged=final.judged,
        kept=tuple(layer.name for layer in kept),
        notes=(*notes, *final.quantized.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Try:
    """One int8 file, judged.

    Attributes:
        quantized: what became of layers.
        runtime: with the file.
        judged: how far it is from the model.
    """

    quantized: Quantized
    runtime: Runtime
    judged: Judged


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """How int8 files of one model are made, one after another.

    Attributes:
        source: the float file.
        quantizer: how.
        precision: its name, for messages.
        path: of the int8 file.
        batches: to calibrate with.
        judge: on all samples that judge.
        ranked_on: some of these samples, which layers are ranked on.
    """

    source: FloatFile
    quantizer: Quantizer
    precision: str
    path: Path
    batches: Sequence[Batch]
    judge: Judge
    ranked_on: Sequence[Batch]

    @property
    def unit(self) -> str:
        """What a drop is counted in, for messages."""
        if self.judge.has_whole_numbers:
            return "as the share of whole numbers that differ"
        return "of divergence per sample"

    def written(self, kept: Collection[str]) -> _Try:
        """Writes the file with some layers in float, and judges it."""
        quantized, runtime = _written(
            self.source, self.quantizer, self.precision, self.path, self.batches, kept
        )
        return _Try(quantized=quantized, runtime=runtime, judged=self.judge.judge(runtime))

    def noisiest(self, names: Sequence[str]) -> list[LayerNoise]:
        """Layers by what each alone adds, the worst first; those that torch cannot tell of come last."""
        source = self.source
        few = Judge(source.program, source.model, self.ranked_on, source.reading)
        has_values = self.precision == "int8"
        found = noisiest_layers(source.program, names, self.batches, few, has_values=has_values)
        known = {layer.name for layer in found}
        unknown = [name for name in names if name not in known]
        return [*found, *(LayerNoise(name=name, divergence=0.0, noise_db=math.nan) for name in unknown)]


def quantize_roughly(source: FloatFile, quantizer: Quantizer, precision: str, folder: Path) -> Runtime:
    """Writes an int8 file for its times alone, calibrated with few samples and not judged.

    Args:
        source: the float file.
        quantizer: how.
        precision: its name, for messages.
        folder: to write to, by the name of the float file; it is made.

    Returns:
        The runtime with the file.

    Raises:
        ExportError: it cannot be written.
        FileError: it cannot be written to disk.
    """
    folder.mkdir(parents=True)
    few = _batches(source.program, source.samples.part(0, _SIZE))
    _, runtime = _written(source, quantizer, precision, folder / source.path.name, few, ())
    return runtime


def _written(
    source: FloatFile,
    quantizer: Quantizer,
    precision: str,
    path: Path,
    batches: Sequence[Batch],
    kept: Collection[str],
) -> tuple[Quantized, Runtime]:
    """Writes an int8 file with some layers in float, and opens it."""
    program = source.program
    what = f"quantize={precision!r}"
    try:
        with quiet_exporter():
            quantized = quantizer.write(program, source.path, path, batches, kept)
    except SlimrankError:
        raise
    except OSError as error:
        raise FileError(f"{path.name} cannot be written ({error}); give a folder with room") from error
    except Exception as error:
        raise ExportError(
            f"{program.model.title} cannot be written with {what} for format={source.format!r}: "
            f"{told(error)}; pass quantize=None, or take another format"
        ) from error
    if not quantized.layers and not kept:
        left = listed([name for name, _ in quantized.left])
        kept_told = f" ({left} stay in float)" if left else ""
        advice = _FLOAT_ADVICE if has_other_weights(program) else ""
        raise ExportError(
            f"{program.model.title} has no layer that format={source.format!r} runs with {what}"
            f"{kept_told}; pass quantize=None, or take the other one{advice}"
        )
    return quantized, (quantizer.open or source.row.open)(path, program, source.threads)


def _within(way: _Way, plain: _Try, max_drop: float) -> tuple[Sequence[LayerNoise], _Try]:
    """Keeps layers in float until int8 adds no more than it may: the fewest of those that hurt most.

    Returns:
        The layers that are kept, and the file with these.

    Raises:
        ExportError: every layer would have to be kept.
    """
    if plain.judged.divergence <= max_drop or math.isinf(max_drop):
        return (), plain
    order = way.noisiest(plain.quantized.layers)
    # Doubled until it is enough, then halved between: the fewest that are, where more never hurts.
    few, many = 0, 1
    best: _Try | None = None
    while best is None:
        if many >= len(order):
            many = len(order) - 1
            if many <= few:
                raise ExportError(_refused(way, plain, order, max_drop))
        found = way.written([layer.name for layer in order[:many]])
        if found.judged.divergence <= max_drop:
            best = found
        else:
            few, many = many, 2 * many
    last = many
    while many - few > 1:
        last = (few + many) // 2
        found = way.written([layer.name for layer in order[:last]])
        if found.judged.divergence <= max_drop:
            many, best = last, found
        else:
            few = last
    if last != many:
        # What lies at the path is the last that was tried.
        best = way.written([layer.name for layer in order[:many]])
    return order[:many], best


def _refused(way: _Way, plain: _Try, order: Sequence[LayerNoise], max_drop: float) -> str:
    """Why no file is within the drop that is allowed."""
    return (
        f"quantize={way.precision!r} adds {plain.judged.divergence:.3g} {way.unit}, and more than "
        f"max_quant_drop={max_drop:g} as long as any layer runs in int8; the worst are "
        f"{_layers_told(order[:_TOLD])}; allow more, pass quantize=None, or take another format"
    )


def _layers_told(layers: Sequence[LayerNoise]) -> str:
    return ", ".join(
        layer.name if math.isnan(layer.noise_db) else f"{layer.name} ({layer.noise_db:.1f} dB)"
        for layer in layers
    )


def _kept_notes(way: _Way, kept: Sequence[LayerNoise], max_drop: float) -> list[Note]:
    """A note that names the layers that stayed in float."""
    if not kept:
        return []
    text = (
        f"kept in float, so that int8 adds at most {max_drop:g} {way.unit}: "
        f"{_layers_told(kept)}; in brackets signal over noise at the layer, were it in int8"
    )
    return [Note(where=way.precision, text=text)]


def _little_left(way: _Way, file: _Try) -> str:
    """What is lost of outputs that are of no use any more; empty where they are of use."""
    judged = file.judged
    # Not "above": nan is of no use, either.
    if judged.lost <= _MOST_LOST and judged.worst_db >= _LEAST_DB:
        return ""
    if way.judge.has_whole_numbers:
        return f"{judged.lost:.0%} of their values differ (allowed {_MOST_LOST:.0%})"
    worst = min(judged.noise_db, key=lambda name: judged.noise_db[name])
    return (
        f"{judged.lost:.0%} of what they tell is lost, and {worst} has {judged.worst_db:.1f} dB of signal "
        f"over noise (allowed {_MOST_LOST:.0%}, {_LEAST_DB:g} dB)"
    )


def _useless(way: _Way, file: _Try, little: str) -> str:
    """Why a file is refused whose outputs are of no use."""
    layers = way.noisiest(file.quantized.layers)[:_TOLD]
    return (
        f"quantize={way.precision!r} leaves little of the outputs: {little}; the worst layers are "
        f"{_layers_told(layers)}; pass max_quant_drop=, what int8 may add {way.unit}, and layers that hurt "
        "stay in float; float('inf') takes the file as is"
    )


def _output_notes(judge: Judge, judged: Judged, precision: str) -> list[Note]:
    """A note where outputs are judged in another way than others."""
    if judged.equal_values is not None:
        text = f"outputs hold whole numbers only: {judged.equal_values:.2%} of them are those of the model"
        return [Note(where=precision, text=text)]
    if judge.not_finite and not judge.has_divergence:
        text = (
            f"outputs {listed(judge.not_finite)} of the model itself hold inf or nan, so divergence cannot "
            "be told, and int8 is judged by its noise in the finite values"
        )
        return [Note(where=precision, text=text)]
    return []


def _check_samples(samples: Samples, precision: str) -> None:
    """Refuses samples from which neither a range nor what an output tells can be read."""
    if is_constant(samples.batch):
        raise BatchesError(
            f"quantize={precision!r} is calibrated and judged with the batches, and every sample in them is "
            "the same, or one constant; give real inputs"
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


def has_other_weights(program: Program) -> bool:
    """Whether some weights are of another type than float32."""
    tensors = program.exported.state_dict.values()
    return any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors)


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
