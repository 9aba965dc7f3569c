# SPDX-License-Identifier: Apache-2.0
"""Plans of what a study measured."""

from slimrank.planning._again import plan_again, plan_unrounded
from slimrank.planning._choose import (
    Selected,
    WithinPeak,
    choose_plan,
    comparable_methods,
    without_new_biases,
)
from slimrank.planning._edit import check_steps, edit_plan

__all__ = [
    "Selected",
    "WithinPeak",
    "check_steps",
    "choose_plan",
    "comparable_methods",
    "edit_plan",
    "plan_again",
    "plan_unrounded",
    "without_new_biases",
]
