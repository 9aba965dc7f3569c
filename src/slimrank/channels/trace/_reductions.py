# SPDX-License-Identifier: Apache-2.0
"""Rules of sums, means, maxima, softmax and the like: what they run over may not lose an index."""

from collections.abc import Callable, Mapping

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Op


def _reduce(op: Op) -> None:
    given = op.inputs[0]
    over = _dims(op, given.ndim)
    for dim in over:
        op.freeze(op.axes(given)[dim])
    kept = [d for d in range(given.ndim) if d not in over]
    for out in op.outputs:
        if out.ndim == given.ndim:
            op.give(
                out, [None if d in over else axis for d, axis in enumerate(op.axes(given))], is_whole=False
            )
        else:
            op.give(out, [op.axes(given)[d] for d in kept], [(d,) for d in kept], is_whole=False)


def _along(op: Op) -> None:
    """Every index depends on the others of its dimension; the shape stays, or is cut along it."""
    given = op.inputs[0]
    over = _dims(op, given.ndim)
    axes: list[Axis] = list(op.axes(given))
    for dim in over:
        op.freeze(axes[dim])
    for out in op.outputs:
        same = zip(axes, out.shape, given.shape, strict=True)
        op.give(out, [axis if new == old else None for axis, new, old in same], is_whole=False)


def _dims(op: Op, ndim: int) -> set[int]:
    """Dimensions that are run over: all where none is named."""
    for name in ("dim", "axis", "dims"):
        if op.given.get(name) is not None:
            numbers = op.numbers(name)
            return {number % ndim for number in numbers} if numbers and ndim else set(range(ndim))
    # Without a dimension topk and sort take the last one, any and all the whole tensor.
    return {ndim - 1} if op.name in _LAST and ndim else set(range(ndim))


_LAST = frozenset({"aten.topk", "aten.sort", "aten.argsort", "aten.kthvalue", "aten.mode", "aten.msort"})
_REDUCING = (
    *("sum", "mean", "nansum", "nanmean", "amax", "amin", "aminmax", "max", "min", "prod", "any", "all"),
    *("argmax", "argmin", "norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "logsumexp"),
    *("median", "nanmedian", "mode", "kthvalue", "count_nonzero"),
)
_RUNNING = (
    *("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "cummax"),
    *("cummin", "logcumsumexp", "sort", "argsort", "topk", "_fft_c2c", "_fft_r2c", "_fft_c2r"),
)
REDUCTIONS: Mapping[str, Callable[[Op], None]] = {
    **{f"aten.{name}": _reduce for name in _REDUCING},
    **{f"aten.{name}": _along for name in _RUNNING},
}
