# SPDX-License-Identifier: Apache-2.0
"""Plan values, their file, and their checks."""

from slimrank.plan._json import (
    Json,
    as_flag,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    from_text,
    to_text,
)
from slimrank.plan._manual_file import read_settings
from slimrank.plan._multiple import check_multiple_of, multiple_for
from slimrank.plan._names import listed, nearest
from slimrank.plan._plan import Plan, PlanSource, plan_on
from slimrank.plan._ratio import ratio_of
from slimrank.plan._settings import SettingLike, damage_at, form_of, method_of
from slimrank.plan._step import block_damage_at, group_damage_at, is_inside, live, step_of
from slimrank.plan._structure import Step, Structure, check_structure, names_of, structure_of
from slimrank.plan._text_file import write_text

__all__ = [
    "Json",
    "Plan",
    "PlanSource",
    "SettingLike",
    "Step",
    "Structure",
    "as_flag",
    "as_integer",
    "as_list",
    "as_number",
    "as_object",
    "as_text",
    "block_damage_at",
    "check_multiple_of",
    "check_structure",
    "damage_at",
    "form_of",
    "from_text",
    "group_damage_at",
    "is_inside",
    "listed",
    "live",
    "method_of",
    "multiple_for",
    "names_of",
    "nearest",
    "plan_on",
    "ratio_of",
    "read_settings",
    "step_of",
    "structure_of",
    "to_text",
    "write_text",
]
