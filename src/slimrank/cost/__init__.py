# SPDX-License-Identifier: Apache-2.0
"""Closed forms: shapes in, costs out."""

from slimrank.cost._formulas import (
    FORMS,
    forms_of,
    layer_cost,
    max_rank,
    pair_cost,
    pair_costs,
)

__all__ = ["FORMS", "forms_of", "layer_cost", "max_rank", "pair_cost", "pair_costs"]
