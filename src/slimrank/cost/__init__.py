# SPDX-License-Identifier: Apache-2.0
"""Closed forms: shapes in, costs out."""

from slimrank.cost._bytes import bytes_text, read_bytes
from slimrank.cost._forms import FORM_ROWS, FORMS, FormRow, factor_taps, forms_of, max_rank
from slimrank.cost._formulas import factor_costs, layer_cost, pair_cost, pair_costs
from slimrank.cost._memory import (
    DEFAULT_MEMORY,
    LEAST_ROOM,
    SAMPLING,
    MemoryBudgets,
    budgets_within,
    clipped_row_bytes,
    fitting_bytes,
    live_bytes,
    moment_bytes,
    paused_bytes,
    working_bytes,
)
from slimrank.cost._new_bias import carries_mean, consumer_gains_bias, gains_bias, pair_has_bias
from slimrank.cost._row_view import RowView, row_view
from slimrank.cost._rows import (
    MAX_EXACT_NUMBERS,
    MAX_METRIC_WIDTH,
    block_width,
    is_wide,
    keeps_rows,
    row_cap,
    row_width,
    rows_available,
)
from slimrank.cost._slimming import group_share, kept_shape, model_cost, query_scales, slimmed_spec, stays
from slimrank.cost._time import (
    group_is_inside,
    group_time,
    network_time,
    pair_rows_and_columns,
    rows_and_columns,
)

__all__ = [
    "DEFAULT_MEMORY",
    "FORMS",
    "FORM_ROWS",
    "LEAST_ROOM",
    "MAX_EXACT_NUMBERS",
    "MAX_METRIC_WIDTH",
    "SAMPLING",
    "FormRow",
    "MemoryBudgets",
    "RowView",
    "block_width",
    "budgets_within",
    "bytes_text",
    "carries_mean",
    "clipped_row_bytes",
    "consumer_gains_bias",
    "factor_costs",
    "factor_taps",
    "fitting_bytes",
    "forms_of",
    "gains_bias",
    "group_is_inside",
    "group_share",
    "group_time",
    "is_wide",
    "keeps_rows",
    "kept_shape",
    "layer_cost",
    "live_bytes",
    "max_rank",
    "model_cost",
    "moment_bytes",
    "network_time",
    "pair_cost",
    "pair_costs",
    "pair_has_bias",
    "pair_rows_and_columns",
    "paused_bytes",
    "query_scales",
    "read_bytes",
    "row_cap",
    "row_view",
    "row_width",
    "rows_and_columns",
    "rows_available",
    "slimmed_spec",
    "stays",
    "working_bytes",
]
