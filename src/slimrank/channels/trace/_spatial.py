# SPDX-License-Identifier: Apache-2.0
"""Rules of what works on the positions of a picture or sequence: pooling, resizing, padding, sampling."""

from collections.abc import Callable, Mapping

import numpy as np

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Op, unlabelled


def _spatial(n_dims: int) -> Callable[[Op], None]:
    """Rule of a kernel that works on the last dimensions, everything before them apart."""

    def rule(op: Op) -> None:
        given = op.inputs[0]
        axes = list(op.axes(given))
        for axis in axes[given.ndim - n_dims :]:
            op.freeze(axis)
        for out in op.outputs:
            op.give(out, [*axes[: given.ndim - n_dims], *([None] * n_dims)], is_whole=False)

    return rule


def _pad(op: Op) -> None:
    """Positions that are put in can never go; those that are cut off drop out."""
    given, out = op.tensor("self"), op.outputs[0]
    axes: list[Axis] = list(op.axes(given))
    numbers = op.numbers("pad")
    for index in range(len(numbers) // 2):
        dim = given.ndim - 1 - index
        before, after = numbers[2 * index], numbers[2 * index + 1]
        axis = axes[dim]
        if axis is None or not axis.size or not (before or after):
            continue
        cut = axis[max(-before, 0) : axis.size - max(-after, 0)]
        zeros = [np.zeros(max(count, 0), np.int64) for count in (before, after)]
        axes[dim] = np.concatenate([zeros[0], cut, zeros[1]])
    op.give(out, axes, is_whole=False)


def _last_two(op: Op) -> None:
    given = op.inputs[0]
    for axis in op.axes(given)[-2:]:
        op.freeze(axis)
    op.give(op.outputs[0], op.axes(given), is_whole=False)


def _grid_sampler(op: Op) -> None:
    """Samples of every channel at positions that another tensor names."""
    given, grid, out = op.tensor("input"), op.tensor("grid"), op.outputs[0]
    batch, channels, *space = op.axes(given)
    for axis in (*space, op.axes(grid)[-1]):
        op.freeze(axis)
    batch = op.unify(batch, op.axes(grid)[0]) if given.shape[0] > 1 else batch
    op.give(out, [batch, channels, *op.axes(grid)[1:-1]], is_whole=False)


def _roi(op: Op) -> None:
    """Samples of every channel in boxes."""
    given, out = op.inputs[0], op.outputs[0]
    batch, channels, *space = op.axes(given)
    for axis in (batch, *space, *(axis for boxes in op.inputs[1:] for axis in op.axes(boxes))):
        op.freeze(axis)
    for out in op.outputs:
        op.give(out, [None, channels, None, None] if out.ndim == 4 else unlabelled(out), is_whole=False)


_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool")
_RESIZES = (
    *("upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear"),
    *("upsample_bicubic", "upsample_trilinear"),
)
_PADS = ("reflection_pad", "replication_pad")
_BY_DIMS: Mapping[str, Callable[[Op], None]] = {
    f"aten.{name}{n_dims}d{end}": _spatial(n_dims)
    for name in (*_POOLS, *_RESIZES, *_PADS, "fractional_max_pool", "max_unpool", "lp_pool")
    for n_dims in (1, 2, 3)
    for end in ("", "_with_indices", "_aa")
}
SPATIAL: Mapping[str, Callable[[Op], None]] = {
    **_BY_DIMS,
    **dict.fromkeys(
        ("aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", "aten._upsample_lanczos2d_aa"),
        _spatial(2),
    ),
    **dict.fromkeys(("aten.constant_pad_nd", "aten.pad"), _pad),
    **dict.fromkeys(("aten.tril", "aten.triu"), _last_two),
    **dict.fromkeys(
        ("aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.grid_sampler", "aten.cudnn_grid_sampler"),
        _grid_sampler,
    ),
    **dict.fromkeys(("torchvision.roi_align", "torchvision.roi_pool"), _roi),
}
