# SPDX-License-Identifier: Apache-2.0
"""Are budgets in measured time kept?

For each network, runtime and precision there is one study of 512 unlabelled pictures and one table of times;
then budgets of 0.75, 0.6 and 0.45 and two drawn at random, each met by ``slimrank.meet_latency``. Budgets
are shares of the time of the original at the precision of the table, so that those of int8 ask for as much
compression; "asked" is of the original in float32, as everywhere. One thread, a batch of 16. Of a network of
the size of ResNet-50 only times are told: its weights are random, it is studied without data, and it gets one
picture of 224 px at a time. One row per budget in ``benchmarks/results/budgets-cpu-torch<version>.csv``; a
second run does what is missing, ``--again`` all.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

import slimrank as sr
from benchmarks.bench_latency import LARGE, subject
from benchmarks.tables import Row, context, merge_table, read_table, table_path
from benchmarks.tasks.tasks import TASKS, accuracy_columns

KEY = ("network", "backend", "precision", "budget")
BACKENDS, PRECISIONS = ("onnxruntime", "openvino"), ("float32", "int8")
BUDGETS, RANDOM, LEAST = (0.75, 0.6, 0.45), 2, 0.4
N_IMAGES, BATCH = 512, 16


def budgets_of(name: str) -> tuple[float, ...]:
    """The budgets of a network: the same three for all, and some drawn for all but the large one.

    Args:
        name: of the network.

    Returns:
        Shares of the time of the original.
    """
    if name == LARGE:
        return BUDGETS
    drawn = np.random.default_rng([*name.encode()]).uniform(LEAST, 1.0, RANDOM)
    return (*BUDGETS, *(round(float(budget), 3) for budget in drawn))


def study_of(name: str) -> sr.Study:
    """The study that all budgets of a network are met by."""
    if name == LARGE:
        model, images = subject(name, 1)
        return sr.study(model, [images], data_free=True, effort="fast", progress=False)
    return sr.study(TASKS[name].model(), TASKS[name].batches(N_IMAGES), progress=False)


def rows_of(name: str, study: sr.Study, table: sr.Latencies, budgets: Sequence[float]) -> Iterator[Row]:
    """Meets budgets by one table.

    Args:
        name: of the network.
        study: of it.
        table: of times.
        budgets: shares of the time of the original at the precision of the table.

    Yields:
        A row for each.
    """
    task = TASKS.get(name)
    before = torch.zeros(0) if task is None else task.right(task.model())
    own = table.times.before / table.times.reference if table.precision != "float32" else 1.0
    for budget in budgets:
        row: Row = {
            "network": name,
            "backend": table.backend,
            "precision": table.precision,
            "budget": budget,
            "batch": table.batch,
        }
        start = time.perf_counter()
        try:
            result = sr.meet_latency(study, round(own * budget, 4), latencies=table)
        except sr.BudgetError as error:
            yield {**row, "note": str(error)}
            continue
        latency = result.latency
        if latency is None:
            raise RuntimeError(f"{name}: meet_latency measured nothing")
        yield {
            **row,
            "asked": latency.asked,
            "predicted": round(latency.predicted, 4),
            "measured": round(latency.measured, 4),
            "above": round(latency.measured / latency.asked - 1, 4),
            "spread": round(latency.spread, 3),
            "rounds": latency.rounds,
            "before_ms": round(latency.before_ms, 3),
            "after_ms": round(latency.after_ms, 3),
            "macs_counted": round(result.after.macs / result.before.macs, 4),
            "seconds": round(time.perf_counter() - start, 1),
            **({} if task is None else accuracy_columns(before, task.right(result.model))),
        }


def main() -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=(*sorted(TASKS), LARGE), action="append")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--again", action="store_true", help="do rows again that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = table_path("budgets")
    for name in args.network or (*TASKS, LARGE):
        study = None
        for backend in args.backend or BACKENDS:
            for precision in args.precision or PRECISIONS:
                there = {
                    row["budget"]
                    for row in read_table(path)
                    if (row["network"], row["backend"], row["precision"]) == (name, backend, precision)
                }
                budgets = [budget for budget in budgets_of(name) if args.again or str(budget) not in there]
                if not budgets:
                    continue
                study = study or study_of(name)
                table = sr.measure_latency(
                    study,
                    backend=backend,
                    precision=precision,
                    batch=1 if name == LARGE else BATCH,
                    progress=False,
                )
                for row in rows_of(name, study, table, budgets):
                    print({key: value for key, value in row.items() if value is not None}, flush=True)
                    merge_table(path, [{**row, **context()}], KEY)


if __name__ == "__main__":
    main()
