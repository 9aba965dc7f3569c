# SPDX-License-Identifier: Apache-2.0
"""Layers, studies and agreements that are written by hand, for tests that need no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slimrank.cost import layer_cost
from slimrank.plan import Plan, Structure
from slimrank.records import BlockDamage, Call, Cost, Curve, GroupCurve, LayerSpec, OutputAgreement

# Agreements of two outputs: classes at four tokens, and the numbers of a box.
TOKENS = OutputAgreement(
    family="categorical",
    shape=(4, 50),
    positions=4,
    divergence=2.48,
    lost=0.02,
    top1=0.98906,
    by_element=(1.0, 0.99, 0.912, 1.0),
    elements=(4,),
)
BOX = OutputAgreement(
    family="gaussian",
    shape=(4,),
    positions=1,
    divergence=0.0041,
    lost=0.0041,
    cosine=0.99812,
    relative_error=0.0640,
    by_element=(0.01, 0.02, 0.03, 0.12),
    elements=(4,),
)


def linear(
    name: str, out: int, into: int, *, tokens: int | None = None, has_bias: bool = True, **others: object
) -> LayerSpec:
    """A linear layer, called once for one sample: on one row, or on as many as it has tokens.

    ``others`` are fields of a layer and replace what is usual: float32, each SVD that applies (none where
    there is a reason), MACs and params as ``layer_cost`` counts them.
    """
    rows = (1,) if tokens is None else (1, tokens)
    usual = {
        "kind": "linear",
        "class_name": "Linear",
        "weight_shape": (out, into),
        "calls": (Call(input_shape=(*rows, into), output_shape=(*rows, out)),),
        "methods": () if others.get("reason") else ("weight_svd",),
    }
    return _layer(name, has_bias, usual | others)


def conv2d(
    name: str,
    out: int,
    into: int,
    kernel: int = 3,
    *,
    size: int,
    stride: int = 1,
    has_bias: bool = False,
    **others: object,
) -> LayerSpec:
    """A convolution with a square kernel of odd size, called once on a square map, padded by half the kernel.

    ``others`` as in ``linear``; no bias unless asked for.
    """
    left = (size - 1) // stride + 1
    svd = ("weight_svd", "spatial_svd") if kernel > 1 else ("weight_svd",)
    usual = {
        "kind": "conv2d",
        "class_name": "Conv2d",
        "weight_shape": (out, into, kernel, kernel),
        "stride": (stride, stride),
        "dilation": (1, 1),
        "padding": (kernel // 2, kernel // 2),
        "calls": (Call(input_shape=(1, into, size, size), output_shape=(1, out, left, left)),),
        "methods": () if others.get("reason") else svd,
    }
    return _layer(name, has_bias, usual | others)


def other(
    name: str, class_name: str, weight_shape: tuple[int, ...] = (), *, has_bias: bool = True, **others: object
) -> LayerSpec:
    """A layer that no method knows: without calls, and without MACs and params that are not given."""
    usual = {
        "kind": "other",
        "class_name": class_name,
        "weight_shape": weight_shape,
        "reason": f"no method for {class_name}",
    }
    return _layer(name, has_bias, usual | others)


def _layer(name: str, has_bias: bool, fields: Mapping[str, object]) -> LayerSpec:
    spec = LayerSpec(**{"name": name, "has_bias": has_bias, "dtype": "float32", "itemsize": 4, **fields})
    cost = layer_cost(spec)
    return replace(spec, **{"macs": cost.macs, "params": cost.params, **fields})


@dataclass(frozen=True)
class Source:
    """What a plan is made from: what a study holds, or as much of it as a test needs."""

    structure: Structure
    before: Cost
    curves: Sequence[Curve] = ()
    group_curves: Sequence[GroupCurve] = ()
    block_damages: Sequence[BlockDamage] = ()
    has_bias: bool = True
    methods: Sequence[str] = ("weight_svd", "spatial_svd")
    previous: Plan | None = None
