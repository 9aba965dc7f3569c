# SPDX-License-Identifier: Apache-2.0
"""Channel pruning and joint plans, no labels, no training, beside AIMET and Torch-Pruning, on four networks.

The pictures, the networks and the count of MACs are those of ``bench_accuracy``. Torch-Pruning's rows are
made in an environment of their own, with ``--only torch-pruning``. One row per network, budget and way, in
``benchmarks/results/pruning-cpu-torch<version>.csv``.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial

import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.reference import LABELLED, network_at, pruned, spent
from benchmarks.tables import FACTORS, Row, Value, context, merge_table, table_path
from benchmarks.tasks.tasks import TASKS, Task, accuracy_columns
from slimrank.capture import count_by_module, count_cost
from slimrank.forward import as_batch
from slimrank.records import ChannelOrder, Method

RATIOS = (0.7, 0.5, 0.35)
N_IMAGES = 512
KEY = ("network", "ratio_asked", "way")
PRUNING: Sequence[Method] = ("channel_pruning",)
BASELINES: Sequence[ChannelOrder] = ("magnitude", "random")
SAMPLE = as_batch(torch.zeros(1, 1, 32, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What a network is held against.

    Attributes:
        task: the network's.
        before: (S,) bool, right answers of the original.
        whole: counted MACs of the original.
        open_macs: of these, the MACs that a ratio is about: those of the layers that are not skipped.
        params: of the original.
    """

    task: Task
    before: Tensor
    whole: int
    open_macs: int
    params: int

    def budget(self, ratio: float) -> float:
        """Keep ratio of all MACs where a ratio of those it is about is asked for."""
        return 1 - (1 - ratio) * self.open_macs / self.whole

    def row(self, model: nn.Module, ratio: float, way: str) -> dict[str, Value]:
        """Counts and accuracy of what became of the network.

        Args:
            model: in eval mode.
            ratio: as asked for.
            way: how it was made.

        Returns:
            Columns of the table.
        """
        cost = count_cost(model, SAMPLE)
        return {
            "network": self.task.name,
            "ratio_asked": ratio,
            "way": way,
            "macs_counted": round(1 - (self.whole - cost.macs) / self.open_macs, 4),
            "all_macs_counted": round(cost.macs / self.whole, 4),
            "params_counted": round(cost.params / self.params, 4),
            **accuracy_columns(self.before, self.task.right(model)),
        }


def judge_of(task: Task) -> Judge:
    """Reads the original of a task.

    Args:
        task: the network.

    Returns:
        What its compressed forms are held against.
    """
    model = task.model()
    cost, by_module, _ = count_by_module(model, SAMPLE)
    counted = (
        macs
        for name, macs in by_module.items()
        if isinstance(model.get_submodule(name), nn.Conv2d | nn.Linear)
        and not any(fnmatch(name, pattern) for pattern in task.skip)
    )
    return Judge(
        task=task,
        before=task.right(model),
        whole=cost.macs,
        open_macs=sum(counted) if task.skip else cost.macs,
        params=cost.params,
    )


def rows_of(judge: Judge, asked: Sequence[str] | None, ratios: Sequence[float]) -> Iterator[Row]:
    """Every row of slimrank on one network.

    Args:
        judge: of the network.
        asked: ways to build; None for all.
        ratios: of the MACs.

    Yields:
        The rows, as they are done.
    """
    task = judge.task
    model, batches = task.model(), task.batches(N_IMAGES)
    start = time.perf_counter()
    study = sr.study(model, batches, skip=task.skip, progress=False)
    seconds = time.perf_counter() - start

    @cache
    def ordered(order: ChannelOrder) -> sr.Study:
        return sr.study(model, batches, skip=task.skip, progress=False, methods=PRUNING, channel_order=order)

    def in_order(macs: float, order: ChannelOrder) -> sr.Result:
        return ordered(order).apply(ordered(order).plan(macs=macs))

    def applied(macs: float, methods: Sequence[Method] | None = None, sequential: bool = True) -> sr.Result:
        return study.apply(study.plan(macs=macs, methods=methods), sequential=sequential)

    ways: dict[str, Callable[[float], sr.Result]] = {
        "pruning only": lambda macs: applied(macs, PRUNING),
        "factors only": lambda macs: applied(macs, FACTORS),
        "joint": applied,
        "pruning only, independent fits": lambda macs: applied(macs, PRUNING, sequential=False),
        **{order_way(order): partial(in_order, order=order) for order in BASELINES},
        "compress": lambda macs: sr.compress(model, batches, skip=task.skip, macs=macs, progress=False),
    }
    for way, build in ways.items():
        for ratio in ratios if asked is None or way in asked else ():
            start = time.perf_counter()
            try:
                result = build(judge.budget(ratio))
            except sr.SlimrankError as error:
                yield {"network": task.name, "ratio_asked": ratio, "way": way, "note": str(error)}
                continue
            elapsed = time.perf_counter() - start + (0 if way == "compress" else seconds)
            yield {
                **judge.row(result.model, ratio, way),
                "divergence": None if result.divergence is None else round(result.divergence, 5),
                "damage_predicted": None if result.damage is None else round(result.damage, 5),
                "unlabelled_images": N_IMAGES,
                "labelled_images": 0,
                "evaluations": 0,
                "seconds": round(elapsed, 1),
                "groups_slimmed": len(result.plan.groups),
                "blocks_dropped": len(result.plan.dropped),
                "layers_factored": len(result.plan.settings),
                "note": _returned(result) if way == "compress" else None,
            }


def order_way(order: ChannelOrder) -> str:
    """Pruning only, channels in another order."""
    return f"pruning only, {order} order"


def _returned(result: sr.Result) -> str | None:
    """Which of the plans that competed ``compress`` returned."""
    marks = (note.text for note in result.notes if note.text.endswith("(returned)"))
    return next(marks, None)


def aimet_rows(judge: Judge) -> Iterator[Row]:
    """AIMET's channel pruning: greedy selection on 2,000 labelled pictures.

    Args:
        judge: of the network.

    Yields:
        The rows, as they are done.
    """
    name, way = judge.task.name, "AIMET"
    results, folder = pruned(name)
    for entry in results["ratios"]:
        if entry["error"]:
            note = entry["error"].strip().splitlines()[-1]
            yield {"network": name, "ratio_asked": entry["ratio"], "way": way, "note": note}
            continue
        seconds, evaluations = spent(results, entry["ratio"])
        yield {
            **judge.row(network_at(name, folder, entry["ratio"]), entry["ratio"], way),
            "unlabelled_images": 0,
            "labelled_images": LABELLED,
            "evaluations": evaluations,
            "seconds": round(seconds, 1),
        }


def torch_pruning_rows(judge: Judge) -> Iterator[Row]:
    """Torch-Pruning at the same counted MACs, batch norms as they are and estimated again.

    Args:
        judge: of the network.

    Yields:
        The rows, as they are done.
    """
    from benchmarks import torch_pruning_plans as plans  # noqa: PLC0415 (lives in an environment of its own)

    batches = judge.task.batches(N_IMAGES)
    for importance in plans.IMPORTANCES:
        for scope in plans.SCOPES:
            for ratio in RATIOS:
                way = f"Torch-Pruning {importance}, {scope}"
                row: dict[str, Value] = {"network": judge.task.name, "ratio_asked": ratio, "way": way}
                start = time.perf_counter()
                try:
                    model = plans.pruned_to(
                        judge.task.model(), importance, scope, judge.task.skip, judge.budget(ratio)
                    )
                except plans.PruningError as error:
                    yield {**row, "note": str(error)}
                    continue
                given = {
                    "unlabelled_images": 0,
                    "labelled_images": plans.LABELLED[importance],
                    "evaluations": 0,
                    "seconds": round(time.perf_counter() - start, 1),
                }
                yield {**judge.row(model, ratio, way), **given}
                if plans.estimate_norms(model, batches):
                    yield {
                        **judge.row(model, ratio, f"{way}, norms again"),
                        **given,
                        "unlabelled_images": N_IMAGES,
                    }


SOURCES: Mapping[str, Callable[[Judge], Iterator[Row]]] = {
    "slimrank": partial(rows_of, asked=None, ratios=RATIOS),
    "aimet": aimet_rows,
    "torch-pruning": torch_pruning_rows,
}


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Channel pruning and joint plans.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--only", choices=sorted(SOURCES), action="append", help="rows of some only")
    parser.add_argument("--way", action="append", help="of slimrank's rows, some ways to build only")
    parser.add_argument("--ratio", type=float, action="append", help="of slimrank's rows, some ratios only")
    args = parser.parse_args()
    sources = {
        **SOURCES,
        "slimrank": partial(rows_of, asked=args.way, ratios=args.ratio or RATIOS),
    }
    for name in args.network or sorted(TASKS):
        judge = judge_of(TASKS[name])
        for source in args.only or SOURCES:
            for row in sources[source](judge):
                whole = {**row, **context()}
                print({key: value for key, value in whole.items() if value is not None}, flush=True)
                merge_table(table_path("pruning"), [whole], KEY)  # at once: a run takes long


if __name__ == "__main__":
    main()
