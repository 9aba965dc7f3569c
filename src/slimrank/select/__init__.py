# SPDX-License-Identifier: Apache-2.0
"""Numbers to plans."""

from slimrank.select._budget import (
    Budget,
    bytes_limit,
    check_below,
    check_budgets,
    check_methods,
    check_peak,
    meant_percent,
)
from slimrank.select._ordinary import without_new_bias
from slimrank.select._select import Select, reachable_floor, select_plan, select_plan_and_rounding
from slimrank.select.layers._floor import HOW_TO_REACH

__all__ = [
    "HOW_TO_REACH",
    "Budget",
    "Select",
    "bytes_limit",
    "check_below",
    "check_budgets",
    "check_methods",
    "check_peak",
    "meant_percent",
    "reachable_floor",
    "select_plan",
    "select_plan_and_rounding",
    "without_new_bias",
]
