# SPDX-License-Identifier: Apache-2.0
"""Rules of operations that only arrange numbers: reshaping, cutting, joining, repeating."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from slimrank.channels.trace._labels import ANY, Axis
from slimrank.channels.trace._ops import Op, expanded, unlabelled

# Labels of a merged dimension at most (16 MB as int64); larger ones are frozen.
_MOST_LABELS = 1 << 21


def _reshape(op: Op) -> None:
    """Dimensions are matched in the smallest blocks that hold equally many numbers."""
    (given, *_), (out, *_) = op.inputs, op.outputs
    if given.dtype.itemsize != out.dtype.itemsize or not out.numel():
        op.give_up()
        return
    axes: list[Axis] = [None] * out.ndim
    dims: list[tuple[int, ...]] = [()] * out.ndim
    for olds, news in _blocks(given.shape, out.shape):
        old = [(op.axes(given)[dim], given.shape[dim]) for dim in olds]
        for new, axis in zip(news, _regroup(op, old, [out.shape[dim] for dim in news]), strict=True):
            axes[new], dims[new] = axis, olds
    op.give(out, axes, dims)


def _regroup(op: Op, old: Sequence[tuple[Axis, int]], sizes: Sequence[int]) -> list[Axis]:
    if len(old) == len(sizes) == 1 or not old:
        return [axis for axis, _ in old] or [None] * len(sizes)
    total = int(np.prod([size for _, size in old]))
    if total > _MOST_LABELS and any(axis is not None for axis, _ in old):
        for axis, _ in old:
            op.freeze(axis, f"{total} numbers are too many to follow")
        return [None] * len(sizes)
    rest = op.merge(old)
    axes = []
    for size in sizes[:-1]:
        total //= size
        first, rest = op.split(rest, size, total)
        axes.append(first)
    return [*axes, rest]


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Dimensions, those of size 1 left out, in blocks of as many numbers."""
    olds = [(dim, size) for dim, size in enumerate(old) if size != 1]
    news = [(dim, size) for dim, size in enumerate(new) if size != 1]
    while olds:
        left, right = [olds.pop(0)], [news.pop(0)]
        n_left, n_right = left[0][1], right[0][1]
        while n_left != n_right:
            if n_left < n_right:
                left.append(olds.pop(0))
                n_left *= left[-1][1]
            else:
                right.append(news.pop(0))
                n_right *= right[-1][1]
        yield tuple(dim for dim, _ in left), tuple(dim for dim, _ in right)


def _arrange(op: Op, order: Sequence[int]) -> None:
    axes = op.axes(op.inputs[0])
    op.give(op.outputs[0], [axes[dim] for dim in order], [(dim,) for dim in order])


def _permute(op: Op) -> None:
    ndim = op.outputs[0].ndim
    _arrange(op, [dim % ndim for dim in op.numbers("dims")])


def _transpose(op: Op) -> None:
    ndim = op.outputs[0].ndim
    order = list(range(ndim))
    if ndim and "dim0" in op.given:
        first, second = op.number("dim0") % ndim, op.number("dim1") % ndim
        order[first], order[second] = order[second], order[first]
    else:
        order.reverse()
    if op.inputs[0] is op.outputs[0]:
        # In place: the labels known of it are those from before.
        op.give_up()
        return
    _arrange(op, order)


def _unsqueeze(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    if given is out:
        op.give_up()
        return
    new_dim = op.number("dim") % out.ndim
    axes = list(op.axes(given))
    dims: list[tuple[int, ...]] = [(dim,) for dim in range(given.ndim)]
    axes.insert(new_dim, None)
    dims.insert(new_dim, ())
    op.give(out, axes, dims)


def _squeeze(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    if given is out:
        op.give_up()
        return
    asked = op.numbers("dim") if "dim" in op.given else list(range(given.ndim))
    gone = {dim % given.ndim for dim in asked if given.ndim and given.shape[dim] == 1}
    kept = [dim for dim in range(given.ndim) if dim not in gone]
    op.give(out, [op.axes(given)[dim] for dim in kept], [(dim,) for dim in kept])


def _expand(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    axes, dims = _from_the_right(op, given, out, expanded)
    op.give(out, axes, dims)


def _repeat(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]

    def repeated(axis: Axis, old: int, new: int) -> Axis:
        return expanded(axis, old, new) if axis is None or not axis.size else np.tile(axis, new // old)

    axes, dims = _from_the_right(op, given, out, repeated)
    op.give(out, axes, dims)


def _from_the_right(
    op: Op, given: Tensor, out: Tensor, change: Callable[[Axis, int, int], Axis]
) -> tuple[list[Axis], list[tuple[int, ...]]]:
    """Labels after every dimension was changed; what stands before the first dimension is new."""
    lead = out.ndim - given.ndim
    axes: list[Axis] = [ANY if size > 1 else None for size in out.shape[:lead]]
    for axis, old, new in zip(op.axes(given), given.shape, out.shape[lead:], strict=True):
        axes.append(change(axis, old, new))
    return axes, [*([()] * lead), *((dim,) for dim in range(given.ndim))]


def _slice(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    dim = op.number("dim") % given.ndim
    size, length, step = given.shape[dim], out.shape[dim], op.number("step", 1)
    start = op.number("start")
    start = min(max(start + size if start < 0 else start, 0), size)
    axis = op.axes(given)[dim]
    if axis is not None and axis.size and length < size:
        if step > 1 and size % step == 0 and length == size // step:
            op.labels.couple(np.ascontiguousarray(axis.reshape(-1, step).T).reshape(-1), step, op.why)
        elif step == 1 and length and size % length == 0 and start % length == 0:
            op.labels.couple(axis, size // length, op.why)
        axis = axis[start : start + (length - 1) * step + 1 : step] if length else None
        if axis is not None:
            op.labels.cuts.append(axis)
    _give_cut(op, given, out, dim, axis)


def _give_cut(op: Op, given: Tensor, out: Tensor, dim: int, axis: Axis) -> None:
    axes = list(op.axes(given))
    axes[dim] = axis
    is_whole = out.shape[dim] == given.shape[dim]
    op.give(out, axes, [(d,) for d in range(given.ndim)], is_whole=is_whole)


def _split(op: Op) -> None:
    given = op.tensor("self")
    dim = op.number("dim") % given.ndim
    axis = op.axes(given)[dim]
    sizes = [out.shape[dim] for out in op.outputs]
    if axis is not None and axis.size and len(sizes) > 1 and len(set(sizes)) == 1:
        op.labels.couple(axis, len(sizes), op.why)
    start = 0
    for out, size in zip(op.outputs, sizes, strict=True):
        part = axis if axis is None or not axis.size else axis[start : start + size]
        start += size
        if part is not None and part.size and len(set(sizes)) > 1:
            op.labels.cuts.append(part)
        _give_cut(op, given, out, dim, part)


def _glu(op: Op) -> None:
    """The first half, gated by the second."""
    given = op.tensor("self")
    axes = list(op.axes(given))
    dim = op.number("dim", -1) % given.ndim
    axis = axes[dim]
    if axis is not None and axis.size:
        op.labels.couple(axis, 2, op.why)
        axes[dim] = axis[: axis.size // 2]
    op.give(op.outputs[0], axes, is_whole=False)


def _select(op: Op) -> None:
    """One index of a dimension, or every one alone."""
    given = op.tensor("self")
    dim = op.number("dim") % given.ndim
    op.freeze(op.axes(given)[dim])
    kept = [d for d in range(given.ndim) if d != dim]
    for out in op.outputs:
        op.give(out, [op.axes(given)[d] for d in kept], [(d,) for d in kept], is_whole=len(op.outputs) == 1)


def _cat(op: Op) -> None:
    out = op.outputs[0]
    # Empty vectors are allowed beside anything.
    parts = [t for t in op.tensors("tensors") if t is not None and (t.ndim == out.ndim and t.numel())]
    if not parts:
        op.give(out, unlabelled(out))
        return
    dim = op.number("dim") % out.ndim
    axes = list(op.axes(parts[0]))
    for part in parts[1:]:
        for d, axis in enumerate(op.axes(part)):
            if d != dim and out.shape[d] > 1:
                axes[d] = op.unify(axes[d], axis)
    axes[dim] = _joined([(op.axes(part)[dim], part.shape[dim]) for part in parts])
    op.give(out, axes, is_whole=False)


def _joined(parts: Sequence[tuple[Axis, int]]) -> Axis:
    """Labels one after the other; where there are none, what never goes."""
    if all(axis is None or not axis.size for axis, _ in parts):
        return None if any(axis is None for axis, _ in parts) else ANY
    return np.concatenate(
        [axis if axis is not None and axis.size else np.zeros(size, np.int64) for axis, size in parts]
    )


def _pack_padded(op: Op) -> None:
    """Samples and steps become rows, and how many samples there are at every step."""
    given, (out, sizes) = op.tensor("input"), op.outputs
    samples, steps, *rest = op.axes(given)
    for axis in (samples, steps):
        op.freeze(axis)
    op.give(out, [None, *rest], [(), *((d,) for d in range(2, given.ndim))], is_whole=False)
    op.give(sizes, unlabelled(sizes), [()])


def _stack(op: Op) -> None:
    out = op.outputs[0]
    parts = [t for t in op.tensors("tensors") if t is not None]
    dim = op.number("dim") % out.ndim
    axes = list(op.axes(parts[0]))
    for part in parts[1:]:
        axes = [op.unify(a, b) for a, b in zip(axes, op.axes(part), strict=True)]
    axes.insert(dim, None)
    op.give(out, axes, [(d,) if d < dim else (d - 1,) if d > dim else () for d in range(out.ndim)])


def _flip(op: Op) -> None:
    given = op.tensor("self")
    axes = list(op.axes(given))
    for dim in op.numbers("dims"):
        axis = axes[dim % given.ndim]
        axes[dim % given.ndim] = None if axis is None else axis[::-1].copy()
    op.give(op.outputs[0], axes)


def _roll(op: Op) -> None:
    given = op.tensor("self")
    for dim in op.numbers("dims") or range(given.ndim):
        op.freeze(op.axes(given)[dim])
    op.give(op.outputs[0], op.axes(given))


def _as_strided(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    is_same = given.shape == out.shape and given.stride() == out.stride()
    if is_same and given.storage_offset() == out.storage_offset():
        op.give(out, op.axes(given))
    else:
        op.give_up()


def _unfold(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    dim = op.number("dimension") % given.ndim
    op.freeze(op.axes(given)[dim])
    axes = list(op.axes(given))
    axes[dim] = None
    op.give(out, [*axes, None], [*((d,) for d in range(given.ndim)), ()], is_whole=False)


def _channel_shuffle(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    axes = list(op.axes(given))
    size, groups = given.shape[1], op.number("groups")
    outer, inner = op.split(axes[1], groups, size // groups)
    axes[1] = op.merge([(inner, size // groups), (outer, groups)])
    op.give(out, axes)


def _pixel_shuffle(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    *lead, channels, height, width = op.axes(given)
    count = out.shape[-3]
    outer, inner = op.split(channels, count, given.shape[-3] // count)
    for axis in (inner, height, width):
        op.freeze(axis)
    op.give(out, [*lead, outer, None, None], is_whole=False)


def _pixel_unshuffle(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    *lead, channels, height, width = op.axes(given)
    for axis in (height, width):
        op.freeze(axis)
    op.give(out, [*lead, _repeated(channels, out.shape[-3] // given.shape[-3]), None, None], is_whole=False)


def _im2col(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    *lead, channels, height, width = op.axes(given)
    for axis in (height, width):
        op.freeze(axis)
    op.give(out, [*lead, _repeated(channels, out.shape[-2] // given.shape[-3]), None], is_whole=False)


def _col2im(op: Op) -> None:
    given, out = op.tensor("self"), op.outputs[0]
    *lead, columns, positions = op.axes(given)
    outer, inner = op.split(columns, out.shape[-3], given.shape[-2] // out.shape[-3])
    for axis in (inner, positions):
        op.freeze(axis)
    op.give(out, [*lead, outer, None, None], is_whole=False)


def _repeated(axis: Axis, count: int) -> Axis:
    return axis if axis is None or not axis.size else np.repeat(axis, count)


def _view_as_real(op: Op) -> None:
    given = op.tensor("self")
    op.give(op.outputs[0], [*op.axes(given), None], [*((d,) for d in range(given.ndim)), ()])


def _view_as_complex(op: Op) -> None:
    axes = op.axes(op.tensor("self"))
    op.freeze(axes[-1])
    op.give(op.outputs[0], axes[:-1], [(d,) for d in range(len(axes) - 1)])


_TABLE: Mapping[str, Callable[[Op], None]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy"), _reshape),
    **dict.fromkeys(("flatten", "unflatten", "view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("permute",), _permute),
    **dict.fromkeys(("transpose", "t", "numpy_T", "swapaxes"), _transpose),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "repeat": _repeat,
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    **dict.fromkeys(("chunk", "unsafe_chunk", "tensor_split"), _split),
    "glu": _glu,
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    "_pack_padded_sequence": _pack_padded,
    "flip": _flip,
    "roll": _roll,
    **dict.fromkeys(("as_strided",), _as_strided),
    "unfold": _unfold,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "im2col": _im2col,
    "col2im": _col2im,
    "view_as_real": _view_as_real,
    "view_as_complex": _view_as_complex,
}
VIEWS: Mapping[str, Callable[[Op], None]] = {f"aten.{name}": rule for name, rule in _TABLE.items()}
