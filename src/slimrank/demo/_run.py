# SPDX-License-Identifier: Apache-2.0
"""The demo: the shipped network compressed, measured, saved and loaded again."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.demo._glyphnet import build, calibration_batches, test_batches
from slimrank.records import Measurement, Note
from slimrank.report import Phases

# Batch size -> rounds: about two seconds each on two cores.
LATENCY_ROUNDS = {1: 200, 64: 30}
_WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DemoRun:
    """What the demo did.

    Attributes:
        result: the compressed network.
        measurements: accuracy and latency, before and after.
        directory: where it was saved; ``report.html`` lies beside the weights.
        loads_equal: whether ``slimrank.load`` gave a model with bit for bit the same outputs.
        seconds: wall time of all of it.
    """

    result: sr.Result
    measurements: tuple[Measurement, ...]
    directory: Path
    loads_equal: bool
    seconds: float


def run_demo(directory: Path, *, macs: float = 0.5, progress: bool = True) -> DemoRun:
    """Compresses the shipped network with the shipped unlabelled images.

    Labels are used for one thing: to report the accuracy.

    Args:
        directory: where the model is saved; an earlier one there is replaced.
        macs: keep ratio of the MACs, in (0, 1].
        progress: show bars on stderr.

    Returns:
        The result and what was measured on it.

    Raises:
        BudgetError: a budget that is no keep ratio, or out of reach.
        FileError: the directory cannot be written.
    """
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
    with phases.phase("latency", len(LATENCY_ROUNDS)) as advance:
        for batch_size, rounds in LATENCY_ROUNDS.items():
            latencies = measure_latency_ms(pair, images[:batch_size], rounds=rounds)
            measurements.append(_measurement(f"latency, batch {batch_size}", latencies, "ms"))
            advance(1)
    counts = " and ".join(f"{rounds} (batch {size})" for size, rounds in LATENCY_ROUNDS.items())
    note = Note(
        where="latency",
        text=f"on the CPU with {torch.get_num_threads()} threads, eager, eval mode, no_grad; medians of "
        f"{counts} rounds, original and compressed in turn",
    )
    result = result.with_notes([note], {**result.seconds, **phases.seconds})
    result.save(directory, overwrite=True, measurements=measurements)
    loaded = sr.load(directory, model=build())
    return DemoRun(
        result=result,
        measurements=tuple(measurements),
        directory=directory,
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


def measure_latency_ms(models: Sequence[nn.Module], images: Tensor, *, rounds: int) -> tuple[float, ...]:
    """Wall time of one forward, models in turn, so that a slow moment of the machine meets all of them.

    Args:
        models: in eval mode.
        images: one batch.
        rounds: forwards of each model, at least 1; 5 more are not counted.

    Returns:
        Median milliseconds of each model.
    """
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for round_number in range(_WARM_UP + rounds):
            # Every other round backwards: neither always follows the other.
            order = range(len(models)) if round_number % 2 else reversed(range(len(models)))
            for index in order:
                start = time.perf_counter()
                models[index](images)
                if round_number >= _WARM_UP:
                    times[index].append(1000 * (time.perf_counter() - start))
    return tuple(statistics.median(own) for own in times)


def _measurement(name: str, values: Sequence[float], unit: str) -> Measurement:
    before, after = values
    return Measurement(name=name, before=before, after=after, unit=unit)


def _gives_equal(model: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(model(images), other(images))
