# SPDX-License-Identifier: Apache-2.0
"""Plan values, their file, and their checks."""

from slimrank.plan._multiple import check_multiple_of, multiple_for
from slimrank.plan._names import listed, nearest
from slimrank.plan._plan import Plan, PlanSource, step_of
from slimrank.plan._ratio import ratio_of
from slimrank.plan._settings import SettingLike
from slimrank.plan._structure import Step, Structure, check_structure, structure_of

__all__ = [
    "Plan",
    "PlanSource",
    "SettingLike",
    "Step",
    "Structure",
    "check_multiple_of",
    "check_structure",
    "listed",
    "multiple_for",
    "nearest",
    "ratio_of",
    "step_of",
    "structure_of",
]
