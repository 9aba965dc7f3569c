# SPDX-License-Identifier: Apache-2.0
"""Counted cost of a model: what torch's own flop counter sees."""

from collections.abc import Mapping
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimrank.graph._batch import Batch
from slimrank.graph._modules import run
from slimrank.records import Cost


def count_cost(model: nn.Module, sample: Batch) -> Cost:
    """Counted cost of a model.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        MACs of one forward (torch's flop counter / 2), params (shared tensors once), bytes.
    """
    return count_by_module(model, sample)[0]


def count_by_module(model: nn.Module, sample: Batch) -> tuple[Cost, Mapping[str, int]]:
    """Counted cost of a model, and the MACs of each of its modules.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        The cost, and MACs by dotted name (modules without any are left out).
    """
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU)
    with torch.no_grad(), counter:
        run(model, sample)
    prefix = type(model).__name__ + "."
    by_module = {
        name.removeprefix(prefix): sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    params, n_bytes = stored(model)
    return Cost(macs=counter.get_total_flops() // 2, params=params, bytes=n_bytes), by_module


def stored(model: nn.Module) -> tuple[int, int]:
    """Stored numbers of a model, shared tensors once, and their bytes."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **__: object
) -> int:
    """Two products, as torch counts them for its other attention kernels; the CPU's own is missing there."""
    *heads, n_queries, width = query
    n_keys = key[-2]
    return 2 * prod(heads) * n_queries * n_keys * (width + value[-1])


_ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
