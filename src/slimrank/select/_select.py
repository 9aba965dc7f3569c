# SPDX-License-Identifier: Apache-2.0
"""Budgets and curves to a plan.

The simple road, over layers alone, is ``select/layers``; ``select/joint`` only where groups or blocks can go.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Literal, assert_never

import numpy as np

from slimrank._errors import BudgetError, UnknownNameError
from slimrank._names import nearest
from slimrank.plan import (
    NOTHING_FIXED,
    Fixed,
    MultipleOf,
    Plan,
    PlanSource,
    Rounding,
    Structure,
    block_damage_at,
    check_multiple_of,
    damage_at,
    group_damage_at,
    names_of,
    plan_on,
    rounding_steps,
    with_multiples,
)
from slimrank.records import (
    LATENCY,
    METRICS,
    Cost,
    Limited,
    Metric,
    NetworkTimes,
    PeakPoint,
    Setting,
    replaces_groups,
)
from slimrank.select._budget import (
    Budget,
    bytes_limit,
    check_below,
    check_budgets,
    check_methods,
    check_metric,
    check_skip,
    cost_limit,
    limit_of,
    time_limit,
)
from slimrank.select._option_costs import Costing, exact_times
from slimrank.select._ordinary import tied_as_fixed
from slimrank.select.joint._floor import check_joint_reachable, lowest_costs
from slimrank.select.joint._make_table import joint_of, offered_groups
from slimrank.select.joint._ranks import RankTables
from slimrank.select.joint._search import choose_joint
from slimrank.select.joint._simple_rules import choose_greedy_joint, choose_uniform_widths
from slimrank.select.joint._table import Joint, State, whole_cost
from slimrank.select.layers._floor import check_reachable, floors, lowest_cost
from slimrank.select.layers._greedy import choose_greedy
from slimrank.select.layers._optimal import choose_optimal
from slimrank.select.layers._table import Ints, Table, is_feasible, settings_of, table_of, total_damage
from slimrank.select.layers._uniform import choose_uniform

Select = Literal["optimal", "greedy", "uniform"]
_SELECTS: tuple[Select, ...] = ("optimal", "greedy", "uniform")
# The multiples of "auto" are used where what a budget leaves above the smallest model is at least so many
# times what they add to that model. Close to the smallest model that they allow, hardly a choice is left: on
# the networks of the benchmark they cost up to 14 times the damage there, and from twice the distance on at
# most 1.4 times, mostly 1.1.
_ROOM = 2
_NO_POINTS: Mapping[PeakPoint, Budget] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What a plan may use, with multiples that are settled.

    Attributes:
        source: of the curves.
        limits: metric -> largest cost allowed.
        costing: of these metrics.
        methods: that may be used.
        skipped: layers, groups and blocks to leave alone.
        rounding: what ranks and widths are multiples of.
        fixed: what is not chosen any more.
        uniform_widths: groups of one stack keep the same number of units.
        joint: the options of layers, groups and blocks; None where layers alone are open and nothing is
            fixed.
    """

    source: PlanSource
    limits: Mapping[Limited, float]
    costing: Costing
    methods: tuple[str, ...]
    skipped: frozenset[str]
    rounding: Rounding
    fixed: Fixed
    uniform_widths: bool
    joint: Joint | None

    def table(self) -> Table:
        """The options of the layers alone."""
        return table_of(
            self.source,
            self.limits,
            methods=self.methods,
            skipped=self.skipped,
            multiples=self.rounding.ranks,
            times=self.costing.times,
        )

    def pruned(self) -> Joint:
        """The options of groups and blocks alone."""
        return joint_of(
            self.source,
            self.limits,
            methods=[method for method in self.methods if replaces_groups(method)],
            skipped=self.skipped,
            rounding=self.rounding,
            times=self.costing.times,
            fixed=self.fixed,
            uniform_widths=self.uniform_widths,
        )


def select_plan(
    source: PlanSource,
    *,
    budgets: Mapping[Metric, float | str],
    select: Select = "optimal",
    multiple_of: MultipleOf = 1,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    of: Cost | None = None,
    fixed: Fixed = NOTHING_FIXED,
) -> Plan:
    """The plan that keeps every budget, with the least predicted damage or by one of two simpler rules.

    Args:
        source: a study, or whatever has structure, costs and curves.
        budgets: metric -> keep ratio in (0, 1]: cost after / cost before, of the whole model; or a text such
            as "50%", a whole number above 1 for so many MACs, params or bytes, or "2MB". None is ever
            exceeded.
        select: "optimal" for the least damage, with a certified gap; "greedy" for AIMET's threshold on the
            damage of each layer and each group; "uniform" for one keep ratio in all layers, in the first
            metric of ``budgets``, or, with channel pruning alone, for one share of units in all groups. Only
            "optimal" drops blocks.
        multiple_of: ranks, and the outputs that a group leaves its first producer, are multiples of this: a
            number or "auto", or name glob -> one of these; the first match wins, and what none matches takes
            any. "auto" lowers its numbers where they leave no room below the budget.
        methods: that may be used; None for all that the source measured. Groups and blocks belong to
            "channel_pruning".
        skip: globs on the names of layers, groups and blocks to leave alone. A group stays whole where one
            of its producers is skipped, a block where anything in it is.
        of: cost that the keep ratios are shares of; None for the cost of the source's model.
        fixed: what is not chosen any more, from ``fixed_of``; it wins over ``methods``, ``multiple_of`` and
            ``skip``. Blocks that hold something fixed stay, and so do blocks that together hold all of a
            group whose width is fixed.

    Returns:
        The plan. Its ``gap`` is None unless it is "optimal"; then no plan that the source offers, with the
        multiples that were used, has less than (1 - gap) times its damage. Over layers alone the gap is
        mostly 0. Over groups too it also counts how far the bound is from what can be reached, so a plan with
        a gap may still be the best there is.

    Raises:
        BudgetError: no budget, one that is neither a keep ratio nor a number, that is above what the model
            costs, or that cannot be met.
        UnknownNameError: a metric, method or selector that does not exist, or a glob that matches no layer.
        OptionError: a wrong multiple_of, or one text where several belong.
        NonFiniteError: a curve holds nan or inf.
        LatencyError: a fixed pair that there are no times of.
    """
    plan, _ = select_plan_and_rounding(
        lambda _: source,
        source.structure,
        budgets=budgets,
        select=select,
        multiple_of=multiple_of,
        methods=methods,
        skip=skip,
        of=of,
        fixed=fixed,
    )
    return plan


def select_plan_and_rounding(
    source_with: Callable[[Rounding], PlanSource],
    structure: Structure,
    *,
    budgets: Mapping[Metric, float | str],
    select: Select = "optimal",
    multiple_of: MultipleOf,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    of: Cost | None = None,
    latency: float | None = None,
    times: NetworkTimes | None = None,
    points: Mapping[PeakPoint, Budget] = _NO_POINTS,
    fixed: Fixed = NOTHING_FIXED,
    uniform_widths: bool = False,
) -> tuple[Plan, Rounding]:
    """As ``select_plan``, where the source depends on what ranks and widths are multiples of.

    Args:
        source_with: makes the source.
        structure: of the model.
        budgets: as in ``select_plan``, and so are all others.
        select: see there.
        multiple_of: see there.
        methods: see there.
        skip: see there.
        of: see there.
        latency: keep ratio of the time of the original in float32; None for no such budget. ``budgets`` may
            then be empty.
        times: that a latency is counted by. Ranks and widths are then multiples of their step too.
        points: places of a forward pass, and what their bytes may be: shares are of the peak. ``budgets`` may
            then be empty.
        fixed: as in ``select_plan``.
        uniform_widths: groups of one stack of layers keep the same number of units, and no block is dropped.

    Returns:
        The plan, and what its ranks and widths are multiples of.

    Raises:
        SlimrankError: as in ``select_plan``.
    """
    if select not in _SELECTS:
        raise UnknownNameError(f"select: {select!r} does not exist; {nearest(str(select), _SELECTS)}")
    counted = {} if (latency is not None or points) and not budgets else check_budgets(budgets)
    check_multiple_of(multiple_of, names_of(structure))
    step = None if latency is None or times is None else times.step
    *coarse, last = rounding_steps(multiple_of, structure, step=step)
    rule = coarse[0] if coarse else last
    now = source_with(last).before
    for metric, budget in counted.items():
        check_below(budget, metric, now.metric(metric))
    of = of or now
    limits: dict[Limited, float] = {
        metric: limit_of(budget, metric, of) for metric, budget in counted.items()
    }
    asked: dict[Limited, Budget] = {metric: budget for metric, budget in counted.items()}
    if latency is not None and times is not None:
        # As times are counted from here on: the network as it stands is then just within 1.
        times = exact_times(times)
        limits[LATENCY], asked[LATENCY] = time_limit(times, latency), Budget(ratio=latency)
    for point, budget in points.items():
        limits[point], asked[point] = bytes_limit(budget, point.peak), budget
    costing = Costing(limits, times)

    def problem_of(rounding: Rounding) -> _Problem:
        source = source_with(rounding)
        return _problem(
            source,
            limits,
            costing,
            rounding,
            select=select,
            methods=methods,
            skip=skip,
            uniform_widths=uniform_widths,
            fixed=fixed,
        )

    def planned(problem: _Problem) -> tuple[Plan, Rounding]:
        plan = _selected(problem, select, asked, of)
        return with_multiples(plan, multiple_of, problem.rounding, rule), problem.rounding

    finest = cache(lambda: problem_of(last))
    for rounding in coarse:
        problem = problem_of(rounding)
        lowest = _lowest_costs(problem)
        # No model costs less than nothing: far above the multiples it does not matter what lower ones reach.
        if _leaves_room(limits.values(), lowest, [0] * len(lowest)) or _leaves_room(
            limits.values(), lowest, _lowest_costs(finest())
        ):
            try:
                return planned(problem)
            except BudgetError:
                # Each budget alone is within reach, all together are not; with lower numbers they may be.
                continue
    return planned(finest())


def _selected(problem: _Problem, select: Select, asked: Mapping[Limited, Budget], of: Cost) -> Plan:
    """The plan with multiples that are settled."""
    source = problem.source
    if problem.joint is not None:
        chosen, floor = _joint(problem, problem.joint, select, asked, of)
    else:
        chosen, floor = _layers(problem, select, asked, of)
    if chosen is None:
        wanted = ", ".join(dict.fromkeys(budget.text(metric) for metric, budget in asked.items()))
        raise BudgetError(
            f"budget: no plan was found that keeps {wanted} together, though each alone can be met; "
            f"{floor} (each alone); raise one of them"
        )
    original = source.previous.before if source.previous else source.before
    counted = {metric: asked[metric] for metric in METRICS if metric in asked}
    return plan_on(
        source,
        chosen.settings,
        groups=chosen.groups,
        dropped=chosen.dropped,
        select=select,
        budgets={
            metric: _ratio_of_original(budget, of.metric(metric), original.metric(metric))
            for metric, budget in counted.items()
        },
        asked={metric: budget.words for metric, budget in counted.items() if budget.words},
        gap=chosen.gap,
    )


def _ratio_of_original(budget: Budget, of: int, original: int) -> float:
    """What a budget leaves of the original model."""
    if budget.number is not None or of == original:
        return budget.share(original)
    return budget.share(of) * of / max(original, 1)


def reachable_floor(
    source: PlanSource,
    metric: Limited,
    *,
    multiple_of: MultipleOf = 1,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    times: NetworkTimes | None = None,
    fixed: Fixed = NOTHING_FIXED,
    uniform_widths: bool = False,
) -> float:
    """The smallest keep ratio of the whole model that any plan reaches, whatever the damage.

    Args:
        source: a study, or whatever has structure, costs and curves.
        metric: "macs", "params" or "bytes", or "latency" where there are times, or a place of a forward pass.
        multiple_of: as in ``select_plan``.
        methods: as in ``select_plan``.
        skip: as in ``select_plan``.
        times: that a latency is counted by.
        fixed: as in ``select_plan``.
        uniform_widths: as in ``select_plan``.

    Returns:
        The keep ratio, 0 to 1; as a budget it can be met. Of a place, its bytes as a share of the peak.

    Raises:
        UnknownNameError: a metric or method that does not exist, or a glob that matches no layer.
        OptionError: a wrong multiple_of, or one text where several belong.
        NonFiniteError: a curve holds nan or inf.
    """
    times = exact_times(times) if metric == LATENCY and times is not None else None
    counted = None if times is not None or isinstance(metric, PeakPoint) else check_metric(metric)
    costing = Costing((metric,), times)
    whole = float(costing.shared(source.before)[0])
    limits: dict[Limited, float] = {metric: whole}
    check_multiple_of(multiple_of, names_of(source.structure))
    # The last step: lower numbers reach lower budgets.
    step = None if times is None else times.step
    rounding = rounding_steps(multiple_of, source.structure, step=step)[-1]
    problem = _problem(
        source,
        limits,
        costing,
        rounding,
        select="optimal",
        methods=methods,
        skip=skip,
        fixed=fixed,
        uniform_widths=uniform_widths,
    )
    lowest = _lowest_costs(problem)[0]
    ratio = lowest / max(whole, 1)
    if isinstance(metric, PeakPoint):
        return ratio

    def limit(ratio: float) -> float:
        if times is not None:
            return time_limit(times, ratio)
        return 0.0 if counted is None else cost_limit(source.before, counted, ratio)

    # Division may round down; the next float up then stands for the same cost as a budget.
    while limit(ratio) < lowest:
        ratio = float(np.nextafter(ratio, 2.0))
    return ratio


def _lowest_costs(problem: _Problem) -> list[float]:
    """A small cost of the whole model, in each metric alone, whatever the damage."""
    if problem.joint is not None:
        return lowest_costs(problem.joint, problem.limits)
    table = problem.table()
    wholes = problem.costing.whole_model(problem.source)
    return [lowest_cost(table, whole, index) for index, whole in enumerate(wholes.tolist())]


def _leaves_room(limits: Iterable[float], lowest: Iterable[float], floor: Iterable[float]) -> bool:
    """Whether multiples can spend a budget well.

    Args:
        limits: largest costs allowed.
        lowest: smallest costs with the multiples.
        floor: smallest costs without any.

    Returns:
        Whether each limit is far enough from the smallest cost with the multiples.
    """
    return all(
        limit - least >= _ROOM * (low - least)
        for limit, low, least in zip(limits, lowest, floor, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What a plan holds."""

    settings: Mapping[str, Setting]
    gap: float | None
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def _problem(
    source: PlanSource,
    limits: Mapping[Limited, float],
    costing: Costing,
    rounding: Rounding,
    *,
    select: Select,
    methods: Sequence[str] | None,
    skip: Sequence[str],
    fixed: Fixed,
    uniform_widths: bool = False,
) -> _Problem:
    names = names_of(source.structure)
    skipped = check_skip(skip, dict.fromkeys((*names, *source.structure.channels.blocks)))
    allowed = check_methods(methods, source.methods)
    layers_alone = tuple(method for method in allowed if not replaces_groups(method))
    if select == "uniform" and layers_alone:
        # One keep ratio for all: that of a group is no ratio of a layer.
        allowed = layers_alone
    takes_groups = any(replaces_groups(method) for method in allowed)
    if fixed and uniform_widths:
        channels = source.structure.channels
        offered = offered_groups(channels, skipped)
        fixed = tied_as_fixed(fixed, channels, source.group_curves, offered=offered)
    has_groups = takes_groups and bool(source.group_curves or source.block_damages)
    return _Problem(
        source=source,
        limits=limits,
        costing=costing,
        methods=allowed,
        skipped=skipped,
        rounding=rounding,
        fixed=fixed,
        uniform_widths=uniform_widths,
        joint=joint_of(
            source,
            limits,
            methods=allowed,
            skipped=skipped,
            rounding=rounding,
            times=costing.times,
            fixed=fixed,
            uniform_widths=uniform_widths,
        )
        if has_groups or fixed
        else None,
    )


def _layers(
    problem: _Problem, select: Select, asked: Mapping[Limited, Budget], of: Cost
) -> tuple[_Chosen | None, str]:
    """The choice over layers alone, and the smallest reachable ratios for people."""
    table, costing = problem.table(), problem.costing
    shared = costing.shared(of)
    check_reachable(table, problem.source, costing, asked, skipped=problem.skipped, of=shared)
    choice, gap = _of_layers(table, select)
    chosen = None if choice is None else _Chosen(settings=settings_of(table, choice), gap=gap)
    return chosen, floors(table, problem.source, costing, shared, asked)


def _joint(
    problem: _Problem, joint: Joint, select: Select, asked: Mapping[Limited, Budget], of: Cost
) -> tuple[_Chosen | None, str]:
    """The choice over layers, groups and blocks, and the smallest reachable ratios for people."""
    source, limits, fixed = problem.source, problem.limits, problem.fixed
    if select != "optimal":
        joint = replace(joint, blocks=())
    has_widths = bool(joint.widths or joint.blocks)
    if not has_widths and not fixed:
        return _layers(problem, select, asked, of)
    costing = problem.costing
    floor = check_joint_reachable(
        joint,
        source,
        costing,
        asked,
        limits,
        skipped=problem.skipped,
        of=costing.shared(of),
        fixed=fixed,
    )
    whole = State(widths=joint.whole)
    fits = whole_cost(joint, whole) <= joint.room
    if not fixed:
        fits = costing.whole_model(source) <= np.array(list(limits.values()))
    if fits.all():
        return _with_fixed(fixed, gap=0.0 if select == "optimal" else None), floor
    if not has_widths:
        return _beside_fixed(problem, joint, select), floor
    if select == "optimal":
        has_pairs = not all(replaces_groups(method) for method in problem.methods)
        answer, bound = choose_joint(joint, problem.pruned() if has_pairs else None)
    elif select == "greedy":
        answer, bound = choose_greedy_joint(joint), 0.0
    elif select == "uniform":
        answer, bound = choose_uniform_widths(joint), 0.0
    else:
        assert_never(select)
    if answer is None:
        return None, floor
    gap = max(0.0, min(1.0, 1.0 - bound / answer.damage)) if answer.damage > 0 else 0.0
    curves = {curve.group: curve for curve in source.group_curves}
    kept = {
        name: int(group.kept[width])
        for group, width in zip(joint.widths, answer.state.widths, strict=True)
        for name in group.needs
    }
    return (
        _with_fixed(
            fixed,
            settings=settings_of(answer.table, answer.choice),
            gap=_gap_beside(problem, answer.damage, gap if select == "optimal" else None),
            groups={
                name: curves[name].channels_kept(count)
                for name, count in kept.items()
                if count < len(curves[name].order)
            },
            dropped=tuple(joint.blocks[block].name for block in sorted(answer.state.dropped)),
        ),
        floor,
    )


def _beside_fixed(problem: _Problem, joint: Joint, select: Select) -> _Chosen | None:
    """The choice over layers alone where something is fixed."""
    table = RankTables(joint).table_for(State(widths=joint.whole))
    choice, gap = _of_layers(table, select)
    if choice is None:
        return None
    return _with_fixed(
        problem.fixed,
        settings=settings_of(table, choice),
        gap=_gap_beside(problem, total_damage(table, choice), gap),
    )


def _with_fixed(
    fixed: Fixed,
    *,
    gap: float | None,
    settings: Mapping[str, Setting] | None = None,
    groups: Mapping[str, tuple[int, ...]] | None = None,
    dropped: tuple[str, ...] = (),
) -> _Chosen:
    """What was chosen, and what is fixed beside it."""
    return _Chosen(
        settings={**(settings or {}), **fixed.settings},
        gap=gap,
        groups={**(groups or {}), **fixed.groups},
        dropped=(*dropped, *fixed.dropped),
    )


def _gap_beside(problem: _Problem, damage: float, gap: float | None) -> float | None:
    """The gap of a choice as a share of all damage: no choice saves any of what is fixed.

    What the source does not tell counts as no damage, so that the gap is rather too large.
    """
    source, fixed = problem.source, problem.fixed
    if gap is None or not fixed:
        return gap
    found = [damage_at(source.curves, name, setting) for name, setting in fixed.settings.items()]
    found += [group_damage_at(source.group_curves, name, kept) for name, kept in fixed.groups.items()]
    found += [block_damage_at(source.block_damages, name) for name in fixed.dropped]
    held = sum(max(each, 0.0) for each in found if each is not None)
    return gap * damage / (damage + held) if damage + held > 0 else gap


def _of_layers(table: Table, select: Select) -> tuple[Ints | None, float | None]:
    """The choice and its certified gap, each None where there is none."""
    if is_feasible(table, table.untouched):
        return table.untouched, 0.0 if select == "optimal" else None
    if select == "optimal":
        return choose_optimal(table) or (None, None)
    if select == "greedy":
        return choose_greedy(table), None
    if select == "uniform":
        return choose_uniform(table), None
    assert_never(select)
