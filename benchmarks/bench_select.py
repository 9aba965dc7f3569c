# SPDX-License-Identifier: Apache-2.0
"""Which phase of the search for a plan pays: damage and time of plans with one phase switched off at a time.

On studies of the benchmark's networks (64 pictures each: choices on the same curves are compared), and on
random networks of the property tests, whose damages fall in jumps and whose groups depend on each other.
Choices are the same at every run; each is timed once, in CPU seconds, after one plan to warm up. One row for
each network, methods, budgets and phase, in ``benchmarks/results/select-cpu-torch<version>.csv``; a summary
of all is printed.
"""

import argparse
import contextlib
import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np

import slimrank as sr
from benchmarks.tables import FACTORS, Row, context, merge_table, table_path
from benchmarks.tasks.tasks import TASKS, Task
from slimrank.plan import PlanSource
from slimrank.records import Metric
from slimrank.select import select_plan
from slimrank.select.joint import _search
from slimrank.select.layers import _optimal

N_IMAGES = 64
RATIOS = (0.7, 0.5, 0.35, 0.25)
# Several budgets at once are looked at for one ratio only: they take the longest.
BOTH = 0.5
SEEDS = range(4)
NONE = "none"
TESTS = Path(__file__).resolve().parent.parent / "tests"

Budgets = Mapping[Metric, float]
Patches = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What plans are compared on.

    Attributes:
        network: name of the task, or of the kind of random network.
        methods: "joint", "layers" or "pruning".
        budgets: as they are told, e.g. "macs=0.5".
        plans: makes each plan: one for a task, one for each seed for random networks.
    """

    network: str
    methods: str
    budgets: str
    plans: Sequence[Callable[[], sr.Plan]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of the plans of a case.

    Attributes:
        damages: of each plan; None where none was found that keeps the budgets.
        gaps: certified, of each plan.
        seconds: of CPU, all plans together.
    """

    damages: Sequence[float | None]
    gaps: Sequence[float | None]
    seconds: float


def _not_moved(search: _search._Search, _price: object, state: object) -> None:
    # Marked as done: the local search waits for that.
    search._moved_from.add(state)  # type: ignore[arg-type]


def _best_only(search: _search._Search, _priced: object) -> list[object]:
    best = search._best()
    return [] if best is None else [best]


def _without_pruned(joint: object, _pruned: object = None) -> object:
    return _search.choose_joint(joint)  # type: ignore[arg-type]


_JOINT = "slimrank.select.joint._search._Search."
_LAYERS = "slimrank.select.layers._optimal."

# Phase that is off -> what stands in its place. The number is that of the list in ``select/joint/README.md``.
_EACH: Mapping[str, Patches] = {
    "start: the best without ranks": {"slimrank.select._select.choose_joint": _without_pruned},
    "1: two groups moved together at fixed prices": {
        "slimrank.select.joint._prices.Priced._move_pairs": lambda _priced, state, _held: state
    },
    "1: prices moved against each other (several budgets)": {f"{_JOINT}_cut_prices": lambda *_: None},
    "3: all groups at once": {f"{_JOINT}_move_all_groups": _not_moved},
    "4: blocks go together": {f"{_JOINT}_drop_blocks": lambda *_: None},
    "5: distant widths": {f"{_JOINT}_try_distant_widths": lambda *_: None},
    "6: local search": {f"{_JOINT}_search_locally": lambda *_: None},
    "7: exact ranks": {f"{_JOINT}_refine_ranks": _best_only},
    "8: every choice tried where few are left": {
        "slimrank.select.joint._search.enumerate_choices": lambda *_: None
    },
}
# Phases that find the same choices hide each other when one is off alone: so these are off together as well.
JOINT: Mapping[str, Patches] = {
    **_EACH,
    "3 to 6": {
        name: value
        for phase, patches in _EACH.items()
        if phase[0] in "3456"
        for name, value in patches.items()
    },
}
LAYERS: Mapping[str, Patches] = {
    "layers: what is left is spent": {f"{_LAYERS}top_up": lambda _table, choice: choice},
    "layers: prices moved against each other (several budgets)": {
        f"{_LAYERS}_relaxed": lambda _table, _feasible, price: (price, [])
    },
    "layers: linear programs rounded (several budgets)": {f"{_LAYERS}_roundings": lambda *_: []},
    "layers: exchanges of two layers": {f"{_LAYERS}_exchanged": lambda _table, choice, _priced: choice},
    "layers: lists of partial choices": {
        f"{_LAYERS}_search": lambda _table, _price, bound, _upper: _optimal._Search(choice=None, bound=bound)
    },
}


def _found(case: Case, patches: Patches) -> Found:
    damages: list[float | None] = []
    gaps: list[float | None] = []
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        start = time.process_time()
        for make in case.plans:
            try:
                plan = make()
            except sr.BudgetError:
                damages.append(None)
                gaps.append(None)
            else:
                damages.append(plan.damage)
                gaps.append(plan.gap)
        seconds = time.process_time() - start
    return Found(damages=damages, gaps=gaps, seconds=seconds)


def _ratios(all_on: Found, found: Found) -> list[float]:
    """Damage over that with all phases on, of each plan that both found and that has any damage."""
    return [
        after / before
        for before, after in zip(all_on.damages, found.damages, strict=True)
        if before and after is not None
    ]


def _phases(case: Case) -> Mapping[str, Patches]:
    """The phases that can matter in a case."""
    if case.methods == "layers":
        phases = LAYERS
    elif case.methods == "pruning":
        phases = {name: patches for name, patches in JOINT.items() if "ranks" not in name}
    else:
        phases = JOINT
    return {
        name: patches for name, patches in phases.items() if "several" not in name or "params" in case.budgets
    }


def _rows_of(case: Case) -> Iterator[Row]:
    case.plans[0]()
    all_on = _found(case, {})
    for phase, patches in {NONE: {}, **_phases(case)}.items():
        found = all_on if phase == NONE else _found(case, patches)
        ratios = _ratios(all_on, found)
        yield {
            "network": case.network,
            "methods": case.methods,
            "budgets": case.budgets,
            "phase_off": phase,
            "plans": len(case.plans),
            "not_found": sum(damage is None for damage in found.damages),
            "damage_over_all_on": round(float(np.exp(np.mean(np.log(ratios)))), 5) if ratios else None,
            "worst": round(max(ratios), 5) if ratios else None,
            "largest_gap": round(max((gap for gap in found.gaps if gap is not None), default=0.0), 5),
            "cpu_seconds": round(found.seconds, 3),
            "seconds_over_all_on": round(found.seconds / max(all_on.seconds, 1e-9), 3),
        }


def _budgets(ratio: Callable[[float], float]) -> Iterator[tuple[str, Budgets]]:
    for asked in RATIOS:
        yield f"macs={asked:g}", {"macs": ratio(asked)}
    yield f"macs={BOTH:g} params={BOTH:g}", {"macs": ratio(BOTH), "params": BOTH}


def _study(task: Task, stored: Path | None) -> sr.Study:
    """Of the task's network; from a directory of stored ones where it is there, else made and stored."""
    path = None if stored is None else stored / task.name
    if path is not None and path.exists():
        return sr.Study.load(path)
    study = sr.study(task.model(), task.batches(N_IMAGES), skip=task.skip, progress=False)
    if path is not None:
        study.save(path)
    return study


def _task_cases(task: Task, stored: Path | None) -> Iterator[Case]:
    study = _study(task, stored)
    for told, budgets in _budgets(lambda asked: task.budget(study, asked)):
        for methods, names in (("joint", None), ("layers", FACTORS)):
            plan = _planner(study, budgets, names)
            yield Case(network=task.name, methods=methods, budgets=told, plans=[plan])


def _random_cases() -> Iterator[Case]:
    """Random networks of the property tests: several of each kind are one case."""
    sys.path[:0] = [str(TESTS), str(TESTS / "property")]
    tests = importlib.import_module("test_select_joint")
    small = [tests.uneven(make(seed), seed) for make in tests.NETS.values() for seed in SEEDS]
    kinds: dict[str, tuple[str, list[PlanSource]]] = {
        "random, two streams": ("pruning", [tests.streams(seed) for seed in SEEDS]),
        "random, groups apart": ("pruning", [tests.apart(seed) for seed in SEEDS]),
        "random, small": ("joint", small),
        "random, towers": ("joint", [_tower(tests, seed) for seed in SEEDS]),
    }
    for told, budgets in _budgets(lambda asked: asked):
        for network, (methods, sources) in kinds.items():
            plans = [_planner(source, budgets, None) for source in sources]
            yield Case(network=network, methods=methods, budgets=told, plans=plans)


def _tower(tests: ModuleType, seed: int) -> PlanSource:
    """A stream of channels with eight residual blocks, each of which may be dropped."""
    net = tests.Builder(seed, few=12)
    net.layer("stem", [("", 3)], [("s", 32)], 8)
    names = [f"block{at}" for at in range(8)]
    for name in names:
        group = (f"{name}.g", int(net.rng.integers(16, 49)))
        net.layer(f"{name}.up", [("s", 32)], [group], 8)
        net.layer(f"{name}.down", [group], [("s", 32)], 8)
    net.layer("last", [("s", 32)], [("", 10)], 1)
    source: PlanSource = tests.uneven(net.source(blocks=names), seed)
    return source


def _planner(source: PlanSource, budgets: Budgets, methods: Sequence[str] | None) -> Callable[[], sr.Plan]:
    return lambda: select_plan(source, budgets=budgets, methods=methods)


def _print_summary(rows: Sequence[Row]) -> None:
    """Of each phase, over all cases: how much damage rises without it, mean and largest, and the time."""
    by_phase: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_phase[str(row["phase_off"])].append(row)
    print(
        f"{'phase off':60} {'cases':>5} {'mean':>9} {'largest':>9} {'worst plan':>10} {'lost':>5} {'time':>6}"
    )
    for phase, own in by_phase.items():
        means = [float(row["damage_over_all_on"]) for row in own if row["damage_over_all_on"] is not None]
        worst = max((float(row["worst"]) for row in own if row["worst"] is not None), default=float("nan"))
        lost = sum(int(row["not_found"] or 0) for row in own)
        time_over = np.mean([float(row["seconds_over_all_on"] or 0) for row in own])
        print(
            f"{phase:60} {len(own):5} {np.exp(np.mean(np.log(means))):9.4f} {max(means):9.4f} {worst:10.4f} "
            f"{lost:5} {time_over:6.2f}"
        )


def main() -> None:
    """Runs the rows of the networks asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Plans with one phase of the search off.")
    parser.add_argument("--network", choices=[*sorted(TASKS), "random"], action="append")
    parser.add_argument("--studies", type=Path, help="directory of studies to read, or to keep those made")
    args = parser.parse_args()
    # Once: it asks git, which takes longer than some plans.
    facts, done = context(), []
    for name in args.network or [*sorted(TASKS), "random"]:
        for case in _random_cases() if name == "random" else _task_cases(TASKS[name], args.studies):
            for row in _rows_of(case):
                done.append({**row, **facts})
                print(row, flush=True)
    merge_table(table_path("select"), done, ("network", "methods", "budgets", "phase_off"))
    _print_summary(done)


if __name__ == "__main__":
    main()
