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

__all__ = [
    "Selected",
    "WithinPeak",
    "choose_plan",
    "comparable_methods",
    "plan_again",
    "plan_unrounded",
    "without_new_biases",
]
