# SPDX-License-Identifier: Apache-2.0
"""The methods: error curves, fits and replacement modules."""

from slimrank.methods._curves import (
    Anchor,
    anchor_points,
    anchored_curves,
    layer_curves,
    relative_curves,
)
from slimrank.methods._isotonic import never_falling
from slimrank.methods._pair import (
    Pair,
    Target,
    build_pair,
    dense_weight,
    effective_weight,
    empty_pair,
    error_by_rank,
    fit_pair,
    metric_roots,
    true_error,
    weights_target,
)
from slimrank.methods._table import METHODS, RULES, TABLE

__all__ = [
    "METHODS",
    "RULES",
    "TABLE",
    "Anchor",
    "Pair",
    "Target",
    "anchor_points",
    "anchored_curves",
    "build_pair",
    "dense_weight",
    "effective_weight",
    "empty_pair",
    "error_by_rank",
    "fit_pair",
    "layer_curves",
    "metric_roots",
    "never_falling",
    "relative_curves",
    "true_error",
    "weights_target",
]
