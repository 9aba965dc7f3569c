# SPDX-License-Identifier: Apache-2.0
"""A copy of a module tree, changed."""

from slimrank.surgery._attention import SlimAttention
from slimrank.surgery._bypass import Bypass
from slimrank.surgery._computed_kernels import computed_kernels, fold_as_planned, fold_kernels
from slimrank.surgery._computed_weights import has_computed_weights, store_computed_weights
from slimrank.surgery._constant_shapes import FollowedForward, constant_path, runs_forward
from slimrank.surgery._copy import copy_model, light_copy, put_back, quiet_copy, remember
from slimrank.surgery._explicit_padding import explicit_padding
from slimrank.surgery._fold_norms import fold_norm
from slimrank.surgery._fused import without_nesting
from slimrank.surgery._matrix import bias_of, bias_of_taps, dense_weight, has_weight, set_weights, tap_shares
from slimrank.surgery._replace import (
    drop_blocks,
    flatten_recurrent,
    named_layer,
    replace_module,
    replace_tensors,
    set_parameters,
    shift_mean,
)
from slimrank.surgery._sizes import size_items, synced_attributes
from slimrank.surgery._slim import mask, slim

__all__ = [
    "Bypass",
    "FollowedForward",
    "SlimAttention",
    "bias_of",
    "bias_of_taps",
    "computed_kernels",
    "constant_path",
    "copy_model",
    "dense_weight",
    "drop_blocks",
    "explicit_padding",
    "flatten_recurrent",
    "fold_as_planned",
    "fold_kernels",
    "fold_norm",
    "has_computed_weights",
    "has_weight",
    "light_copy",
    "mask",
    "named_layer",
    "put_back",
    "quiet_copy",
    "remember",
    "replace_module",
    "replace_tensors",
    "runs_forward",
    "set_parameters",
    "set_weights",
    "shift_mean",
    "size_items",
    "slim",
    "store_computed_weights",
    "synced_attributes",
    "tap_shares",
    "without_nesting",
]
