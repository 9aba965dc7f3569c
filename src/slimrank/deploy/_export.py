# SPDX-License-Identifier: Apache-2.0
"""A model to a file of a runtime: captured, written, checked, timed, moved into place."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from slimrank._errors import BatchesError, ExportError, FileError, OptionError, OutputError, SlimrankError
from slimrank._numbers import whole_number
from slimrank.deploy._balance import balance_pairs
from slimrank.deploy._check import Checked, Reading, check_file
from slimrank.deploy._difference import relative_difference
from slimrank.deploy._draft import draft_folder, move_into_place
from slimrank.deploy._formats import Format, check_suffix, format_named
from slimrank.deploy._inside import first_difference, inner_names
from slimrank.deploy._measure_script import Times
from slimrank.deploy._named_model import NamedModel, named_model
from slimrank.deploy._node_times import GraphNode, NodeTime
from slimrank.deploy._onnx_profile import onnx_graph, onnx_inputs
from slimrank.deploy._prepare import prepare
from slimrank.deploy._program import Program, capture_program
from slimrank.deploy._quantize import (
    FloatFile,
    Int8File,
    check_drop,
    has_other_weights,
    quantize_file,
    quantize_roughly,
    quantizer_for,
)
from slimrank.deploy._quantizer import Quantizer
from slimrank.deploy._quiet import EXPORT_TURN, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.deploy._samples import CALIBRATED, CHECKED, Samples, count_told, read_samples, shapes_told
from slimrank.deploy._timing import time_in_turns
from slimrank.deploy._torch_int8 import open_torch_compiled
from slimrank.forward import Batch
from slimrank.records import Exported, Int8, Note
from slimrank.surgery import quiet_copy

# A file counts as slower than the original from this ratio on: less is within what machines repeat.
_SLOWER = 1.05
# Interquartile range over median above which times are told to be noise: quiet machines stay below a tenth.
_NOISY = 0.3
# Largest relative difference between an int8 file as it is read and as it is compiled: kernels round some
# values to the next of 256 steps.
_APART = 0.1
# Samples that pairs are balanced with: moments of few are enough.
_BALANCED = 64
# Samples of the example that any size is captured with: torch takes a size of 1 for fixed.
_EXAMPLE = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Built:
    """A file that was written.

    Attributes:
        program: that it holds.
        model: that was exported, as it was given, on the CPU.
        path: of the file, in the draft.
        runtime: with the file.
        checked: how far it agrees; None where that was not asked.
        notes: what the user should know.
    """

    program: Program
    model: nn.Module
    path: Path
    runtime: Runtime
    checked: Checked | None
    notes: tuple[Note, ...]


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    batches: Iterable[Batch],
    *,
    format: str,
    reading: Reading,
    original: nn.Module | None = None,
    batch: int = 1,
    threads: int = 1,
    quantize: str | None = None,
    max_quant_drop: float | None = None,
) -> Exported:
    """Writes a model in a format, whole or not at all, checked and timed in the runtime of the format.

    Args:
        model: to export; it is not changed.
        path: of the file; its folder must be there.
        batches: real inputs, checked.
        format: a name of the table.
        reading: how outputs are read.
        original: that it is compared with in time; None for none.
        batch: samples in the batches that are timed, and of a file that takes one size only.
        threads: of the runtime while it is timed.
        quantize: a precision that the format has; None for float.
        max_quant_drop: divergence per sample that int8 may add, for which layers stay in float.

    Returns:
        What was written.

    Raises:
        UnknownNameError: no such format, or precision.
        MissingPackageError: a package of the format is not installed.
        OptionError: ``batch`` or ``threads`` is no positive number, or the format has no such precision.
        ExportError: the model cannot be written in this format, or the file answers otherwise than the model.
        FileError: the file cannot be written.
        SlimrankError: for model and batches.
    """
    target = Path(path)
    # Packages that are imported here print, and are kept from reporting, for the whole process.
    with EXPORT_TURN:
        row = _row_for(target, format)
        quantizer = None if quantize is None else quantizer_for(format, quantize)
    max_drop = check_drop(max_quant_drop, quantize)
    for name, value in (("batch", batch), ("threads", threads)):
        if (whole_number(value) or 0) < 1:
            raise OptionError(f"{name}={value!r}; give a whole number from 1 on")
    # Of Python, for runtimes and for JSON: numpy's are whole numbers, too.
    batch, threads = int(batch), int(threads)
    with EXPORT_TURN, draft_folder(target) as draft:
        samples = read_samples(batches, CHECKED if quantizer is None else CALIBRATED)
        few = samples.part(0, CHECKED)
        builder = _Builder(row=row, samples=few, batch=batch, threads=threads, file=target.name)
        calibration = [] if quantize is None else _balancing(samples, quantize)
        built = replace(builder, calibration=calibration).build(model, draft / "new", reading)
        if built.checked is None:
            raise ExportError(f"{target}: the file was not checked")
        size = batch if built.program.is_dynamic else built.program.batch.n_samples
        before, notes = None, (*built.notes, *_shape_notes(samples, format))
        int8 = None
        if quantizer is not None and quantize is not None:
            source = _float_file(format, built, samples, reading, threads)
            int8 = quantize_file(source, quantizer, quantize, draft / "int8", max_drop)
            notes = (*notes, *int8.notes)
        if original is not None:
            try:
                before = replace(builder, batch=size).build(original, draft / "original", None)
                before.runtime(few.take(0, size))()
            except (ExportError, BatchesError, OutputError) as error:
                before = None
                text = f"the original cannot be written, so there is neither its size nor its time: {error}"
                notes = (*notes, Note(where=format, text=text))
        runs, timing = _runs(before, built, int8, quantizer, few.take(0, size), threads, format)
        times = time_in_turns(runs)
        before_times, after_times = None if before is None else times[0], times[-1]
        compared = [after_times] if before_times is None else [before_times, after_times]
        notes = (*notes, *timing, *timing_notes(compared, format))
        float_files = _files_of(built.path)
        files = float_files if int8 is None else _files_of(int8.path)
        told_int8 = None
        if int8 is not None and quantize is not None:
            float_times = times[-2]
            n_layers, n_float = len(int8.quantized.layers), len(int8.kept) + len(int8.quantized.left)
            cure = int8_cure(
                quantize, n_layers=n_layers, n_float=n_float, is_float32=not has_other_weights(built.program)
            )
            notes = (*notes, *int8_timing_notes(float_times, after_times, format, quantize, cure))
            agreement = int8.judged.agreement
            told_int8 = Int8(
                precision=quantize,
                divergence=None if agreement is None else agreement.divergence,
                noise_db=int8.judged.worst_db,
                layers=int8.quantized.layers,
                kept=int8.kept,
                left=tuple(name for name, _ in int8.quantized.left),
                float_bytes=_size_of(float_files),
                float_ms=float_times.milliseconds,
                float_spread=float_times.spread,
            )
        n_bytes = _size_of(files)
        before_bytes = None if before is None else _size_of(_files_of(before.path))
        move_into_place(files, target)
    return Exported(
        path=target,
        format=format,
        bytes=n_bytes,
        before_bytes=before_bytes,
        max_error=built.checked.max_error if int8 is None else int8.judged.max_error,
        agreement=built.checked.agreement if int8 is None else int8.judged.equal_classes,
        before_ms=None if before_times is None else before_times.milliseconds,
        after_ms=after_times.milliseconds,
        before_spread=None if before_times is None else before_times.spread,
        after_spread=after_times.spread,
        batch=size,
        threads=threads,
        notes=notes,
        int8=told_int8,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenFile:
    """A file that is only run.

    Attributes:
        run: runs the batch once.
        batch: samples of the batch.
        notes: of an int8 file: what it keeps of the outputs, and what stays in float.
    """

    run: Callable[[], object]
    batch: int
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedFile(OpenFile):
    """A file that was written to be timed.

    Attributes:
        nodes: runs the batch with the runtime's profile: what each node takes.
    """

    nodes: Callable[[], tuple[NodeTime, ...]]


def write_timed(
    model: nn.Module,
    batches: Iterable[Batch],
    folder: Path,
    *,
    format: str,
    batch: int,
    threads: int,
    quantize: str | None = None,
) -> TimedFile:
    """Writes a model as ``export_model`` does, unchecked, and opens it in the runtime for its times.

    Args:
        model: to export; it is not changed.
        batches: real inputs, checked.
        folder: to write to; it is made, and must stay while the file is timed.
        format: a name of the table.
        batch: samples in the batch.
        threads: of the runtime.
        quantize: a precision that the format has; None for float. Ranges are those of few samples: times do
            not depend on them.

    Returns:
        The open file. ``batch`` differs where the file takes one other size only.

    Raises:
        UnknownNameError: no such format, or precision.
        MissingPackageError: a package of the format is not installed.
        ExportError: the model cannot be written in this format, or its runtime has no profile.
        BatchesError: the model refuses the samples.
    """
    row = format_named(format)
    profile = row.profile
    if profile is None:
        raise ExportError(f"format={format!r}: its runtime does not tell what each node takes; take 'onnx'")
    with EXPORT_TURN:
        samples = read_samples(batches)
        built = _unchecked(row, model, samples, folder, batch=batch, threads=threads)
        path, runtime = built.path, built.runtime
        if quantize is not None:
            source = _float_file(format, built, samples, Reading(), threads)
            runtime = quantize_roughly(source, quantizer_for(format, quantize), quantize, folder / quantize)
            path = folder / quantize / path.name
    given = _given(built, samples, batch)
    return TimedFile(
        run=runtime(given),
        nodes=lambda: profile(path, built.program, threads)(given),
        batch=given.n_samples,
    )


def write_open(
    model: nn.Module,
    batches: Iterable[Batch],
    folder: Path,
    *,
    format: str,
    batch: int,
    threads: int,
    quantize: str | None = None,
    reading: Reading | None = None,
) -> OpenFile:
    """Writes the file that ``export_model`` writes, and opens it to be run; a float file is not checked.

    Args:
        model: to export; it is not changed.
        batches: real inputs, checked.
        folder: to write to; it is made, and must stay while the file is run.
        format: a name of the table.
        batch: samples in the batch.
        threads: of the runtime.
        quantize: a precision that the format has; None for float. The file is calibrated as that of
            ``export_model`` with ``max_quant_drop=inf``, and judged.
        reading: how outputs are read, for ``quantize``.

    Returns:
        The open file. ``batch`` differs where the file takes one other size only.

    Raises:
        SlimrankError: as ``export_model``.
    """
    row = format_named(format)
    with EXPORT_TURN:
        samples = read_samples(batches, CHECKED if quantize is None else CALIBRATED)
        few = samples.part(0, CHECKED)
        calibration = [] if quantize is None else _balancing(samples, quantize)
        built = _unchecked(row, model, few, folder, batch=batch, threads=threads, calibration=calibration)
        given = _given(built, few, batch)
        if quantize is None:
            return OpenFile(run=built.runtime(given), batch=given.n_samples)
        source = _float_file(format, built, samples, reading or Reading(), threads)
        file = quantize_file(source, quantizer_for(format, quantize), quantize, folder / quantize, inf)
    notes = (_judged_note(file, quantize), *file.notes)
    return OpenFile(run=file.runtime(given), batch=given.n_samples, notes=notes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LooseFile:
    """An ONNX file that is measured where it is copied to.

    Attributes:
        path: of the file.
        inputs: the batch, arrays by the names of the file's inputs.
        graph: its nodes, by the values that they make.
        batch: samples of the batch.
    """

    path: Path
    inputs: Mapping[str, NDArray[np.generic]]
    graph: Mapping[str, GraphNode]
    batch: int


def write_loose(model: nn.Module, batches: Iterable[Batch], folder: Path, *, batch: int) -> LooseFile:
    """Writes a model as ONNX as ``write_timed`` does, to be measured elsewhere.

    Args:
        model: to export; it is not changed.
        batches: real inputs, checked.
        folder: to write to; it is made.
        batch: samples in the batch.

    Returns:
        The file, which onnxruntime opens here. ``batch`` differs where it takes one other size only.

    Raises:
        SlimrankError: as ``write_timed``.
    """
    built, given = _float_only("onnx", model, batches, folder, batch=batch, threads=1)
    return LooseFile(
        path=built.path,
        inputs=onnx_inputs(built.path, built.program, given),
        graph=onnx_graph(built.path),
        batch=given.n_samples,
    )


def write_compiled(
    model: nn.Module, batches: Iterable[Batch], folder: Path, *, batch: int, threads: int
) -> OpenFile:
    """Writes a program of ``torch.export`` and compiles it, for this size of a batch.

    Args:
        model: to export; it is not changed.
        batches: real inputs, checked.
        folder: to write to; it is made.
        batch: samples in the batch.
        threads: of torch.

    Returns:
        The compiled program. ``batch`` differs where it takes one other size only.

    Raises:
        ExportError: the model cannot be written or compiled.
        BatchesError: the model refuses the samples.
    """
    built, given = _float_only("torch", model, batches, folder, batch=batch, threads=threads)
    run = open_torch_compiled(built.path, built.program, threads)(given)
    return OpenFile(run=run, batch=given.n_samples)


def _float_only(
    format: str, model: nn.Module, batches: Iterable[Batch], folder: Path, *, batch: int, threads: int
) -> tuple[_Built, Batch]:
    """A float file that was written, and the batch that it is run with."""
    row = format_named(format)
    with EXPORT_TURN:
        samples = read_samples(batches)
        built = _unchecked(row, model, samples, folder, batch=batch, threads=threads)
    return built, _given(built, samples, batch)


def _unchecked(
    row: Format,
    model: nn.Module,
    samples: Samples,
    folder: Path,
    *,
    batch: int,
    threads: int,
    calibration: Sequence[Batch] = (),
) -> _Built:
    """A float file that was written and not compared with the model."""
    file = f"model{row.suffix}"
    builder = _Builder(
        row=row,
        samples=samples,
        batch=batch,
        threads=threads,
        file=file,
        calibration=calibration,
    )
    return builder.build(model, folder, None)


def _given(built: _Built, samples: Samples, batch: int) -> Batch:
    """The batch that a file is run with: of so many samples, where it takes any number."""
    return samples.take(0, batch if built.program.is_dynamic else built.program.batch.n_samples)


def _balancing(samples: Samples, precision: str) -> list[Batch]:
    """What pairs are balanced with; nothing where values between them stay in float."""
    return samples.split()[0].in_batches(_BALANCED) if precision == "int8" else []


def _float_file(format: str, built: _Built, samples: Samples, reading: Reading, threads: int) -> FloatFile:
    """What an int8 file is made of."""
    return FloatFile(
        format=format,
        row=format_named(format),
        program=built.program,
        path=built.path,
        model=built.model,
        samples=samples,
        reading=reading,
        threads=threads,
    )


def _judged_note(file: Int8File, precision: str) -> Note:
    """How far an int8 file is from the float model."""
    text = f"the {precision} file has {file.judged.worst_db:.1f} dB of signal over noise"
    if file.judged.agreement is not None:
        text = f"{text}, and adds {file.judged.divergence:.3g} of divergence per sample"
    return Note(where=precision, text=text)


def check_export(
    path: Path,
    *,
    format: str,
    saved_in: Path,
    quantize: str | None = None,
    max_quant_drop: float | None = None,
) -> None:
    """Refuses before all work what exporting a model that is still to be compressed would refuse after it.

    Args:
        path: of the file to export to. Its folder must be there, or be ``saved_in``.
        format: a name of the table.
        saved_in: the directory that the model is saved in first; it need not be there yet.
        quantize: a precision; None for float.
        max_quant_drop: as in ``export_model``.

    Raises:
        UnknownNameError: no such format, or precision.
        OptionError: the format has no such precision, or ``max_quant_drop`` is out of range.
        MissingPackageError: a package of the format is not installed.
        ExportError: the name of the file says another format.
        FileError: the file cannot be written.
    """
    with EXPORT_TURN:
        _row_for(path, format)
        if quantize is not None:
            quantizer_for(format, quantize)
    check_drop(max_quant_drop, quantize)
    file, directory = path.resolve(), saved_in.resolve()
    if file == directory or file in directory.parents:
        raise FileError(
            f"{path} cannot be written: the model is saved in the directory {saved_in}; give another path"
        )
    if file.parent == directory and not directory.exists():
        return
    # Made and removed again: whether a folder takes files is known for sure only when it is tried.
    with EXPORT_TURN, draft_folder(path):
        pass


def _row_for(path: Path, format: str) -> Format:
    """The format of a file, its packages installed and its suffix right."""
    row = format_named(format)
    check_suffix(path, format)
    return row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Builder:
    """How a file is made.

    Attributes:
        row: the format.
        samples: real inputs.
        batch: samples of a file that takes one size only.
        threads: of the runtime.
        file: its name.
        calibration: to balance pairs with, for a file that becomes int8; none for a file that stays float.
    """

    row: Format
    samples: Samples
    batch: int
    threads: int
    file: str
    calibration: Sequence[Batch] = ()

    def build(self, model: nn.Module, folder: Path, reading: Reading | None) -> _Built:
        """Writes a file that takes any number of samples; where that fails, of one number.

        Args:
            model: to export.
            folder: to write to; it is made.
            reading: how outputs are read for the check; None for no check.

        Returns:
            The file.

        Raises:
            ExportError: the last way that was tried failed.
            BatchesError: the model refuses the samples.
        """
        plain = quiet_copy(model).cpu()
        first = self.samples.take(0, self.samples.n_first)
        prepared = prepare(plain, first)
        if self.calibration:
            balance_pairs(prepared.model, self.calibration)
        named = named_model(prepared.model, first, prepared.outputs)
        failed: SlimrankError | None = None
        for number, (size, is_dynamic) in enumerate(self._ways()):
            example = self.samples.take(0, size)
            try:
                built = self._written(named, example, is_dynamic, folder / str(number), plain, reading)
            except (ExportError, BatchesError) as error:
                failed = error
                if number and not isinstance(error, BatchesError):
                    break
                continue
            notes = [*(Note(where="prepare", text=text) for text in prepared.notes), *built.notes]
            if failed is not None and not is_dynamic:
                # Without the advice at the end, which is for those who have no file.
                text = f"the file takes batches of {size} only: {str(failed).rsplit('; ', 1)[0]}"
                notes.append(Note(where="batch", text=text))
            return replace(built, notes=tuple(notes))
        if failed is None:
            raise ExportError("there is no way to write a file")
        raise failed

    def _ways(self) -> Iterator[tuple[int, bool]]:
        """Samples of the example, and whether any number shall be allowed, in the order they are tried."""
        whole = self.samples.n_first
        if self.samples.batch.is_whole:
            yield whole, False
            return
        yield _EXAMPLE, True
        yield self.batch, False
        if whole != self.batch:
            yield whole, False

    def _written(
        self,
        named: NamedModel,
        example: Batch,
        is_dynamic: bool,
        folder: Path,
        plain: nn.Module,
        reading: Reading | None,
    ) -> _Built:
        bound = self.row.largest_batch
        largest = None if bound is None else max(bound, self.batch)
        program = capture_program(named, example, is_dynamic=is_dynamic, largest_batch=largest)
        folder.mkdir(parents=True)
        path = folder / self.file
        try:
            lowered = self.row.write(program, path)
        except OSError as error:
            raise FileError(f"{self.file} cannot be written ({error}); give a folder with room") from error
        runtime = self.row.open(path, program, self.threads)
        checked = None
        if reading is not None:
            checked = check_file(program, runtime, plain, self.samples, reading)
            if checked.max_error > checked.bound:
                raise ExportError(_difference_told(checked, self._inner(path, program, lowered, checked)))
        notes = _fixed_notes(named)
        if self.row.notes is not None:
            notes += self.row.notes(path, program)
        return _Built(
            program=replace(program, lowered=lowered),
            model=plain,
            path=path,
            runtime=runtime,
            checked=checked,
            notes=tuple(notes),
        )

    def _inner(self, path: Path, program: Program, lowered: ExportedProgram, checked: Checked) -> str:
        """Where inside a file starts to differ, in words; empty where the runtime does not tell."""
        if self.row.open_inside is None:
            return ""
        try:
            names, inside = self.row.open_inside(path, program, inner_names(lowered))
            if not names:
                return ""
            found = first_difference(lowered, program, names, inside, checked.batch, checked.bound)
        except Exception as error:
            # What is to be reported is the difference; that it could not be located is said beside it.
            return f"where it starts could not be found out ({told(error)}); "
        if found is None:
            return "no inner value differs when it is made an output; "
        return f"the first inner value that differs is {found}; "


def timing_notes(times: Sequence[Times], format: str) -> list[Note]:
    """What to know of times before and after, or of those after alone.

    Args:
        times: of the original, where there is one, and of the file.
        format: for the notes.

    Returns:
        A note on a file that takes longer than the original, and one on times that cannot be relied on.
    """
    notes = []
    if len(times) > 1 and times[1].milliseconds > _SLOWER * times[0].milliseconds:
        text = (
            f"slower than the original: {times[1].milliseconds:.3g} ms, not {times[0].milliseconds:.3g} ms; "
            "narrow layers do not fill a vector: plan with a larger multiple_of, such as 16, skip small "
            "layers, or try another format"
        )
        notes.append(Note(where=format, text=text, is_warning=True))
    spread = max(entry.spread for entry in times)
    if spread > _NOISY:
        text = f"times spread by {spread:.0%}: the machine does other work; export again when it is quiet"
        notes.append(Note(where=format, text=text))
    return notes


def _runs(
    before: _Built | None,
    built: _Built,
    int8: Int8File | None,
    quantizer: Quantizer | None,
    given: Batch,
    threads: int,
    format: str,
) -> tuple[list[Bound], list[Note]]:
    """One batch through each file, to be timed: as files were checked, or as the quantizer has them timed.

    Args:
        before: the original's file; None where there is none.
        built: the float file.
        int8: the int8 file; None where there is none.
        quantizer: that wrote it.
        given: the batch.
        threads: of the runtime.
        format: for notes.

    Returns:
        The runs, and a note where files could not be opened for timing, or int8 answers otherwise then.
    """
    files = [file for file in (before, built) if file is not None]
    runs = [file.runtime(given) for file in files]
    if int8 is None or quantizer is None:
        return runs, []
    runs.append(int8.runtime(given))
    if quantizer.open_timed is None:
        return runs, []
    written = [*((file.path, file.program) for file in files), (int8.path, built.program)]
    try:
        timed = [quantizer.open_timed(path, program, threads)(given) for path, program in written]
    except ExportError as error:
        text = f"times are of the files as they are read, in which int8 is slow, since {error}"
        return runs, [Note(where=format, text=text, is_warning=True)]
    apart = max(starmap(relative_difference, zip(runs[-1](), timed[-1](), strict=True)), default=0.0)
    if apart <= _APART:
        return timed, []
    text = (
        f"compiled, the int8 file answers otherwise than it was judged, by {apart:.2g} of the largest value: "
        "check it where it shall run, or take another format"
    )
    return timed, [Note(where=format, text=text, is_warning=True)]


def int8_cure(precision: str, *, n_layers: int, n_float: int, is_float32: bool) -> str:
    """What to do where int8 gains no time.

    Args:
        precision: of the file.
        n_layers: layers in int8.
        n_float: layers that stay in float.
        is_float32: all weights of the model are float32.
    """
    if precision == "int8_weights":
        return "it makes the file smaller; for time take quantize='int8'"
    if not is_float32:
        return "weights that are not float32 stay as they are: export model.float()"
    if n_float >= n_layers:
        return (
            f"{n_float} of {n_layers + n_float} layers stay in float, and values go back and forth: allow "
            "more with max_quant_drop=, where layers were kept for it, or take another format"
        )
    return "narrow layers do not fill its kernels: plan with multiple_of=16, or take another format"


def int8_timing_notes(plain: Times, int8: Times, format: str, precision: str, cure: str) -> list[Note]:
    """A warning where an int8 file is not faster than the float file of the same model.

    Args:
        plain: times of the float file.
        int8: times of the int8 file.
        format: for the note.
        precision: for the note.
        cure: what to do.
    """
    if int8.milliseconds * _SLOWER < plain.milliseconds:
        return []
    found = f"{int8.milliseconds:.3g} ms, and {plain.milliseconds:.3g} ms in float"
    text = f"int8 gains no time here: {found}; {cure}"
    return [Note(where=format, text=text, is_warning=precision == "int8")]


def _files_of(path: Path) -> list[Path]:
    """All files of an export, in a folder of its own: some formats keep weights beside the graph."""
    return [file for file in path.parent.iterdir() if file.is_file()]


def _size_of(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _difference_told(checked: Checked, inner: str) -> str:
    """What to say of a file that differs."""
    return (
        f"the file answers otherwise than the model on {count_told(checked.batch.n_samples)}: "
        f"{checked.worst} (allowed {checked.bound:.1g}); {inner}a model that draws random numbers or keeps "
        "state cannot be compared: switch that off, else replace this operation, or take another format"
    )


def _fixed_notes(named: NamedModel) -> list[Note]:
    """A note for each argument that is fixed in the file."""
    return [
        Note(where=name, text=f"this argument is {value!r} in the file, which takes tensors only")
        for name, value in named.fixed.items()
        if value is not None
    ]


def _shape_notes(samples: Samples, format: str) -> list[Note]:
    """A note where there are samples of other shapes."""
    if not samples.has_others:
        return []
    text = (
        f"all sizes but the batch are those of the first batch, {shapes_told(samples.batch)}; samples of "
        "other shapes, or with other arguments that are no tensors, were left out: pad inputs to these"
    )
    return [Note(where=format, text=text)]
