# SPDX-License-Identifier: Apache-2.0
"""The plans of one study over their cost."""

from slimrank.pareto._pareto import Pareto, pareto_facts
from slimrank.pareto._point import ParetoPoint
from slimrank.pareto._trace import budgets_between, merged, trace

__all__ = ["Pareto", "ParetoPoint", "budgets_between", "merged", "pareto_facts", "trace"]
