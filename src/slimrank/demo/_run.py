# SPDX-License-Identifier: Apache-2.0
"""The demo: the shipped network compressed, measured, saved and loaded again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank._progress import Phases
from slimrank.demo._glyphnet import build, calibration_batches, test_batches
from slimrank.deploy import Times, time_in_turns
from slimrank.records import Measurement, Note

# Samples in the batches that the networks are timed with in torch.
LATENCY_BATCHES = (1, 64)
# Samples in the batches that exported files are timed with.
EXPORT_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DemoRun:
    """What the demo did.

    Attributes:
        result: the compressed network.
        measurements: accuracy and latency, before and after.
        directory: where it was saved; ``report.html`` lies beside the weights.
        exported: the compressed network as a file for onnxruntime, timed beside the original; None without
            the packages of the extra "export".
        not_exported: what is missing, with the line for pip; "" where nothing is.
        loads_equal: whether ``slimrank.load`` gave a model with bit for bit the same outputs.
        seconds: wall time of all of it.
    """

    result: sr.Result
    measurements: tuple[Measurement, ...]
    directory: Path
    exported: sr.Exported | None
    not_exported: str
    loads_equal: bool
    seconds: float


def run_demo(directory: Path, *, macs: float = 0.5, progress: bool = True) -> DemoRun:
    """Compresses the shipped network with the shipped unlabelled images.

    Labels are used for one thing: to report the accuracy.

    Args:
        directory: where the model is saved; an earlier one there is replaced. Beside it lies the exported
            file, ``compressed.onnx``.
        macs: keep ratio of the MACs, in (0, 1].
        progress: show bars on stderr.

    Returns:
        The result and what was measured on it.

    Raises:
        BudgetError: a budget that is no keep ratio, or out of reach.
        FileError: the directory cannot be written.
    """
    if not directory.absolute().parent.is_dir():
        raise sr.FileError(
            f"{directory} cannot be written: there is no folder {directory.parent}; make it first"
        )
    start = time.perf_counter()
    model = build()
    result = sr.compress(model, calibration_batches(), macs=macs, progress=progress)
    phases = Phases(shown=progress)
    pair = (model, result.model)
    labelled = test_batches()
    with phases.phase("accuracy", len(pair)) as advance:
        accuracies = []
        for network in pair:
            accuracies.append(measure_accuracy(network, labelled))
            advance(1)
    n_images = sum(len(labels) for _, labels in labelled)
    measurements = [_measurement(f"accuracy, {n_images:,} unseen images", accuracies, "%")]
    images = torch.cat([images for images, _ in labelled])
    notes = []
    with phases.phase("latency", len(LATENCY_BATCHES)) as advance, torch.no_grad():
        for batch_size in LATENCY_BATCHES:
            times = time_in_turns([partial(network, images[:batch_size]) for network in pair])
            medians = [taken.milliseconds for taken in times]
            measurements.append(_measurement(f"latency, batch {batch_size}", medians, "ms"))
            notes.append(Note(where=f"latency, batch {batch_size}", text=_latency_text(times)))
            advance(1)
    exported: sr.Exported | None = None
    not_exported = ""
    with phases.phase("export", 1) as advance:
        try:
            exported = _export(result, directory.parent)
            advance(1)
        except sr.MissingPackageError as error:
            not_exported = str(error)
            notes.append(Note(where="export", text=not_exported))
    if exported is not None:
        measurements += _export_measurements(exported)
        notes.append(Note(where="export", text=f"{exported.path} has the compressed network for onnxruntime"))
    result = result.with_notes(notes, {**result.seconds, **phases.seconds})
    result.save(directory, overwrite=True, measurements=measurements)
    loaded = sr.load(directory, model=build())
    return DemoRun(
        result=result,
        measurements=tuple(measurements),
        directory=directory,
        exported=exported,
        not_exported=not_exported,
        loads_equal=_gives_equal(loaded, result.model, images[:64]),
        seconds=time.perf_counter() - start,
    )


def measure_accuracy(model: nn.Module, labelled: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose highest logit is the label's.

    Args:
        model: in eval mode.
        labelled: images (N, 1, 32, 32) and labels (N,), per batch.

    Returns:
        Percent, 0 to 100.
    """
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in labelled)
    return 100 * right / sum(len(labels) for _, labels in labelled)


def _export(result: sr.Result, folder: Path) -> sr.Exported:
    """The compressed network as an ONNX file in a folder."""
    return result.export(folder / "compressed.onnx", batch=EXPORT_BATCH)


def _export_measurements(exported: sr.Exported) -> list[Measurement]:
    """Size and time of the exported file beside the original's."""
    measurements = []
    if exported.before_bytes is not None:
        sizes = (exported.before_bytes / 1e6, exported.bytes / 1e6)
        measurements.append(_measurement("ONNX file", sizes, "MB"))
    if exported.before_ms is not None:
        name = f"onnxruntime, batch {exported.batch}, 1 thread"
        measurements.append(_measurement(name, (exported.before_ms, exported.after_ms), "ms"))
    return measurements


def _latency_text(times: Sequence[Times]) -> str:
    """How latency was measured, and how far the middle half of the times spreads."""
    before, after = (taken.spread for taken in times)
    return (
        f"on the CPU, {torch.get_num_threads()} threads, eager, eval mode, no_grad; medians of turns "
        f"of the two; the middle half of them spread by {before:.0%} before, {after:.0%} after"
    )


def _measurement(name: str, values: Sequence[float], unit: str) -> Measurement:
    before, after = values
    return Measurement(name=name, before=before, after=after, unit=unit)


def _gives_equal(loaded: nn.Module, saved: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(loaded(images), saved(images))
