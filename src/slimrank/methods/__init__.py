# SPDX-License-Identifier: Apache-2.0
"""The methods: error curves, fits and replacement modules."""

from slimrank.methods._channel_pruning import (
    SELECTORS,
    anchor_counts,
    anchored_group_curve,
    group_curve,
    inner_removal,
    relative_group_curve,
    removal_by_magnitude,
    removal_by_obs,
    removal_by_random,
)
from slimrank.methods._curves import Anchor, anchor_points, anchored_curves, layer_curves, relative_curves
from slimrank.methods._isotonic import never_falling
from slimrank.methods._modules import build_pair, empty_pair
from slimrank.methods._pair import Pair, effective_weight, error_by_rank, fit_pair
from slimrank.methods._table import METHODS
from slimrank.methods._target import Target, metric_roots, weights_target

__all__ = [
    "METHODS",
    "SELECTORS",
    "Anchor",
    "Pair",
    "Target",
    "anchor_counts",
    "anchor_points",
    "anchored_curves",
    "anchored_group_curve",
    "build_pair",
    "effective_weight",
    "empty_pair",
    "error_by_rank",
    "fit_pair",
    "group_curve",
    "inner_removal",
    "layer_curves",
    "metric_roots",
    "never_falling",
    "relative_curves",
    "relative_group_curve",
    "removal_by_magnitude",
    "removal_by_obs",
    "removal_by_random",
    "weights_target",
]
