# SPDX-License-Identifier: Apache-2.0
"""How many pictures does a label-free compression need, and which?

Half of the MACs; 32 to 2,048 calibration pictures, several draws of them, and pictures that are not of the
kind that the network sees. Table in ``benchmarks/results/data-cpu-torch<version>.csv``. The divergence is
measured on the same 512 further pictures in every row.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.tables import FACTORS, Row, keep_rows
from benchmarks.tasks.glyphs import Shift
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns

RATIO = 0.5
COUNTS = (32, 64, 128, 256, 512, 2048)
SEEDS = (0, 1, 2)
SHIFTS: tuple[Shift, ...] = ("fonts", "noise", "digits", "static")
KEY = ("network", "images", "shift", "seed")
NETWORKS = ("resnet", "vit")


def divergence(model: nn.Module, other: nn.Module, images: list[Tensor]) -> float:
    """Nats per picture between the answers of two networks.

    Args:
        model: the original.
        other: the other.
        images: batches of pictures.

    Returns:
        The mean Kullback-Leibler divergence.
    """
    total = 0.0
    with torch.inference_mode():
        for batch in images:
            p, q = model(batch).log_softmax(1), other(batch).log_softmax(1)
            total += float((p.exp() * (p - q)).sum())
    return total / sum(len(batch) for batch in images)


def rows_of(task: Task) -> Iterator[Row]:
    """Every row on one network.

    Args:
        task: the network.

    Yields:
        The rows, as they are done.
    """
    model = task.model()
    before = task.right(model)
    fresh = task.batches(512, seed=99)
    cases: list[tuple[int, Shift, int]] = [
        (count, "none", seed) for count in COUNTS for seed in SEEDS[: 3 if count < 512 else 1]
    ]
    cases += [(512, shift, 0) for shift in SHIFTS]
    for count, shift, seed in cases:
        start = time.perf_counter()
        study = sr.study(
            model, task.batches(count, seed, shift), methods=FACTORS, skip=task.skip, progress=False
        )
        result = study.apply(study.plan(macs=task.budget(study, RATIO)))
        seconds = time.perf_counter() - start
        after = task.right(result.model)
        is_few = any("More samples help" in note.text for note in result.notes)
        kinds = [layer.fit for layer in result.layers if layer.fit]
        yield {
            "network": task.name,
            "images": count,
            "shift": shift,
            "seed": seed,
            "macs_counted": round(result.keep_ratio("macs"), 4),
            **accuracy_columns(before, after),
            "divergence_on_fresh_pictures": round(divergence(model, result.model, fresh), 4),
            "divergence_told": round(result.divergence or 0.0, 4),
            "layers_fitted_sequentially": f"{kinds.count('sequential')} of {len(kinds)}",
            "says_data_are_few": "yes" if is_few else "no",
            "seconds": round(seconds, 1),
        }


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Accuracy by number and kind of calibration pictures.")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    args = parser.parse_args()
    for name in args.network or NETWORKS:
        keep_rows("data", rows_of(TASKS[name]), KEY)


if __name__ == "__main__":
    main()
