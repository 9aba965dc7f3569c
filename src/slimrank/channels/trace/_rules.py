# SPDX-License-Identifier: Apache-2.0
"""The rule of every operation: how labels of its outputs come from those of its inputs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slimrank.channels.trace._indexing import INDEXING
from slimrank.channels.trace._labels import ANY, Axis
from slimrank.channels.trace._norms import NORMS
from slimrank.channels.trace._ops import Op, holds_numbers
from slimrank.channels.trace._products import PRODUCTS
from slimrank.channels.trace._reductions import REDUCTIONS
from slimrank.channels.trace._spatial import SPATIAL
from slimrank.channels.trace._views import VIEWS

Rule = Callable[[Op], None]


def trace_op(op: Op) -> None:
    """Follows the labels through one operation that has run.

    Args:
        op: the operation; its outputs get labels, or its inputs a reason why they may not go.
    """
    if not op.outputs:
        if op.name not in _CHECKS:
            op.give_up()
        return
    rule = _RULES.get(op.name)
    if rule is None or _is_pointwise(op):
        rule = _pointwise if _is_pointwise(op) else _factory if not op.inputs else Op.give_up
    rule(op)
    if op.name not in PRODUCTS:
        _note_constants(op)


def _is_pointwise(op: Op) -> bool:
    """Some packets (aten.max) have a pointwise form and a reducing one; in-place forms may lack the tag."""
    if not isinstance(op.func, torch._ops.OpOverload):
        return False
    if torch.Tag.pointwise in op.func.tags:
        return True
    if op.func._schema.is_mutable and op.name not in _RULES:
        room, _, kernel = op.name.partition(".")
        twin = getattr(getattr(torch.ops, room), kernel, None)
        name = op.func._overloadname
        if twin is not None and name in twin.overloads():
            return torch.Tag.pointwise in getattr(twin, name).tags
    return False


def _note_constants(op: Op) -> None:
    """Constants that meet an activation have a role there other than being summed over."""
    if any(op.traced.origins(given) is None for given in op.inputs):
        for given in op.inputs:
            op.traced.made(given)


def _pointwise(op: Op) -> None:
    # Dimensions meet as they broadcast: counted from the last.
    for out in op.outputs:
        axes: list[Axis] = []
        for d, size in enumerate(out.shape):
            back = out.ndim - d
            met = [
                op.axes(given)[-back]
                for given in op.inputs
                if given.ndim >= back and given.shape[-back] == size
            ]
            # A known axis stands for all, also where it is frozen now: it carries the reason.
            axis = met[0] if met else None
            for other in met[1:]:
                axis = op.unify(axis, other)
            axes.append(axis)
        op.give(out, axes)


def _factory(op: Op) -> None:
    for out in op.outputs:
        op.give(out, [_made_up(op, size, out) for size in out.shape])


def _new(op: Op) -> None:
    _factory(op)
    for out in op.outputs:
        op.traced.give_origins(out, ())


def _made_up(op: Op, size: int, out: Tensor) -> Axis:
    """Labels of a tensor that the forward makes.

    The code may take the size from another tensor; if it does not, running the slimmed model tells.
    """
    if size == 1:
        return None
    return op.labels.fresh(size, "") if holds_numbers(out) else ANY


def _like(op: Op) -> None:
    for out in op.outputs:
        op.give(out, op.axes(op.inputs[0]))


# Operations that give nothing and change nothing.
_CHECKS = frozenset(
    {
        "aten._local_scalar_dense",
        *("aten._assert_async", "aten._assert_scalar", "aten._assert_tensor_metadata"),
        *("aten._functional_assert_async", "aten.sym_size", "aten.sym_stride", "aten.sym_numel"),
        *("aten.sym_constrain_range", "aten.sym_constrain_range_for_size", "aten.equal", "aten.is_same_size"),
    }
)

# Index by index, but without torch's tag for it.
_POINTWISE = (
    *("detach", "alias", "lift", "lift_fresh", "_to_copy", "copy", "contiguous", "to", "_conj", "conj"),
    *("_prelu_kernel", "prelu", "hardswish", "dropout", "native_dropout", "alpha_dropout", "fill", "zero"),
    *("_neg_view", "real", "imag", "complex", "polar", "log_sigmoid_forward", "rrelu_with_noise"),
    *("uniform", "normal", "bernoulli", "exponential", "random", "cauchy", "log_normal", "geometric"),
    *("floor_divide", "masked_fill", "hardsigmoid", "rrelu", "_fake_quantize_learnable_per_tensor_affine"),
    *("fake_quantize_per_tensor_affine_cachemask", "silu", "mish", "gelu", "threshold", "leaky_relu"),
    *("_add_relu", "dequantize"),
)
_NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")
_LIKE = (*("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),)

_RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _pointwise for name in _POINTWISE},
    **{f"aten.{name}": _new for name in _NEW},
    **{f"aten.{name}": _like for name in _LIKE},
    **VIEWS,
    **PRODUCTS,
    **NORMS,
    **REDUCTIONS,
    **SPATIAL,
    **INDEXING,
}
