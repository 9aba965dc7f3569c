# SPDX-License-Identifier: Apache-2.0
"""Forms: the ways to split the kernel of a layer between factors, one row each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from slimrank.records import Call, Form, LayerSpec, Method, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class FormRow:
    """One way to split a kernel between two factors, or three.

    Attributes:
        form: its name in plans.
        method: the method that it belongs to.
        applies: whether a layer can take it.
        first_taps: number of kernel dimensions -> whether the first factor takes the taps of each; the second
            takes those of the others.
        is_closed: the second factor has one tap, so that the best pair of every rank has a closed form.
        has_third: a third factor without taps follows, and there are two ranks.
    """

    form: Form
    method: Method
    applies: Callable[[LayerSpec], bool]
    first_taps: Callable[[int], tuple[bool, ...]]
    is_closed: bool
    has_third: bool = False

    @property
    def works_on_rows(self) -> bool:
        """Whether it can be fitted where moments are stored as rows, since a matrix would not fit."""
        return self.is_closed or self.has_third

    @property
    def is_timed(self) -> bool:
        """Whether tables of latency know it: their formulas have one rank."""
        return not self.has_third

    def second_taps(self, n_dims: int) -> tuple[bool, ...]:
        """Kernel dimensions that the second factor takes."""
        return tuple(not is_taken for is_taken in self.first_taps(n_dims))


def _is_linear(spec: LayerSpec) -> bool:
    return spec.reads_last_dim


def _is_convolution(spec: LayerSpec) -> bool:
    return spec.kind in {"conv1d", "conv2d", "conv3d"}


def _has_taps(spec: LayerSpec) -> bool:
    # A 1x1 kernel has one factorisation; the other order of a strided one would only cost more.
    return _is_convolution(spec) and prod(spec.kernel) > 1


def _has_taps_in_2d(spec: LayerSpec) -> bool:
    return _has_taps(spec) and spec.kind == "conv2d" and spec.groups == 1


def _has_rows_and_columns(spec: LayerSpec) -> bool:
    return _is_convolution(spec) and spec.kind == "conv2d" and min(spec.kernel) > 1


def _all_dims(n_dims: int) -> tuple[bool, ...]:
    return (True,) * n_dims


def _no_dims(n_dims: int) -> tuple[bool, ...]:
    return (False,) * n_dims


def _rows_only(_n_dims: int) -> tuple[bool, ...]:
    return (True, False)


def _columns_only(_n_dims: int) -> tuple[bool, ...]:
    return (False, True)


# The order decides ties: of two forms with the same cost and damage, the upper one is taken.
_TABLE = (
    FormRow(form="linear", method="weight_svd", applies=_is_linear, first_taps=_all_dims, is_closed=True),
    FormRow(
        form="kxk_1x1", method="weight_svd", applies=_is_convolution, first_taps=_all_dims, is_closed=True
    ),
    FormRow(form="1x1_kxk", method="weight_svd", applies=_has_taps, first_taps=_no_dims, is_closed=False),
    FormRow(
        form="v_h",
        method="spatial_svd",
        applies=_has_rows_and_columns,
        first_taps=_rows_only,
        is_closed=False,
    ),
    FormRow(
        form="h_v",
        method="spatial_svd",
        applies=_has_rows_and_columns,
        first_taps=_columns_only,
        is_closed=False,
    ),
    FormRow(
        form="1x1_kxk_1x1",
        method="tucker2",
        applies=_has_taps_in_2d,
        first_taps=_no_dims,
        is_closed=False,
        has_third=True,
    ),
)
# Every form by its name.
FORM_ROWS: Mapping[Form, FormRow] = MappingProxyType({row.form: row for row in _TABLE})
# The forms of each method that replaces layers.
FORMS: Mapping[Method, tuple[Form, ...]] = MappingProxyType(
    {row.method: tuple(other.form for other in _TABLE if other.method == row.method) for row in _TABLE}
)


def forms_of(spec: LayerSpec, method: Method) -> tuple[Form, ...]:
    """The forms of a method that this layer can take.

    Args:
        spec: the layer.
        method: a name of ``slimrank.METHODS``.

    Returns:
        The forms, in the order in which ties are decided; () when the method does not apply.
    """
    return tuple(form for form in FORMS.get(method, ()) if FORM_ROWS[form].applies(spec))


def factor_taps(spec: LayerSpec, form: Form) -> tuple[int, int]:
    """How many taps of the kernel each of the first two factors has.

    Args:
        spec: the layer.
        form: how the pair is split.

    Returns:
        Taps of the first factor and of the second; their product is that of the kernel.
    """
    is_first = FORM_ROWS[form].first_taps(len(spec.kernel))
    first = prod(size for size, is_taken in zip(spec.kernel, is_first, strict=True) if is_taken)
    second = prod(size for size, is_taken in zip(spec.kernel, is_first, strict=True) if not is_taken)
    return first, second


def max_rank(spec: LayerSpec, form: Form) -> int:
    """The full rank of a form: there the factors are exact.

    Args:
        spec: the layer.
        form: how the kernel is split.

    Returns:
        The rank, at least 1; of each group of a grouped convolution, and of a form with three factors that
        between the last two.
    """
    c_out, c_in, *_ = spec.weight_shape
    first, second = factor_taps(spec, form)
    if FORM_ROWS[form].has_third:
        return min(c_out, c_in * first * second)
    return min(c_in * first, c_out // spec.groups * second)


def ranks_in_range(
    spec: LayerSpec, form: Form, ranks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest ``rank_in`` that goes with ranks of a form with three factors.

    Args:
        spec: the layer.
        form: how the kernel is split.
        ranks: (K,) int64, each at least 1.

    Returns:
        Two (K,) int64: below the lowest, the map between the last factors would not have that rank; above the
        highest, the map between the first two would not.
    """
    taps = prod(spec.kernel)
    return -(-ranks // taps), np.minimum(spec.weight_shape[1], ranks * taps)


def usual_ranks_in(spec: LayerSpec, form: Form, ranks: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The ``rank_in`` that goes with each rank where nothing was measured.

    Args:
        spec: the layer.
        form: how the kernel is split.
        ranks: (K,) int64, each at least 1.

    Returns:
        (K,) int64, the same share of the inputs as the rank is of the outputs; None for a form of two
        factors.
    """
    if not FORM_ROWS[form].has_third:
        return None
    c_out, c_in, *_ = spec.weight_shape
    return np.clip(-(-ranks * c_in // c_out), *ranks_in_range(spec, form, ranks))


def ranks_at(
    spec: LayerSpec,
    form: Form,
    ranks: NDArray[np.int64],
    ranks_in: NDArray[np.int64] | None,
    multiple: int,
) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    """Which ranks are multiples, and what then stands before them.

    Args:
        spec: the layer.
        form: how the kernel is split.
        ranks: (K,) int64.
        ranks_in: (K,) int64, what goes with each in a form with three factors; else None.
        multiple: at least 1.

    Returns:
        (K,) bool, and for those that are True ``ranks_in`` raised to a multiple; None where there are none.
    """
    good = ranks % multiple == 0
    if ranks_in is None:
        return good, None
    raised = -(-ranks_in // multiple) * multiple
    good &= raised <= ranks_in_range(spec, form, ranks)[1]
    return good, raised[good]


def rank_problem(spec: LayerSpec, setting: Setting) -> str | None:
    """What is wrong with the ranks of a setting; None where the layer has them.

    Args:
        spec: the layer.
        setting: for it; its form applies.

    Returns:
        Which rank is outside of what.
    """
    top = max_rank(spec, setting.form)
    if not 1 <= setting.rank <= top:
        return f"rank {setting.rank} is outside 1..{top}"
    if FORM_ROWS[setting.form].has_third:
        low, high = (int(end[0]) for end in ranks_in_range(spec, setting.form, np.array([setting.rank])))
        if setting.rank_in is None or not low <= setting.rank_in <= high:
            return f"rank_in {setting.rank_in} is outside {low}..{high} at rank {setting.rank}"
    return None


def least_shape(
    spec: LayerSpec, form: Form, ranks: NDArray[np.int64], ranks_in: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The fewest columns and rows of a weight that still has some ranks.

    Args:
        spec: the layer; its numbers of rows and columns do not matter.
        form: how the kernel is split.
        ranks: (K,) int64.
        ranks_in: (K,) int64, of a form with three factors.

    Returns:
        Two (K,) int64: columns, rows.
    """
    if ranks_in is not None:
        return ranks_in, ranks
    first, second = factor_taps(spec, form)
    return -(-ranks // first), -(-ranks // second)


def positions(spec: LayerSpec, shape: tuple[int, ...]) -> int:
    """Rows that a linear, or positions that a convolution, works on in a map of this shape."""
    lead, sizes = _lead_and_sizes(spec, shape)
    return prod(lead) * prod(sizes)


def positions_between(spec: LayerSpec, form: Form, call: Call) -> int:
    """Positions of the map between the first two factors, in one call of the layer.

    Along a dimension whose taps the first factor takes, the map has its final size already.
    """
    is_first = FORM_ROWS[form].first_taps(len(spec.kernel))
    if all(is_first):
        return positions(spec, call.output_shape)
    lead, sizes_in = _lead_and_sizes(spec, call.input_shape)
    _, sizes_out = _lead_and_sizes(spec, call.output_shape)
    sizes = (
        size_out if is_taken else size_in
        for size_in, size_out, is_taken in zip(sizes_in, sizes_out, is_first, strict=True)
    )
    return prod(lead) * prod(sizes)


def _lead_and_sizes(spec: LayerSpec, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Dimensions before the channels (batch, tokens of a linear), and sizes after them."""
    # Counted from the right: a sample may come without a batch dimension.
    first_size = len(shape) - len(spec.kernel)
    return shape[: first_size - 1], shape[first_size:]
