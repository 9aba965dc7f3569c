# SPDX-License-Identifier: Apache-2.0
"""Plan values, their file, and their checks."""

from slimrank.plan._fixed import NOTHING_FIXED, Fixed, FixedSettings, check_fixed, fixed_in, fixed_of
from slimrank.plan._latency import (
    LatencyTable,
    check_latency,
    check_table,
    latency_ratio,
    milliseconds_of,
    planned_latency,
)
from slimrank.plan._layer_setting import SettingLike, damage_at, form_of, method_of
from slimrank.plan._plan import (
    Plan,
    PlanSource,
    differences,
    edited_plan,
    plan_content,
    plan_of_content,
    plan_on,
    with_multiples,
)
from slimrank.plan._rounding import (
    MultipleOf,
    Multiples,
    Rounding,
    check_multiple_of,
    kernel_group_steps,
    multiple_for,
    rounding_steps,
    without_auto,
)
from slimrank.plan._settings_file import read_settings
from slimrank.plan._step import block_damage_at, group_damage_at, is_inside, slimmable_groups, step_of
from slimrank.plan._structure import (
    HasSteps,
    Step,
    Structure,
    are_same_steps,
    check_structure,
    cost_after,
    names_of,
    structure_of,
)

__all__ = [
    "NOTHING_FIXED",
    "Fixed",
    "FixedSettings",
    "HasSteps",
    "LatencyTable",
    "MultipleOf",
    "Multiples",
    "Plan",
    "PlanSource",
    "Rounding",
    "SettingLike",
    "Step",
    "Structure",
    "are_same_steps",
    "block_damage_at",
    "check_fixed",
    "check_latency",
    "check_multiple_of",
    "check_structure",
    "check_table",
    "cost_after",
    "damage_at",
    "differences",
    "edited_plan",
    "fixed_in",
    "fixed_of",
    "form_of",
    "group_damage_at",
    "is_inside",
    "kernel_group_steps",
    "latency_ratio",
    "method_of",
    "milliseconds_of",
    "multiple_for",
    "names_of",
    "plan_content",
    "plan_of_content",
    "plan_on",
    "planned_latency",
    "read_settings",
    "rounding_steps",
    "slimmable_groups",
    "step_of",
    "structure_of",
    "with_multiples",
    "without_auto",
]
