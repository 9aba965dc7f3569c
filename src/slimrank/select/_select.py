# SPDX-License-Identifier: Apache-2.0
"""Budgets and curves to a plan."""

from collections.abc import Mapping, Sequence
from typing import Literal, assert_never

import numpy as np

from slimrank._errors import BudgetError, UnknownNameError
from slimrank.plan import Plan, PlanSource, check_multiple_of, nearest, plan_on
from slimrank.records import Cost, Metric
from slimrank.select._budget import check_budgets, check_methods, check_metric, check_skip, cost_limit
from slimrank.select._floor import check_reachable, floors, lowest_cost
from slimrank.select._greedy import choose_greedy
from slimrank.select._optimal import choose_optimal
from slimrank.select._table import (
    Ints,
    Table,
    is_feasible,
    settings_of,
    table_of,
)
from slimrank.select._uniform import choose_uniform

Select = Literal["optimal", "greedy", "uniform"]
_SELECTS: tuple[Select, ...] = ("optimal", "greedy", "uniform")


def select_plan(
    source: PlanSource,
    *,
    budgets: Mapping[Metric, float],
    select: Select = "optimal",
    multiple_of: int | Mapping[str, int] = 1,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    of: Cost | None = None,
) -> Plan:
    """The plan that keeps every budget, with the least predicted damage or by one of two simpler rules.

    Args:
        source: a study, or whatever has structure, costs and curves.
        budgets: metric -> keep ratio in (0, 1]: cost after / cost before, of the whole model. None is ever
            exceeded.
        select: "optimal" for the least damage, with a certified gap; "greedy" for AIMET's threshold on each
            layer's damage; "uniform" for one keep ratio in all layers, in the first metric of ``budgets``.
        multiple_of: ranks are multiples of this: a number, or layer-name glob -> number; the first match
            wins, and a layer that none matches takes any rank.
        methods: that may be used; None for all that the source measured.
        skip: globs on the names of layers to leave alone.
        of: cost that the keep ratios are shares of; None for the cost of the source's model.

    Returns:
        The plan. Its ``gap`` is None unless it is "optimal".

    Raises:
        BudgetError: no budget, one that is no keep ratio, or one that cannot be met.
        UnknownNameError: a metric, method or selector that does not exist, or a glob that matches no layer.
        OptionError: a wrong multiple_of, or one text where several belong.
        NonFiniteError: a curve holds nan or inf.
    """
    if select not in _SELECTS:
        raise UnknownNameError(f"select: {select!r} does not exist; {nearest(str(select), _SELECTS)}")
    ratios = check_budgets(budgets)
    of = of or source.before
    limits = {metric: cost_limit(of, metric, ratio) for metric, ratio in ratios.items()}
    table, skipped = _prepared(source, limits, multiple_of=multiple_of, methods=methods, skip=skip)
    check_reachable(table, source, ratios, skipped=skipped, of=of)
    choice, gap = _chosen(table, select)
    if choice is None:
        asked = ", ".join(f"{metric}={ratio:g}" for metric, ratio in ratios.items())
        raise BudgetError(
            f"budget: no plan was found that keeps {asked} together, though each alone can be met; "
            f"{floors(table, source, ratios, of)} (each alone); raise one of them"
        )
    original = source.previous.before if source.previous else source.before
    return plan_on(
        source,
        settings_of(table, choice),
        select=select,
        multiple_of=multiple_of,
        budgets={
            metric: ratio * of.metric(metric) / max(original.metric(metric), 1) if of != original else ratio
            for metric, ratio in ratios.items()
        },
        gap=gap,
    )


def reachable_floor(
    source: PlanSource,
    metric: Metric,
    *,
    multiple_of: int | Mapping[str, int] = 1,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> float:
    """The smallest keep ratio of the whole model that any plan reaches, whatever the damage.

    Args:
        source: a study, or whatever has structure, costs and curves.
        metric: "macs", "params" or "bytes".
        multiple_of: as in ``select_plan``.
        methods: as in ``select_plan``.
        skip: as in ``select_plan``.

    Returns:
        The keep ratio, 0 to 1; as a budget it can be met.

    Raises:
        UnknownNameError: a metric or method that does not exist, or a glob that matches no layer.
        OptionError: a wrong multiple_of, or one text where several belong.
        NonFiniteError: a curve holds nan or inf.
    """
    metric = check_metric(metric)
    limits = {metric: source.before.metric(metric)}
    table, _ = _prepared(source, limits, multiple_of=multiple_of, methods=methods, skip=skip)
    lowest = lowest_cost(table, source, metric, 0)
    whole = max(source.before.metric(metric), 1)
    ratio = lowest / whole
    # Division may round down; the next float up then stands for the same cost as a budget.
    while cost_limit(source.before, metric, ratio) < lowest:
        ratio = float(np.nextafter(ratio, 2.0))
    return ratio


def _prepared(
    source: PlanSource,
    limits: Mapping[Metric, int],
    *,
    multiple_of: int | Mapping[str, int],
    methods: Sequence[str] | None,
    skip: Sequence[str],
) -> tuple[Table, frozenset[str]]:
    names = source.structure.layers
    check_multiple_of(multiple_of, names)
    skipped = check_skip(skip, names)
    allowed = check_methods(methods, source.methods)
    return table_of(source, limits, methods=allowed, skipped=skipped, multiple_of=multiple_of), skipped


def _chosen(table: Table, select: Select) -> tuple[Ints | None, float | None]:
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
