# SPDX-License-Identifier: Apache-2.0
"""Rules of normalisations: per channel they let channels go, over channels they do not."""

from collections.abc import Callable, Mapping

from torch import Tensor

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Op, unlabelled

# Arguments that hold one number per channel, as the kernels of the CPU, cuDNN and MIOpen name them.
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var", "scale", "mean", "invstd", "invStd")


def _batch_norm(op: Op) -> None:
    given = op.inputs[0]
    axes = list(op.axes(given))
    channels = axes[1] if given.ndim > 1 else None
    for name in _PER_CHANNEL:
        vector = op.optional(name)
        if vector is not None and vector.ndim == 1 and vector is not given and vector.shape[0] > 1:
            channels = op.unify(channels, op.axes(vector)[0])
    if given.ndim > 1:
        axes[1] = channels
    if op.given.get("training", op.given.get("train", False)):
        # Statistics of what comes in, as for weights that are standardised by way of this kernel.
        for axis in (*axes[:1], *axes[2:]):
            op.freeze(axis)
    for out in op.outputs:
        op.give(out, axes if out.ndim == given.ndim else _of_channels(out, given, channels))


def _of_channels(out: Tensor, given: Tensor, channels: Axis) -> list[Axis]:
    return [channels if size == given.shape[1] and out.ndim == 1 else None for size in out.shape]


def _layer_norm(op: Op) -> None:
    given = op.inputs[0]
    shape = op.numbers("normalized_shape")
    _freeze_last(
        op, given, len(shape), [t for t in (op.optional("weight"), op.optional("bias")) if t is not None]
    )


def _freeze_last(op: Op, given: Tensor, count: int, vectors: list[Tensor]) -> None:
    lead = given.ndim - count
    axes = list(op.axes(given))
    for vector in vectors:
        for d, axis in enumerate(op.axes(vector)):
            axes[lead + d] = op.unify(axes[lead + d], axis)
    for axis in axes[lead:]:
        op.freeze(axis)
    for out in op.outputs:
        op.give(out, axes if out.shape == given.shape else [*axes[:lead], *([None] * (out.ndim - lead))])


def _group_norm(op: Op) -> None:
    given = op.inputs[0]
    axes = list(op.axes(given))
    channels, size, groups = axes[1], given.shape[1], op.number("group", op.number("num_groups", 1))
    for name in ("weight", "bias"):
        vector = op.optional(name)
        if vector is not None and size > 1:
            channels = op.unify(channels, op.axes(vector)[0])
    # Statistics are taken over the channels of a group and over space.
    _, inner = op.split(channels, groups, size // groups)
    op.freeze(inner)
    for axis in axes[2:]:
        op.freeze(axis)
    axes[1] = channels
    for out in op.outputs:
        op.give(out, axes if out.shape == given.shape else unlabelled(out))


def _weight_norm(op: Op) -> None:
    """The norm is taken over every dimension but one."""
    given, gain, dim = op.tensor("v"), op.tensor("g"), op.number("dim")
    axes = list(op.axes(given))
    for d, axis in enumerate(op.axes(gain)):
        if gain.shape[d] == given.shape[d] > 1:
            axes[d] = op.unify(axes[d], axis)
    for d, axis in enumerate(axes):
        if d != dim % given.ndim:
            op.freeze(axis)
    for out in op.outputs:
        same = [axis if a == b else None for axis, a, b in zip(axes, out.shape, given.shape, strict=True)]
        op.give(out, same)


_TABLE: Mapping[str, Callable[[Op], None]] = {
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "miopen_batch_norm", "batch_norm"), _batch_norm),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update", "batch_norm_elemt"), _batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_functional", "_batch_norm_impl_index"), _batch_norm),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("native_group_norm", "group_norm"), _group_norm),
    "_weight_norm_interface": _weight_norm,
}
NORMS: Mapping[str, Callable[[Op], None]] = {f"aten.{name}": rule for name, rule in _TABLE.items()}
