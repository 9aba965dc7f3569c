# SPDX-License-Identifier: Apache-2.0
"""How much accuracy does the demo's network keep, by budget and by way of choosing and fitting?

No labels, no training: 512 unlabelled images; labels serve the report only. One row per budget and way,
written to ``benchmarks/results/demo-cpu-torch<version>.csv`` with commit and date.
"""

import time
from collections.abc import Callable

import torch

import slimrank as sr
from benchmarks.tables import FACTORS, context, table_path, write_table
from slimrank import demo

RATIOS = (0.75, 0.5, 0.35, 0.25)


def _accuracy(model: torch.nn.Module) -> float:
    labelled = demo.test_batches()
    with torch.no_grad():
        right = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in labelled)
    return 100 * right / sum(len(y) for _, y in labelled)


def main() -> None:
    """Runs every row and writes the table."""
    model, images = demo.build(), demo.calibration_batches()
    before = _accuracy(model)
    start = time.perf_counter()
    study = sr.study(model, images, methods=FACTORS, progress=False)
    study_seconds = time.perf_counter() - start
    ways: dict[str, Callable[[float], sr.Result]] = {
        "optimal, sequential": lambda ratio: study.apply(study.plan(macs=ratio)),
        "optimal, independent": lambda ratio: study.apply(study.plan(macs=ratio), sequential=False),
        "greedy, sequential": lambda ratio: study.apply(study.plan(macs=ratio, select="greedy")),
        "uniform, sequential": lambda ratio: study.apply(study.plan(macs=ratio, select="uniform")),
        "optimal, weights only": lambda ratio: sr.apply(model, study.plan(macs=ratio), progress=False),
    }
    rows = []
    for ratio in RATIOS:
        for way, build in ways.items():
            start = time.perf_counter()
            result = build(ratio)
            rows.append(
                {
                    "macs_asked": ratio,
                    "macs_counted": round(result.keep_ratio("macs"), 4),
                    "way": way,
                    "accuracy_before": round(before, 2),
                    "accuracy_after": round(_accuracy(result.model), 2),
                    "divergence": None if result.divergence is None else round(result.divergence, 5),
                    "damage_predicted": None if result.damage is None else round(result.damage, 5),
                    "study_seconds": round(study_seconds, 1),
                    "build_seconds": round(time.perf_counter() - start, 1),
                    **context(),
                }
            )
            print(
                rows[-1]["macs_counted"], way, rows[-1]["accuracy_after"], rows[-1]["divergence"], flush=True
            )
    write_table(table_path("demo"), rows)
    print(table_path("demo"))


if __name__ == "__main__":
    main()
