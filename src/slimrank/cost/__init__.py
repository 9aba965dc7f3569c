# SPDX-License-Identifier: Apache-2.0
"""Closed forms: shapes in, costs out."""

from slimrank.cost._forms import FORM_ROWS, FORMS, FormRow, factor_taps, forms_of, max_rank
from slimrank.cost._formulas import layer_cost, pair_cost, pair_costs
from slimrank.cost._new_bias import carries_mean, consumer_gains_bias, gains_bias
from slimrank.cost._row_view import RowView, row_view
from slimrank.cost._rows import keeps_rows, moment_bytes, row_cap, row_width, rows_available, working_bytes
from slimrank.cost._slimming import group_share, kept_shape, model_cost, query_scales, slimmed_spec, stays

__all__ = [
    "FORMS",
    "FORM_ROWS",
    "FormRow",
    "RowView",
    "carries_mean",
    "consumer_gains_bias",
    "factor_taps",
    "forms_of",
    "gains_bias",
    "group_share",
    "keeps_rows",
    "kept_shape",
    "layer_cost",
    "max_rank",
    "model_cost",
    "moment_bytes",
    "pair_cost",
    "pair_costs",
    "query_scales",
    "row_cap",
    "row_view",
    "row_width",
    "rows_available",
    "slimmed_spec",
    "stays",
    "working_bytes",
]
