# SPDX-License-Identifier: Apache-2.0
"""Accuracy without labels or training, beside AIMET, on four networks and 10,011 pictures in unseen fonts.

512 unlabelled pictures for slimrank, 2,000 labelled ones for AIMET's greedy selection. One row per network,
budget and way, in ``benchmarks/results/accuracy-cpu-torch<version>.csv``.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import slimrank as sr
from benchmarks.reference import LABELLED, SCHEMES, compressed, network_at, spent
from benchmarks.tables import FACTORS, Row, Value, context, merge_table, table_path
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns
from slimrank.capture import count_cost
from slimrank.forward import as_batch

RATIOS = (0.75, 0.5, 0.35, 0.25)
N_IMAGES = 512
KEY = ("network", "ratio_asked", "way")


def _measured(task: Task, before: Tensor, ratio: float, way: str, build: Callable[[], sr.Result]) -> Row:
    start = time.perf_counter()
    result = build()
    seconds = time.perf_counter() - start
    after = task.right(result.model)
    return {
        "network": task.name,
        "ratio_asked": ratio,
        "way": way,
        "macs_counted": round(result.keep_ratio("macs"), 4),
        "params_counted": round(result.keep_ratio("params"), 4),
        **accuracy_columns(before, after),
        "divergence": None if result.divergence is None else round(result.divergence, 5),
        "damage_predicted": None if result.damage is None else round(result.damage, 5),
        "unlabelled_images": 0 if way == "data-free" else N_IMAGES,
        "labelled_images": 0,
        "evaluations": 0,
        "seconds": round(seconds, 1),
    }


def rows_of(task: Task) -> Iterator[Row]:
    """Every row of slimrank on one network.

    Args:
        task: the network.

    Yields:
        The rows, as they are done.
    """
    model, batches = task.model(), task.batches(N_IMAGES)
    before = task.right(model)
    times = {}

    def studied(name: str, **options: bool) -> sr.Study:
        start = time.perf_counter()
        study = sr.study(model, batches, methods=FACTORS, skip=task.skip, progress=False, **options)
        times[name] = time.perf_counter() - start
        return study

    full = studied("full")
    flat = studied("flat", fisher=False)
    free = studied("free", data_free=True)
    for ratio in RATIOS:
        macs = task.budget(full, ratio)
        ways: dict[str, tuple[str, Callable[[], sr.Result]]] = {
            "optimal": ("full", lambda macs=macs: full.apply(full.plan(macs=macs))),
            "independent fits": (
                "full",
                lambda macs=macs: full.apply(full.plan(macs=macs), sequential=False),
            ),
            "greedy": ("full", lambda macs=macs: full.apply(full.plan(macs=macs, select="greedy"))),
            "uniform": ("full", lambda macs=macs: full.apply(full.plan(macs=macs, select="uniform"))),
            "without G": ("flat", lambda macs=macs: flat.apply(flat.plan(macs=macs))),
            "data-free": ("free", lambda macs=macs: free.apply(free.plan(macs=macs))),
        }
        for way, (study, build) in ways.items():
            row = _measured(task, before, ratio, way, build)
            yield {**row, "seconds": round(float(row["seconds"] or 0) + times[study], 1), "seed": 0}


def reference_rows(task: Task) -> Iterator[Row]:
    """AIMET's rows on one network; MACs are counted by slimrank, on the network that AIMET made.

    Args:
        task: the network.

    Yields:
        The rows, as they are done.
    """
    model = task.model()
    before, sample = task.right(model), as_batch(torch.zeros(1, 1, 32, 32))
    whole = count_cost(model, sample)
    for scheme in SCHEMES[task.name]:
        results, folder = compressed(task.name, scheme)
        for entry in results["ratios"]:
            ratio = entry["ratio"]
            row: dict[str, Value] = {"network": task.name, "ratio_asked": ratio, "way": f"AIMET {scheme}"}
            if entry["error"]:
                yield {**row, "note": entry["error"].strip().splitlines()[-1]}
                continue
            found = network_at(task.name, folder, ratio)
            after, cost = task.right(found), count_cost(found, sample)
            # The score table is explored at the first ratio and reused at the others, which need it as well.
            seconds, evaluations = spent(results, ratio)
            yield {
                **row,
                "macs_counted": round(cost.macs / whole.macs, 4),
                "params_counted": round(cost.params / whole.params, 4),
                **accuracy_columns(before, after),
                "unlabelled_images": 0,
                "labelled_images": LABELLED,
                "evaluations": evaluations,
                "seconds": round(seconds, 1),
            }


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Accuracy without labels or training.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--only", choices=("slimrank", "aimet"), help="rows of one of the two")
    args = parser.parse_args()
    for name in args.network or sorted(TASKS):
        task = TASKS[name]
        sources = {"slimrank": rows_of, "aimet": reference_rows}
        for source in (args.only,) if args.only else sources:
            rows = []
            for row in sources[source](task):
                rows.append({**row, **context()})
                print({key: value for key, value in row.items() if value is not None}, flush=True)
            merge_table(table_path("accuracy"), rows, KEY)


if __name__ == "__main__":
    main()
