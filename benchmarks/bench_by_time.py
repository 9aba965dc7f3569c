# SPDX-License-Identifier: Apache-2.0
"""How much accuracy does a millisecond cost: plans by MACs, plans by measured time, AIMET, Torch-Pruning.

Four networks, no labels but for AIMET, no training, onnxruntime with one thread at a batch of 16. For each
budget in MACs there is one plan by MACs, whose time is measured; then one plan by time that is asked for no
more than that time. So pairs of rows compare at equal measured time. AIMET's networks are those of
``bench_accuracy``, Torch-Pruning's are ranked by magnitude, one ratio for all layers, batch norms estimated
again; the latter are made in an environment of its own, with ``--only torch-pruning``. Each network takes
turns with the original, for 10 ms untimed and then for 10 ms timed, in seconds of the processor. One row per
network and way in ``benchmarks/results/by-time-cpu-torch<version>.csv``; a second run does what is missing,
``--again`` all.
"""

import argparse
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.reference import RATIOS, SCHEMES, compressed, network_at
from benchmarks.tables import Row, Value, context, merge_table, read_table, table_path
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns
from slimrank.capture import count_cost
from slimrank.deploy import OpenFile, compare_in_turns, write_open
from slimrank.forward import Batch, as_batch

KEY = ("network", "way", "budget")
# Keep ratios of the MACs.
BUDGETS = (0.7, 0.5, 0.35, 0.25, 0.18)
N_IMAGES, BATCH, SECONDS = 512, 16, 3.0
SAMPLE = as_batch(torch.zeros(1, 1, 32, 32))
# Way and budget of a row.
Done = tuple[str, float]
BY_MACS, BY_TIME, PRUNED = "by MACs", "by time", "Torch-Pruning magnitude"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A network, open in the runtime, for others to take turns with.

    Attributes:
        task: the network's.
        batches: real inputs.
        right: (S,) bool, right answers of the original.
        macs: of the original.
        original: its file, open.
        folder: for files.
    """

    task: Task
    batches: Sequence[Batch]
    right: Tensor
    macs: int
    original: OpenFile
    folder: Path

    @classmethod
    def of(cls, task: Task, folder: Path) -> "Clock":
        """Reads and opens the original of a task."""
        model, batches = task.model(), [as_batch(batch) for batch in task.batches(N_IMAGES)]
        return cls(
            task=task,
            batches=batches,
            right=task.right(model),
            macs=count_cost(model, SAMPLE).macs,
            original=_opened(model, batches, folder / "original"),
            folder=folder,
        )

    def row(self, model: nn.Module, way: str, budget: float) -> dict[str, Value]:
        """Accuracy, MACs and time of what became of the network.

        Args:
            model: in eval mode.
            way: how it was made.
            budget: keep ratio that its row goes by.

        Returns:
            Columns of the table.
        """
        file = _opened(model, self.batches, self.folder / f"{way} {budget}".replace(" ", "-"))
        compared = compare_in_turns(self.original.run, file.run, threads=1, seconds=SECONDS)
        return {
            "network": self.task.name,
            "way": way,
            "budget": budget,
            "batch": BATCH,
            "macs_counted": round(count_cost(model, SAMPLE).macs / self.macs, 4),
            "time_measured": round(compared.ratio, 4),
            "spread": round(compared.spread, 3),
            "before_ms": round(compared.before.milliseconds, 3),
            "after_ms": round(compared.after.milliseconds, 3),
            **accuracy_columns(self.right, self.task.right(model)),
        }


def _opened(model: nn.Module, batches: Sequence[Batch], folder: Path) -> OpenFile:
    return write_open(model, batches, folder, format="onnx", batch=BATCH, threads=1)


def slimrank_rows(clock: Clock, done: Collection[Done]) -> Iterator[Row]:
    """Plans by MACs and by time, from one study.

    Args:
        clock: of the network.
        done: rows that are there.

    Yields:
        The rows, as they are done.
    """
    budgets = [budget for budget in BUDGETS if not {(BY_MACS, budget), (BY_TIME, budget)} <= {*done}]
    if not budgets:
        return
    study = sr.study(clock.task.model(), clock.task.batches(N_IMAGES), progress=False)
    table = sr.measure_latency(study, batch=BATCH, path=clock.folder / "table.json", progress=False)
    for budget in budgets:
        by_macs = study.apply(study.plan(macs=budget))
        row = clock.row(by_macs.model, BY_MACS, budget)
        yield {**row, "divergence": by_macs.divergence}
        asked = min(1.0, float(str(row["time_measured"])))
        try:
            by_time = sr.meet_latency(study, asked, latencies=table)
        except sr.BudgetError as error:
            yield {"network": clock.task.name, "way": BY_TIME, "budget": budget, "note": str(error)}
            continue
        latency = by_time.latency
        yield {
            **clock.row(by_time.model, BY_TIME, budget),
            "divergence": by_time.divergence,
            "time_asked": round(asked, 4),
            "time_predicted": None if latency is None else round(latency.predicted, 4),
            "rounds": None if latency is None else latency.rounds,
        }


def aimet_rows(clock: Clock, done: Collection[Done]) -> Iterator[Row]:
    """What AIMET makes of the network by its greedy selection, on 2,000 labelled pictures.

    Args:
        clock: of the network.
        done: rows that are there.

    Yields:
        The rows, as they are done.
    """
    name = clock.task.name
    for scheme in SCHEMES[name]:
        results, folder = compressed(name, scheme)
        for entry in results["ratios"]:
            ratio, way = entry["ratio"], f"AIMET {scheme}"
            if not entry["error"] and (way, ratio) not in done:
                yield clock.row(network_at(name, folder, ratio), way, ratio)


def torch_pruning_rows(clock: Clock, done: Collection[Done]) -> Iterator[Row]:
    """Torch-Pruning by magnitude, one ratio for all layers, batch norms estimated again.

    Args:
        clock: of the network.
        done: rows that are there.

    Yields:
        The rows, as they are done.
    """
    from benchmarks import torch_pruning_plans as plans  # noqa: PLC0415 (lives in an environment of its own)

    for ratio in RATIOS:
        if (PRUNED, ratio) in done:
            continue
        try:
            model = plans.pruned_to(clock.task.model(), "group magnitude", "uniform", clock.task.skip, ratio)
        except plans.PruningError as error:
            yield {"network": clock.task.name, "way": PRUNED, "budget": ratio, "note": str(error)}
            continue
        plans.estimate_norms(model, clock.task.batches(N_IMAGES))
        yield clock.row(model, PRUNED, ratio)


SOURCES: Mapping[str, Callable[[Clock, Collection[Done]], Iterator[Row]]] = {
    "slimrank": slimrank_rows,
    "aimet": aimet_rows,
    "torch-pruning": torch_pruning_rows,
}


def main() -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--only", choices=sorted(SOURCES), action="append", help="rows of some only")
    parser.add_argument("--again", action="store_true", help="do rows again that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = table_path("by-time")
    for name in args.network or TASKS:
        there = {(row["way"], float(row["budget"])) for row in read_table(path) if row["network"] == name}
        for source in args.only or SOURCES:
            with tempfile.TemporaryDirectory() as folder:
                clock = Clock.of(TASKS[name], Path(folder))
                for row in SOURCES[source](clock, set() if args.again else there):
                    whole = {**row, **context()}
                    print({key: value for key, value in whole.items() if value is not None}, flush=True)
                    merge_table(path, [whole], KEY)


if __name__ == "__main__":
    main()
