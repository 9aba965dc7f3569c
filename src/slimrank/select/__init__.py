# SPDX-License-Identifier: Apache-2.0
"""Numbers to plans."""

from slimrank.select._budget import check_budgets, check_methods
from slimrank.select._select import Select, plan_with_multiples, reachable_floor, select_plan

__all__ = [
    "Select",
    "check_budgets",
    "check_methods",
    "plan_with_multiples",
    "reachable_floor",
    "select_plan",
]
