# SPDX-License-Identifier: Apache-2.0
"""Rules of look-ups: what is looked up by number may not lose an index, the rest of a row may."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Op


def _embedding(op: Op) -> None:
    weight, indices = op.tensor("weight"), op.tensor("indices")
    rows, channels = op.axes(weight)
    op.freeze(rows)
    uses = op.traced.uses
    for origin in op.traced.origins(weight) or ():
        uses.inside.update((origin.name, dim) for dim in origin.dims[0])
        uses.linked.update((origin.name, dim) for dim in origin.dims[1])
    op.give(op.outputs[0], [*op.axes(indices), channels], [*([()] * indices.ndim), (1,)], is_whole=False)


def _index(op: Op) -> None:
    """Advanced indexing: the dimensions that are indexed make way for those of the indices."""
    given, out = op.tensor("self"), op.outputs[0]
    indices = op.tensors("indices")
    # A mask takes as many dimensions as it has.
    indexed_dims: list[int] = []
    used: list[Tensor] = []
    dim = 0
    for index in indices:
        width = index.ndim if index is not None and index.dtype in _MASKS else 1
        if index is not None:
            indexed_dims += range(dim, dim + width)
            used.append(index)
        dim += width
    for indexed in indexed_dims:
        op.freeze(op.axes(given)[indexed])
    has_mask = any(index.dtype in _MASKS for index in used)
    n_new = 1 if has_mask else max((index.ndim for index in used), default=0)
    new: list[Axis] = [None] * n_new
    if not has_mask:
        new = _broadcast(op, used, n_new)
    else:
        for index in used:
            for axis in op.axes(index):
                op.freeze(axis)
    kept = [(op.axes(given)[d], d) for d in range(given.ndim) if d not in indexed_dims]
    is_together = bool(indexed_dims) and indexed_dims == list(
        range(indexed_dims[0], indexed_dims[0] + len(indexed_dims))
    )
    # Torch puts the new dimensions where the indexed ones stood, or first where these do not stand together.
    lead = indexed_dims[0] if is_together else 0
    axes = [*(axis for axis, _ in kept[:lead]), *new, *(axis for axis, _ in kept[lead:])]
    dims = [*((d,) for _, d in kept[:lead]), *([()] * n_new), *((d,) for _, d in kept[lead:])]
    if len(axes) != out.ndim:
        axes, dims = [None] * out.ndim, [()] * out.ndim
    op.give(out, axes, dims, is_whole=False)


def _broadcast(op: Op, used: list[Tensor], n_new: int) -> list[Axis]:
    axes: list[Axis] = []
    for back in range(n_new, 0, -1):
        met = [op.axes(index)[-back] for index in used if index.ndim >= back and index.shape[-back] > 1]
        axis = met[0] if met else None
        for other in met[1:]:
            axis = op.unify(axis, other)
        axes.append(axis)
    return axes


def _index_put(op: Op) -> None:
    given, values = op.tensor("self"), op.tensor("values")
    indices = op.tensors("indices")
    axes = list(op.axes(given))
    n_indexed = sum(index.ndim if index.dtype in _MASKS else 1 for index in indices if index is not None)
    is_leading = all(index is not None for index in indices)
    for axis in axes[: n_indexed if is_leading else given.ndim]:
        op.freeze(axis)
    for back in range(1, values.ndim + 1):
        axis = op.axes(values)[-back]
        if is_leading and back <= given.ndim - n_indexed and values.shape[-back] == given.shape[-back] > 1:
            axes[-back] = op.unify(axes[-back], axis)
        else:
            op.freeze(axis)
    op.give(op.outputs[0], axes, is_whole=False)


def _gather(op: Op) -> None:
    """Along one dimension by number, along the others index by index."""
    given, index, out = op.tensor("self"), op.tensor("index"), op.outputs[0]
    dim = op.number("dim") % max(given.ndim, 1)
    axes: list[Axis] = []
    for d, size in enumerate(out.shape):
        axis, index_axis = op.axes(given)[d], op.axes(index)[d]
        if d == dim or given.shape[d] != size:
            op.freeze(axis)
            axes.append(index_axis)
        else:
            axes.append(op.unify(axis, index_axis) if size > 1 else None)
    op.give(out, axes, is_whole=False)


def _scatter(op: Op) -> None:
    given, index, out = op.tensor("self"), op.tensor("index"), op.outputs[0]
    source = op.optional("src")
    dim = op.number("dim") % max(given.ndim, 1)
    axes = list(op.axes(given))
    for d, size in enumerate(given.shape):
        for other in (index, source):
            if other is None or other.ndim != given.ndim:
                continue
            if d != dim and other.shape[d] == size > 1:
                axes[d] = op.unify(axes[d], op.axes(other)[d])
            else:
                op.freeze(op.axes(other)[d])
        if d == dim or index.shape[d] != size:
            op.freeze(axes[d])
    op.give(out, axes, is_whole=False)


def _index_select(op: Op) -> None:
    given, index, out = op.tensor("self"), op.tensor("index"), op.outputs[0]
    dim = op.number("dim") % max(given.ndim, 1)
    axes = list(op.axes(given))
    if given.ndim:
        op.freeze(axes[dim])
        axes[dim] = op.axes(index)[0] if index.ndim else None
    op.give(out, axes, is_whole=False)


# Index tensors of these dtypes choose by yes or no, and index as many dimensions as they have.
_MASKS = frozenset({torch.bool, torch.uint8})
_TABLE: Mapping[str, Callable[[Op], None]] = {
    "embedding": _embedding,
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_index_put_impl", "_unsafe_index_put"), _index_put),
    **dict.fromkeys(("gather", "take_along_dim"), _gather),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scatter),
    "index_select": _index_select,
    **dict.fromkeys(("nonzero", "masked_select", "unique", "_unique2"), Op.give_up),
}
INDEXING: Mapping[str, Callable[[Op], None]] = {f"aten.{name}": rule for name, rule in _TABLE.items()}
