# SPDX-License-Identifier: Apache-2.0
"""Rules of products: what is summed over belongs together, and what the MACs go with."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

from torch import Tensor

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Op, Origin, unlabelled, whole_numel

# Rows of the operands of torch's grouped product begin at multiples of these.
_ALIGNED_BYTES = 16


def _multiply(
    op: Op, a: Tensor, b: Tensor, *, batch: Sequence[tuple[int, int]], over: tuple[int, int]
) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """A product of two tensors that sums over one dimension of each.

    Args:
        op: the operation.
        a: one factor.
        b: the other.
        batch: pairs of dimensions, one of each factor, that both have.
        over: the dimension of each that is summed over.

    Returns:
        Labels of the batch dimensions, of what is left of ``a``, and of what is left of ``b``.
    """
    axes_a, axes_b = op.axes(a), op.axes(b)
    # Of each factor, the dimensions that are neither batch nor summed over.
    left = [
        [d for d in range(t.ndim) if d not in {pair[i] for pair in batch} | {over[i]}]
        for i, t in enumerate((a, b))
    ]
    both = [op.unify(axes_a[i], axes_b[j]) for i, j in batch]
    summed = op.unify(axes_a[over[0]], axes_b[over[1]])
    macs = a.numel() * prod(b.shape[d] for d in left[1])
    weight = _weight_of(op, a, b)
    if weight is None:
        op.traced.made(a)
        op.traced.made(b)
        op.traced.uses.sums.append(summed)
        op.product(macs, [*both, summed, *(axes_a[d] for d in left[0]), *(axes_b[d] for d in left[1])])
    else:
        which = 0 if weight is a else 1
        other, axes_other = (b, axes_b) if which == 0 else (a, axes_a)
        rows = [axes_other[d] for d in left[1 - which]]
        # A batch dimension that the weight was only expanded to is one more of rows.
        rows += [
            axes_other[pair[1 - which]]
            for pair in batch
            if not any(origin.dims[pair[which]] for origin in op.traced.origins(weight) or ())
        ]
        _freeze_rows(op, rows)
        op.traced.made(other)
        _use_weight(op, weight, over[which], macs)
    return both, [axes_a[d] for d in left[0]], [axes_b[d] for d in left[1]]


def _weight_of(op: Op, a: Tensor, b: Tensor) -> Tensor | None:
    """The factor that is computed from parameters alone; None where both are, or none is."""
    origins_a, origins_b = op.traced.origins(a), op.traced.origins(b)
    if bool(origins_a) != bool(origins_b):
        return a if origins_a else b
    if origins_a and origins_b:
        of_a, of_b = op.traced.is_of_module(origins_a), op.traced.is_of_module(origins_b)
        if of_a != of_b:
            return a if of_a else b
    return None


def _freeze_rows(op: Op, rows: Sequence[Axis]) -> None:
    module = op.traced.modules[-1] if op.traced.modules else ""
    for axis in rows:
        op.freeze(axis, f"its size is a number of rows of {module or 'a product'}")


def _use_weight(
    op: Op, weight: Tensor, over: int, macs: int, inside: Sequence[int] = (), *, is_linked: bool = True
) -> None:
    """Notes what a product does with a weight.

    Args:
        op: the operation.
        weight: the factor.
        over: its dimension that is summed over.
        macs: of the product.
        inside: its dimensions that hold no channels.
        is_linked: whether all that it makes belongs to one family.
    """
    uses = op.traced.uses
    origins = op.traced.origins(weight) or ()
    for origin in origins:
        uses.count[origin.name] += 1
        uses.read.update((origin.name, dim) for dim in origin.dims[over])
        uses.inside.update((origin.name, dim) for d in inside for dim in origin.dims[d])
        outputs = [d for d in range(weight.ndim) if d not in {over, *inside}]
        made = {(origin.name, dim) for d in outputs for dim in origin.dims[d]}
        uses.made.update(made)
        if is_linked:
            uses.linked.update(made)
    counted = _counted(op, origins, weight)
    if counted is None:
        op.product(macs, [axis for d, axis in enumerate(op.axes(weight)) if d not in inside])
    else:
        uses.macs[counted] += macs


def _counted(op: Op, origins: Sequence[Origin], weight: Tensor) -> str | None:
    """The parameter whose numbers are multiplied equally often, parameters before buffers."""
    stored = op.traced.stored
    whole = [o.name for o in origins if whole_numel(weight, stored[o.name], o)]
    return min(whole, key=lambda name: not stored[name].requires_grad) if whole else None


def _add(op: Op, out: Sequence[Axis], added: Tensor | None) -> list[Axis]:
    """What is added to a product stands for its last dimensions."""
    axes = list(out)
    if added is not None:
        op.traced.made(added)
        for back in range(1, added.ndim + 1):
            if added.shape[-back] > 1:
                axes[-back] = op.unify(axes[-back], op.axes(added)[-back])
    return axes


def _mm(op: Op) -> None:
    a, b = op.tensor("mat1" if "mat1" in op.given else "self"), op.tensor("mat2")
    _, rows, columns = _multiply(op, a, b, batch=[], over=(1, 0))
    _give(op, _add(op, [*rows, *columns], _added(op, a)), a, b)


def _bmm(op: Op) -> None:
    a = op.tensor("batch1" if "batch1" in op.given else "self")
    b = op.tensor("batch2" if "batch2" in op.given else "mat2")
    both, rows, columns = _multiply(op, a, b, batch=[(0, 0)], over=(2, 1))
    _give(op, _add(op, [*both, *rows, *columns], _added(op, a)), a, b)


def _grouped_mm(op: Op) -> None:
    """Rows in groups, each times a matrix of its own: (S, K) and (E, K, N), as experts are computed."""
    given, weight = (
        (op.tensor("input"), op.tensor("weight"))
        if "weight" in op.given
        else (
            op.tensor("self"),
            op.tensor("mat2"),
        )
    )
    out = op.outputs[0]
    if (given.ndim, weight.ndim) != (2, 3) or not op.traced.origins(weight):
        op.give_up()
        return
    axes, axes_w = op.axes(given), op.axes(weight)
    op.freeze(axes_w[0], "its size is a number of groups of rows, such as experts")
    op.unify(axes[1], axes_w[1])
    if op.name == "aten._grouped_mm":
        # Torch's kernel wants rows that begin at multiples of 16 bytes.
        step = _ALIGNED_BYTES // weight.element_size()
        for dim in (1, 2):
            if weight.shape[dim] % step == 0:
                _, inner = op.split(axes_w[dim], weight.shape[dim] // step, step)
                op.freeze(inner, f"torch's grouped product takes multiples of {step}")
    _freeze_rows(op, [axes[0]])
    op.traced.made(given)
    _use_weight(op, weight, 1, given.numel() * weight.shape[2], [0])
    made = _add(op, [axes[0], axes_w[2]], op.optional("bias") if "bias" in op.given else None)
    op.give(out, made, [()] * out.ndim, is_whole=False)


def _mv(op: Op) -> None:
    """A matrix or a vector times a vector; of two constants, what is left is a scale and not a layer."""
    a = op.tensor("mat" if "mat" in op.given else "self")
    b = op.tensor("vec" if "vec" in op.given else "other" if "other" in op.given else "tensor")
    if op.traced.origins(a) is not None and op.traced.origins(b) is not None:
        summed = op.unify(op.axes(a)[-1], op.axes(b)[-1])
        op.freeze(summed)
        rows = list(op.axes(a)[:-1])
    else:
        _, rows, _ = _multiply(op, a, b, batch=[], over=(a.ndim - 1, 0))
    _give(op, _add(op, rows, _added(op, a)), a, b)


def _added(op: Op, first: Tensor) -> Tensor | None:
    added = op.optional("self")
    return None if added is first or "self" not in op.given else added


def _linear(op: Op) -> None:
    given, weight = op.tensor("input"), op.tensor("weight")
    _, rows, columns = _multiply(op, given, weight, batch=[], over=(given.ndim - 1, weight.ndim - 1))
    _give(op, _add(op, [*rows, *columns], op.optional("bias")), given, weight)


def _give(op: Op, axes: Sequence[Axis], a: Tensor, b: Tensor) -> None:
    """The labels of a product; of two constants it carries the rows of one and the columns of the other."""
    out = op.outputs[0]
    op.give(out, axes, [()] * out.ndim, is_whole=False)
    first, second = op.traced.origins(a), op.traced.origins(b)
    if first is None or second is None:
        return
    rows, columns = a.ndim - 1, out.ndim - a.ndim + 1
    empty: tuple[tuple[int, ...], ...] = ((),) * out.ndim
    op.traced.give_origins(
        out,
        [
            *(Origin(o.name, (*o.dims[:rows], *empty[rows:]), is_whole=False) for o in first),
            *(
                Origin(
                    o.name,
                    (*empty[: out.ndim - columns], *o.dims[b.ndim - columns :][:columns]),
                    is_whole=False,
                )
                for o in second
                if columns == 1
            ),
        ],
    )


def _convolution(op: Op) -> None:
    given, weight, out = op.tensor("input"), op.tensor("weight"), op.outputs[0]
    groups = op.number("groups", 1)
    is_transposed = bool(op.given.get("transposed", False))
    axes, axes_w = op.axes(given), op.axes(weight)
    kernel = list(range(2, weight.ndim))
    for d in kernel:
        op.freeze(axes_w[d])
    _freeze_rows(op, [axes[0], *axes[2:]])
    macs = prod((given if is_transposed else out).shape[2:]) * given.shape[0] * weight.numel()
    read = 0 if is_transposed else 1
    if groups > 1:
        made = _grouped(op, given, weight, groups, is_transposed=is_transposed)
    else:
        summed = op.unify(axes[1], axes_w[read])
        made = axes_w[1 - read]
        if op.traced.origins(weight) is None:
            op.traced.uses.sums.append(summed)
    # A grouped kernel goes along with channels that others make.
    _use_weight(op, weight, read, macs, kernel, is_linked=groups == 1)
    bias = op.optional("bias")
    if bias is not None:
        op.traced.made(bias)
        made = op.unify(made, op.axes(bias)[0]) if out.shape[1] > 1 else None
    op.traced.made(given)
    op.give(out, [axes[0], made, *([None] * (out.ndim - 2))], [()] * out.ndim, is_whole=False)


def _grouped(op: Op, given: Tensor, weight: Tensor, groups: int, *, is_transposed: bool) -> Axis:
    """Channels in groups: whole groups on both sides, and the channels inside of each."""
    channels, axes_w = op.axes(given)[1], op.axes(weight)
    inside = given.shape[1] // groups
    outer, inner = op.split(channels, groups, inside)
    if is_transposed:
        # (C_in, C_out / groups): the first dimension is the input's, and carries the groups.
        op.unify(channels, axes_w[0])
        return op.merge([(outer, groups), (axes_w[1], weight.shape[1])])
    if inside > 1:
        op.unify(inner, axes_w[1])
    made, _ = op.split(axes_w[0], groups, weight.shape[0] // groups)
    op.unify(outer, made)
    return axes_w[0]


def _attention(op: Op) -> None:
    """Queries times keys, softmax over the keys, times values."""
    query, key, value = op.tensor("query"), op.tensor("key"), op.tensor("value")
    axes_q, axes_k, axes_v = op.axes(query), op.axes(key), op.axes(value)
    heads = _heads(op, axes_q[1], axes_k[1], query.shape[1], key.shape[1])
    heads = _heads(op, heads, axes_v[1], query.shape[1], value.shape[1])
    batch = op.unify(op.unify(axes_q[0], axes_k[0]), axes_v[0])
    width = op.unify(axes_q[3], axes_k[3])
    positions = op.unify(axes_k[2], axes_v[2])
    op.freeze(positions)
    mask = op.optional("attn_mask" if "attn_mask" in op.given else "attn_bias")
    if mask is not None:
        scores = [batch, heads, axes_q[2], positions]
        for back in range(1, mask.ndim + 1):
            if mask.shape[-back] > 1:
                op.unify(scores[-back], op.axes(mask)[-back])
    n_scores = prod(query.shape[:3]) * key.shape[2]
    op.traced.uses.sums.append(width)
    for size, axis in ((query.shape[3], width), (value.shape[3], axes_v[3])):
        op.product(n_scores * size, [batch, heads, axes_q[2], axis])
    for given in op.inputs:
        op.traced.made(given)
    for index, out in enumerate(op.outputs):
        axes = [batch, heads, axes_q[2], axes_v[3]] if index == 0 else unlabelled(out)
        op.give(out, axes, [()] * out.ndim, is_whole=False)


def _heads(op: Op, queries: Axis, keys: Axis, n_queries: int, n_keys: int) -> Axis:
    """Heads of the queries, of which each in turn takes several where there are fewer of keys."""
    if n_queries == n_keys:
        return op.unify(queries, keys)
    repeated = op.merge([(keys, n_keys), (None, n_queries // n_keys)]) if n_keys > 1 else None
    return op.unify(queries, repeated)


_TABLE: Mapping[str, Callable[[Op], None]] = {
    **dict.fromkeys(("mm", "addmm", "_addmm_activation", "_int_mm"), _mm),
    **dict.fromkeys(("bmm", "baddbmm"), _bmm),
    **dict.fromkeys(("mv", "addmv", "dot", "vdot"), _mv),
    "linear": _linear,
    "_grouped_mm": _grouped_mm,
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math",
            "scaled_dot_product_attention",
        ),
        _attention,
    ),
}
PRODUCTS: Mapping[str, Callable[[Op], None]] = {
    **{f"aten.{name}": rule for name, rule in _TABLE.items()},
    # Where transformers cannot use torch's.
    "transformers.grouped_mm_fallback": _grouped_mm,
}
