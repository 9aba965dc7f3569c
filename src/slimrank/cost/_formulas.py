# SPDX-License-Identifier: Apache-2.0
"""MACs, params and bytes of a layer and of the pairs that replace it."""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from slimrank.records import Call, Cost, Form, LayerSpec, Method

_SQUARE_DIMS = 2

FORMS: Mapping[Method, tuple[Form, ...]] = MappingProxyType(
    {"weight_svd": ("linear", "kxk_1x1", "1x1_kxk"), "spatial_svd": ("v_h", "h_v")}
)


def forms_of(spec: LayerSpec, method: Method) -> tuple[Form, ...]:
    """The forms of a method that this layer can take.

    Args:
        spec: the layer.
        method: a name of ``slimrank.METHODS``.

    Returns:
        The forms, in the order in which ties are decided; () when the method does not apply.
    """
    if spec.kind == "other" or spec.groups != 1 or method not in FORMS:
        return ()
    if method == "weight_svd":
        if spec.kind == "linear":
            return ("linear",)
        # A 1x1 kernel has one factorisation; the other order of a strided one would only cost more.
        return ("kxk_1x1",) if prod(spec.kernel) == 1 else ("kxk_1x1", "1x1_kxk")
    if spec.kind == "conv2d" and len(spec.kernel) == _SQUARE_DIMS and min(spec.kernel) > 1:
        return ("v_h", "h_v")
    return ()


def max_rank(spec: LayerSpec, form: Form) -> int:
    """The full rank of a form: there the pair is exact.

    Args:
        spec: the layer.
        form: how the pair is split.

    Returns:
        The rank, at least 1.
    """
    c_out, c_in, *kernel = spec.weight_shape
    taps = prod(kernel)
    if form in {"linear", "kxk_1x1"}:
        return min(c_out, c_in * taps)
    if form == "1x1_kxk":
        return min(c_in, c_out * taps)
    first, second = kernel if form == "v_h" else reversed(kernel)
    return min(c_in * first, c_out * second)


def layer_cost(spec: LayerSpec) -> Cost:
    """Cost of the layer as it stands.

    Args:
        spec: the layer; for kind "other" its own ``macs`` and ``params`` are taken.

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
    first, second = _factor_taps(spec, form)
    macs = sum(
        c_in * first * _between_positions(spec, form, call)
        + c_out * second * positions(spec, call.output_shape)
        for call in spec.calls
    )
    params = ranks * (c_in * first + c_out * second) + (c_out if has_bias else 0)
    return ranks * macs, params


def _factor_taps(spec: LayerSpec, form: Form) -> tuple[int, int]:
    taps = prod(spec.kernel)
    if form in {"linear", "kxk_1x1"}:
        return taps, 1
    if form == "1x1_kxk":
        return 1, taps
    k_h, k_w = spec.kernel
    return (k_h, k_w) if form == "v_h" else (k_w, k_h)


def positions(spec: LayerSpec, shape: tuple[int, ...]) -> int:
    """Rows that a linear, or positions that a convolution, works on in a map of this shape."""
    if spec.kind == "linear":
        return prod(shape[:-1])
    spatial = len(spec.kernel)
    return prod(shape[-spatial:]) * prod(shape[: -spatial - 1])


def _between_positions(spec: LayerSpec, form: Form, call: Call) -> int:
    """Positions of the map between the two factors."""
    if form in {"linear", "kxk_1x1"}:
        return positions(spec, call.output_shape)
    if form == "1x1_kxk":
        return positions(spec, call.input_shape)
    *batch_in, _, h_in, w_in = call.input_shape
    *_, h_out, w_out = call.output_shape
    return prod(batch_in) * (h_out * w_in if form == "v_h" else h_in * w_out)
