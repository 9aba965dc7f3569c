# SPDX-License-Identifier: Apache-2.0
"""Reading a model, and changing it."""

from slimrank.graph._batch import (
    Batch,
    as_batch,
    batch_tensors,
    check_batch,
    digest_batch,
    join_samples,
    map_tensors,
    named_tensors,
    take_samples,
)
from slimrank.graph._blocks import drop_blocks, find_blocks
from slimrank.graph._capture import (
    SKIPPED,
    Captured,
    capture,
    check_compressible,
    check_weights,
    describe_layers,
)
from slimrank.graph._channels import without_layers
from slimrank.graph._count import count_by_module, count_cost, stored
from slimrank.graph._dense import bias_of_taps, dense_weight, set_weights, tap_shares
from slimrank.graph._group_trial import freeze, try_groups
from slimrank.graph._groups import read_groups
from slimrank.graph._lockstep import Lockstep, OneByOne, can_interleave
from slimrank.graph._memory import Trimmer
from slimrank.graph._modules import (
    copy_model,
    eval_mode,
    outside_inference_mode,
    put_back,
    quiet_copy,
    replace_module,
    run,
    shift_mean,
)
from slimrank.graph._outputs import OutputChoice, pick_outputs
from slimrank.graph._prefix import PrefixCache
from slimrank.graph._replay import Replay
from slimrank.graph._slim import mask, slim
from slimrank.graph._slim_check import slim_failures
from slimrank.graph._tails import Shortcut, Tail, find_norms, find_tails
from slimrank.graph._taps import tap_layers

__all__ = [
    "Batch",
    "Captured",
    "Lockstep",
    "OneByOne",
    "OutputChoice",
    "PrefixCache",
    "Replay",
    "SKIPPED",
    "Shortcut",
    "Tail",
    "Trimmer",
    "as_batch",
    "batch_tensors",
    "bias_of_taps",
    "can_interleave",
    "capture",
    "check_batch",
    "check_compressible",
    "check_weights",
    "copy_model",
    "count_by_module",
    "count_cost",
    "dense_weight",
    "describe_layers",
    "digest_batch",
    "drop_blocks",
    "eval_mode",
    "find_blocks",
    "find_norms",
    "find_tails",
    "freeze",
    "join_samples",
    "map_tensors",
    "mask",
    "named_tensors",
    "outside_inference_mode",
    "pick_outputs",
    "put_back",
    "quiet_copy",
    "read_groups",
    "replace_module",
    "run",
    "set_weights",
    "shift_mean",
    "slim",
    "slim_failures",
    "stored",
    "take_samples",
    "tap_layers",
    "tap_shares",
    "try_groups",
    "without_layers",
]
