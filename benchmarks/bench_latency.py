# SPDX-License-Identifier: Apache-2.0
"""How well does a latency table predict the time of plans that it never saw?

Random plans of the benchmark networks and of one of the size of ResNet-50: pairs at random ranks, groups at
random widths, some blocks gone. Each is built with random weights, exported, and run in turns with the
original, after 3 warm-up rounds, half a second in each of 5 passes over all plans, each run for 10 ms untimed
and then for 10 ms timed in its turn: a processor that others share has times at which float runs are slowed
more than int8 ones, and they last for seconds. So int8 plans take turns with the original in int8, and this
one with the original: their ratio is that of the plan times "standing", that of the original in int8, which
tells what a table misses of plans from how the machine runs the two precisions. Both are medians over passes
of the median over turns (where turns spread by more than 3 %, over the quietest fifth), in seconds of the
processor at one thread; "spread" is the interquartile range of the plan's over passes. Predicted ratios come
from ``slimrank.measure_latency`` at the same batch. One row per plan in
``benchmarks/results/latency-cpu-torch<version>.csv``, of processors whose int8 has all 8 bits (x86 with
VNNI) in ``latency-vnni-...``; a second run does what is missing, ``--again`` all.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks import resnet50
from benchmarks.tables import Row, context, merge_table, read_table, table_path
from benchmarks.tasks.tasks import TASKS
from slimrank.deploy import Comparison, compare_in_turns, sums_overflow
from slimrank.forward import as_batch
from slimrank.latency import (
    BACKENDS,
    PRECISIONS,
    build_variant,
    draw_variants,
    open_timed,
    quantize_of,
)
from slimrank.plan import predicted_time

KEY = ("network", "backend", "precision", "batch", "plan")
SEED = 1000
# Passes over all plans, and the seconds that each runs in turns with the original in a pass.
PASSES, SECONDS = 5, 0.5
# Plans that are drawn for each network, so that each is the same however many are measured.
DRAWN = 30
# The large network, its pictures, and how many plans of it are measured, one picture at a time.
LARGE, PIXELS, LARGE_DRAWN = "resnet50", 224, 12
# Relative error of the predicted ratio that counts as right.
RIGHT = 0.05


def subject(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A network, and a batch of noise for it.

    Args:
        name: of the network.
        batch: samples in the batch.
    """
    shape = (batch, 3, PIXELS, PIXELS) if name == LARGE else (batch, 1, 32, 32)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    return (resnet50.build() if name == LARGE else TASKS[name].model()), images


def rows_of(
    name: str, backend: str, precision: str, batch: int, plans: Sequence[int], folder: Path
) -> Iterator[Row]:
    """Measures plans beside their prediction.

    Args:
        name: of the network.
        backend: the runtime.
        precision: of the plans' files.
        batch: samples in the batch.
        plans: numbers of the plans.
        folder: for files.

    Yields:
        A row for each plan.
    """
    model, images = subject(name, batch)
    study = sr.study(model, [images], data_free=True, effort="fast", progress=False)
    start = time.perf_counter()
    table = sr.measure_latency(
        study, backend=backend, batch=batch, precision=precision, path=folder / "table.json"
    )
    seconds = time.perf_counter() - start
    opened = partial(open_timed, backend, batches=[as_batch(images)], batch=batch, threads=1)
    original = opened(model, folder=folder / "original")
    drawn = draw_variants(
        study.structure,
        study.methods,
        count=DRAWN,
        step=table.times.step,
        seed=SEED,
        mixed=True,
    )
    quantize = quantize_of(precision)
    files = {
        number: opened(
            build_variant(
                model,
                drawn[number],
                has_bias=study.has_bias,
                seed=SEED + number,
                sample=None if quantize is None else as_batch(images),
            ),
            folder=folder / str(number),
            quantize=quantize,
        )
        for number in plans
    }
    whole = original if quantize is None else opened(model, folder=folder / "whole", quantize=quantize)
    turns = partial(compare_in_turns, threads=BACKENDS[backend].clock_threads(1), seconds=SECONDS)
    ratios: dict[int, list[float]] = {number: [] for number in plans}
    standing: list[Comparison] = []
    before_ms: list[float] = []
    for _ in range(PASSES):
        for number, file in files.items():
            compared = turns(whole.run, file.run)
            ratios[number].append(compared.ratio)
            if quantize is not None:
                compared = turns(original.run, whole.run)
                standing.append(compared)
            before_ms.append(compared.before.milliseconds)
    before = statistics.median(before_ms)
    share = statistics.median(compared.ratio for compared in standing) if standing else 1.0
    for number in plans:
        first, ratio, third = (share * part for part in statistics.quantiles(ratios[number], n=4))
        predicted = predicted_time(table.times, drawn[number]) / table.times.reference
        yield {
            "network": name,
            "backend": backend,
            "precision": table.precision,
            "batch": batch,
            "plan": number,
            "predicted": round(predicted, 4),
            "measured": round(ratio, 4),
            "error": round(predicted / ratio - 1, 4),
            "spread": round((third - first) / ratio, 4),
            "told_error": round(table.error, 4),
            "standing_predicted": round(table.times.before / table.times.reference, 4),
            "standing_measured": round(share, 4),
            "table_seconds": round(seconds, 1),
            "before_ms": round(before, 3),
        }


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Median error and the share of plans that are right, by network and runtime."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in KEY[:-1]), []).append(abs(float(row["error"])))
    return "\n".join(
        f"{' '.join(key)}: {len(errors)} plans, median error {statistics.median(errors):.1%}, "
        f"within {RIGHT:.0%} {sum(error <= RIGHT for error in errors) / len(errors):.0%}, "
        f"largest {max(errors):.1%}"
        for key, errors in found.items()
    )


def main() -> None:
    """Fills the table and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=(*TASKS, LARGE), default=[*TASKS, LARGE])
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, default=["onnxruntime", "openvino"])
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--plans", type=int, choices=range(1, DRAWN + 1), metavar="N", default=DRAWN)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="do rows again that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = table_path("latency" if sums_overflow() else "latency-vnni")
    for name, backend, precision in product(args.networks, args.backends, args.precisions):
        batch, most = (1, LARGE_DRAWN) if name == LARGE else (args.batch, DRAWN)
        key = (name, backend, precision, str(batch))
        there = {row["plan"] for row in read_table(path) if tuple(row[part] for part in KEY[:-1]) == key}
        plans = [number for number in range(min(args.plans, most)) if args.again or str(number) not in there]
        if not plans:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(name, backend, precision, batch, plans, Path(folder)):
                print(row, flush=True)
                merge_table(path, [{**row, **context()}], KEY)
    print(summary(read_table(path)))


if __name__ == "__main__":
    main()
