# SPDX-License-Identifier: Apache-2.0
"""A plan by the rule of another one, for other budgets or other multiples."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from slimrank._errors import BudgetError
from slimrank.measured import StudyRecord
from slimrank.plan import MultipleOf, Plan, fixed_in, has_uniform_widths
from slimrank.planning._choose import choose_plan
from slimrank.records import PRUNING, Metric

# The rules by which plans are chosen from damages.
_SELECTORS: Mapping[str, Literal["optimal", "greedy", "uniform"]] = {
    "optimal": "optimal",
    "greedy": "greedy",
    "uniform": "uniform",
}


def plan_unrounded(record: StudyRecord, plan: Plan) -> Plan | None:
    """A plan as it would be if ranks and widths were multiples of nothing, in its layers alone.

    Args:
        record: of the study.
        plan: of this study.

    Returns:
        The plan; None where nothing was rounded, or the plan was not chosen from damages.
    """
    numbers = plan.multiple_of.values() if isinstance(plan.multiple_of, Mapping) else (plan.multiple_of,)
    if set(numbers) <= {1}:
        return None
    return plan_again(record, plan, plan, plan.budgets, 1)


def plan_again(
    record: StudyRecord, plan: Plan, built: Plan, budgets: Mapping[Metric, float], multiple_of: MultipleOf
) -> Plan | None:
    """A plan by the rule of another one, of its methods, in its layers, groups and blocks alone.

    Args:
        record: of the study.
        plan: the other one.
        built: what could be built of it.
        budgets: keep ratios of the original model.
        multiple_of: as in ``Study.plan``.

    Returns:
        The plan; None where the budgets are out of reach so, or the plan was not chosen from damages,
        changes nothing, or has methods that this study did not measure.
    """
    select = _SELECTORS.get(plan.select)
    is_other = plan.latency is not None or plan.activations is not None or plan.score_loss is not None
    if select is None or is_other:
        return None
    methods = {setting.method for setting in plan.settings.values()}
    if plan.groups or plan.dropped:
        methods.add(PRUNING)
    if not methods or not methods.issubset(record.methods):
        return None
    narrowed = replace(
        record,
        curves=tuple(curve for curve in record.curves if curve.layer in plan.settings),
        group_curves=tuple(curve for curve in record.group_curves if curve.group in built.groups),
        block_damages=tuple(block for block in record.block_damages if block.block in built.dropped),
    )
    try:
        return choose_plan(
            narrowed,
            macs=budgets.get("macs"),
            params=budgets.get("params"),
            bytes=budgets.get("bytes"),
            select=select,
            multiple_of=multiple_of,
            methods=[method for method in record.methods if method in methods],
            relative_to="model" if len(plan.steps) < 2 else "original",
            fixed=fixed_in(plan, built=built),
            uniform_widths=not plan.dropped and has_uniform_widths(built.groups, record.structure.channels),
            new_bias=plan.has_bias,
        )
    except BudgetError:
        return None
