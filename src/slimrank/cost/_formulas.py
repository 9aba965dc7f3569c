# SPDX-License-Identifier: Apache-2.0
"""MACs, params and bytes of a layer and of the factors that replace it."""

from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from slimrank.cost._forms import (
    FORM_ROWS,
    factor_taps,
    positions,
    positions_between,
    ranks_at,
    usual_ranks_in,
)
from slimrank.records import Cost, Curve, Form, LayerSpec, Setting


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


def setting_cost(spec: LayerSpec, setting: Setting, *, has_bias: bool) -> Cost:
    """Cost of what a setting puts in the place of a layer.

    Args:
        spec: the layer.
        setting: form and ranks.
        has_bias: whether the last factor carries a bias.

    Returns:
        MACs of all calls for one sample, params with bias, bytes.
    """
    ranks_in = None if setting.rank_in is None else np.array([setting.rank_in])
    macs, params = pair_costs(spec, setting.form, np.array([setting.rank]), ranks_in, has_bias=has_bias)
    return Cost(macs=int(macs[0]), params=int(params[0]), bytes=int(params[0]) * spec.itemsize)


def pair_cost(spec: LayerSpec, form: Form, rank: int, *, has_bias: bool) -> Cost:
    """Cost of the factors that replace a layer, where nobody has chosen more than one rank.

    Args:
        spec: the layer.
        form: how the kernel is split.
        rank: size between the factors, at least 1; a form with three takes its usual other rank.
        has_bias: whether the last factor carries a bias.

    Returns:
        MACs of all calls for one sample, params with bias, bytes.
    """
    ranks = np.array([rank])
    macs, params = pair_costs(spec, form, ranks, usual_ranks_in(spec, form, ranks), has_bias=has_bias)
    return Cost(macs=int(macs[0]), params=int(params[0]), bytes=int(params[0]) * spec.itemsize)


def factor_costs(spec: LayerSpec, form: Form) -> tuple[Cost, Cost]:
    """What a pair costs for each rank, without its bias: linear in the columns and rows of the weight.

    Args:
        spec: the layer; its numbers of rows and columns do not matter.
        form: how the kernel is split.

    Returns:
        Cost of the first factor for each column, of all groups of a grouped convolution, and of the last
        factor for each row. Of three factors, the one between is in neither: ``middle_cost``.
    """
    first, second = factor_taps(spec, form)
    if FORM_ROWS[form].has_third:
        second = 1
    between = sum(positions_between(spec, form, call) for call in spec.calls)
    after = sum(positions(spec, call.output_shape) for call in spec.calls)
    return (
        Cost(macs=first * between, params=first, bytes=first * spec.itemsize),
        Cost(macs=second * after, params=second, bytes=second * spec.itemsize),
    )


def middle_cost(spec: LayerSpec, form: Form) -> Cost:
    """What the factor between the others costs, for each product of both ranks; nothing for two factors."""
    if not FORM_ROWS[form].has_third:
        return Cost(macs=0, params=0, bytes=0)
    taps = prod(factor_taps(spec, form))
    after = sum(positions(spec, call.output_shape) for call in spec.calls)
    return Cost(macs=taps * after, params=taps, bytes=taps * spec.itemsize)


def pair_costs(
    spec: LayerSpec,
    form: Form,
    ranks: NDArray[np.int64],
    ranks_in: NDArray[np.int64] | None = None,
    *,
    has_bias: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """MACs and params of the factors at many ranks.

    Args:
        spec: the layer.
        form: how the kernel is split.
        ranks: (K,) int64, each at least 1.
        ranks_in: (K,) int64, the rank before each of these, of a form with three factors; else None.
        has_bias: whether the last factor carries a bias.

    Returns:
        Two (K,) int64: MACs of all calls for one sample; params with bias.
    """
    c_out, c_in, *_ = spec.weight_shape
    n_columns = c_in * spec.groups
    column, row = factor_costs(spec, form)
    first = ranks if ranks_in is None else ranks_in
    macs = first * (n_columns * column.macs) + ranks * (c_out * row.macs)
    params = first * (n_columns * column.params) + ranks * (c_out * row.params) + (c_out if has_bias else 0)
    if ranks_in is None:
        return macs, params
    middle = middle_cost(spec, form)
    return macs + ranks_in * ranks * middle.macs, params + ranks_in * ranks * middle.params


def at_multiples(spec: LayerSpec, curve: Curve, multiple: int, *, has_bias: bool) -> Curve:
    """The part of a curve whose ranks are multiples.

    Args:
        spec: the layer.
        curve: of it.
        multiple: at least 1.
        has_bias: whether the last factor carries a bias.

    Returns:
        Of a form with three factors, ``rank_in`` is raised to a multiple where there is one, and the damage
        of less stands for that of more.
    """
    good, ranks_in = ranks_at(spec, curve.form, curve.ranks, curve.ranks_in, multiple)
    kept = replace(
        curve,
        ranks=curve.ranks[good],
        macs=curve.macs[good],
        params=curve.params[good],
        bytes=curve.bytes[good],
        error=curve.error[good],
        damage=curve.damage[good],
    )
    if ranks_in is None:
        return kept
    macs, params = pair_costs(spec, kept.form, kept.ranks, ranks_in, has_bias=has_bias)
    return replace(kept, ranks_in=ranks_in, macs=macs, params=params, bytes=params * spec.itemsize)
