# SPDX-License-Identifier: Apache-2.0
"""The methods: error curves, fits and replacement modules."""

from slimrank.methods._channel_pruning import (
    anchor_counts,
    anchored_group_curve,
    group_curve,
    inner_removal,
    relative_group_curve,
    removal_by_magnitude,
    removal_by_obs,
    removal_by_order,
    removal_by_random,
)
from slimrank.methods._curves import (
    CEILING,
    Anchor,
    anchor_points,
    anchored_curves,
    layer_curves,
    relative_curves,
)
from slimrank.methods._isotonic import never_falling
from slimrank.methods._modules import (
    build_modules,
    build_replacement,
    empty_replacement,
    factors_from_tensors,
    factors_on,
    factors_to_tensors,
    fill_container,
    fit_factors,
    has_bias_in,
    is_replaced_in,
    is_replacement,
    open_container,
)
from slimrank.methods._pair import Pair, effective_weight, error_by_rank, fit_pair
from slimrank.methods._pair_modules import empty_pair
from slimrank.methods._table import METHODS, TABLE, Factors, LayerFunctions, MethodRow
from slimrank.methods._target import Target, metric_roots, restricted_gram, weights_target

__all__ = [
    "CEILING",
    "METHODS",
    "TABLE",
    "Anchor",
    "Factors",
    "LayerFunctions",
    "MethodRow",
    "Pair",
    "Target",
    "anchor_counts",
    "anchor_points",
    "anchored_curves",
    "anchored_group_curve",
    "build_modules",
    "build_replacement",
    "effective_weight",
    "empty_pair",
    "empty_replacement",
    "error_by_rank",
    "factors_from_tensors",
    "factors_on",
    "factors_to_tensors",
    "fill_container",
    "fit_factors",
    "fit_pair",
    "group_curve",
    "has_bias_in",
    "inner_removal",
    "is_replaced_in",
    "is_replacement",
    "layer_curves",
    "metric_roots",
    "never_falling",
    "open_container",
    "relative_curves",
    "relative_group_curve",
    "removal_by_magnitude",
    "removal_by_obs",
    "removal_by_order",
    "removal_by_random",
    "restricted_gram",
    "weights_target",
]
