# SPDX-License-Identifier: Apache-2.0
"""One batch, one forward, and forwards that stop, start late or skip."""

from slimrank.forward._alive import alive_bytes
from slimrank.forward._batch import (
    Batch,
    as_batch,
    batch_tensors,
    changed_tensors,
    check_batch,
    digest_batch,
    join_samples,
    map_tensors,
    named_tensors,
    on_cpu,
    take_samples,
    tensor_storages,
)
from slimrank.forward._einsum import SingleSums
from slimrank.forward._few_samples import few_samples
from slimrank.forward._hooks import tap_layers
from slimrank.forward._lockstep import Lockstep, OneByOne, Shortcut, Side, can_interleave
from slimrank.forward._out_of_memory import is_out_of_memory, kept_text, out_of_memory_at, out_of_memory_told
from slimrank.forward._outputs import (
    OutputChoice,
    OutputKey,
    Picked,
    check_outputs,
    path_within,
    pick_outputs,
)
from slimrank.forward._prefix_cache import PrefixCache
from slimrank.forward._record import is_plain
from slimrank.forward._replay import Replay
from slimrank.forward._run import call, eval_mode, outside_inference_mode, plain_attention, run
from slimrank.forward._seed import fixed_seed, fixed_seed_without_warnings
from slimrank.forward._source_line import error_with_source_line, is_users_code
from slimrank.forward._training import training_error
from slimrank.forward._trim import Trimmer
from slimrank.forward._watch import first_input, watch_modules

__all__ = [
    "Batch",
    "Lockstep",
    "OneByOne",
    "OutputChoice",
    "OutputKey",
    "Picked",
    "PrefixCache",
    "Replay",
    "Shortcut",
    "Side",
    "SingleSums",
    "Trimmer",
    "alive_bytes",
    "as_batch",
    "batch_tensors",
    "call",
    "can_interleave",
    "changed_tensors",
    "check_batch",
    "check_outputs",
    "digest_batch",
    "error_with_source_line",
    "eval_mode",
    "few_samples",
    "first_input",
    "fixed_seed",
    "fixed_seed_without_warnings",
    "is_out_of_memory",
    "is_plain",
    "is_users_code",
    "join_samples",
    "kept_text",
    "map_tensors",
    "named_tensors",
    "on_cpu",
    "out_of_memory_at",
    "out_of_memory_told",
    "outside_inference_mode",
    "path_within",
    "pick_outputs",
    "plain_attention",
    "run",
    "take_samples",
    "tap_layers",
    "tensor_storages",
    "training_error",
    "watch_modules",
]
