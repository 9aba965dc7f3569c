# SPDX-License-Identifier: Apache-2.0
"""What a divergence means: agreement with the original beside the accuracy that is lost, at many budgets.

The benchmark's networks, 512 unlabelled pictures, no training; channel pruning alone and all methods, so that
results from very good to of no use are there. The warning that outputs have little left is set on this
table (``slimrank._verify``). One row for each network, methods and budget in
``benchmarks/results/agreement-cpu-torch<version>.csv``.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch

import slimrank as sr
from benchmarks.tables import Row, keep_rows
from benchmarks.tasks.tasks import TASKS, Task
from slimrank.records import Method

RATIOS = (0.8, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08)
PRUNING: Sequence[Method] = ("channel_pruning",)


def _rows(tasks: Sequence[Task]) -> Iterator[Row]:
    for task in tasks:
        model = task.model()
        original = float(task.right(model).float().mean())
        study = sr.study(model, task.batches(), skip=task.skip, progress=False)
        for name, methods in (("all", None), ("channel_pruning", PRUNING)):
            for ratio in RATIOS:
                try:
                    plan = study.plan(macs=task.budget(study, ratio), methods=methods)
                except sr.BudgetError:
                    # Below what these methods reach.
                    continue
                result = study.apply(plan)
                agreement = result.agreement
                if agreement is None or agreement.top1 is None:
                    raise RuntimeError(f"{task.name}: outputs that are not read as classes")
                accuracy = float(task.right(result.model).float().mean())
                warnings = sum(1 for note in result.notes if note.is_warning)
                yield {
                    "network": task.name,
                    "methods": name,
                    "macs": round(result.keep_ratio("macs"), 4),
                    "divergence": float(f"{agreement.divergence:.4g}"),
                    "top1": round(agreement.top1, 4),
                    "lost": round(agreement.lost, 4),
                    "accuracy_before": round(100 * original, 2),
                    "accuracy_after": round(100 * accuracy, 2),
                    "points_lost": round(100 * (original - accuracy), 2),
                    "warned": warnings,
                }


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [TASKS[name] for name in options.networks]
    keep_rows("agreement", _rows(tasks), ("network", "methods", "macs"))


if __name__ == "__main__":
    main()
