# SPDX-License-Identifier: Apache-2.0
"""MACs, params and bytes of a layer and of the pairs that replace it."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from slimrank.cost._forms import factor_taps, positions, positions_between
from slimrank.records import Cost, Form, LayerSpec


def layer_cost(spec: LayerSpec) -> Cost:
    """Cost of the layer as it stands.

    Args:
        spec: the layer; for kind "other" its ``macs`` and ``params`` are taken.

    Returns:
        MACs of all calls for one sample, params with bias, bytes.
    """
    if spec.kind == "other":
        return Cost(macs=spec.macs, params=spec.params, bytes=spec.params * spec.itemsize)
    weight = prod(spec.weight_shape)
    params = weight + (spec.weight_shape[0] if spec.has_bias else 0)
    macs = sum(positions(spec, call.output_shape) for call in spec.calls) * weight
    return Cost(macs=macs, params=params, bytes=params * spec.itemsize)


def pair_cost(spec: LayerSpec, form: Form, rank: int, *, has_bias: bool) -> Cost:
    """Cost of the pair that replaces a layer.

    Args:
        spec: the layer.
        form: how the pair is split.
        rank: size between the factors, at least 1.
        has_bias: whether the second factor carries a bias.

    Returns:
        MACs of all calls for one sample, params with bias, bytes.
    """
    macs, params = pair_costs(spec, form, np.array([rank]), has_bias=has_bias)
    return Cost(macs=int(macs[0]), params=int(params[0]), bytes=int(params[0]) * spec.itemsize)


def factor_costs(spec: LayerSpec, form: Form) -> tuple[Cost, Cost]:
    """What a pair costs for each rank, without its bias: linear in the columns and rows of the weight.

    Args:
        spec: the layer; its numbers of rows and columns do not matter.
        form: how the pair is split.

    Returns:
        Cost of the first factor for each column, of all groups of a grouped convolution, and of the second
        factor for each row.
    """
    first, second = factor_taps(spec, form)
    between = sum(positions_between(spec, form, call) for call in spec.calls)
    after = sum(positions(spec, call.output_shape) for call in spec.calls)
    return (
        Cost(macs=first * between, params=first, bytes=first * spec.itemsize),
        Cost(macs=second * after, params=second, bytes=second * spec.itemsize),
    )


def pair_costs(
    spec: LayerSpec, form: Form, ranks: NDArray[np.int64], *, has_bias: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """MACs and params of the pair at many ranks.

    Args:
        spec: the layer.
        form: how the pair is split.
        ranks: (K,) int64, each at least 1.
        has_bias: whether the second factor carries a bias.

    Returns:
        Two (K,) int64: MACs of all calls for one sample; params with bias.
    """
    c_out, c_in, *_ = spec.weight_shape
    n_columns = c_in * spec.groups
    column, row = factor_costs(spec, form)
    macs = ranks * (n_columns * column.macs + c_out * row.macs)
    params = ranks * (n_columns * column.params + c_out * row.params) + (c_out if has_bias else 0)
    return macs, params
