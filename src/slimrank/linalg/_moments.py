# SPDX-License-Identifier: Apache-2.0
"""Second moments of the rows that reach a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from slimrank._errors import ShapeError

# The ridge where there are enough rows: less would amplify noise along directions in which inputs hardly
# vary, more would ignore what was measured.
_BASE_RIDGE = 1e-3
# The ridge with very few rows: the identity then weighs as much as the moments do.
_MAX_RIDGE = 1.0
# How many rows per column are enough for the smallest ridge.
_ROWS_PER_COLUMN = 10
# Second moments up to the square of so many roundings of the mean are rounding; see ``is_rounding``.
_ROUNDINGS = 4
# Rows are stored as they come until there are half as many as columns: so few are smaller than their moments,
# and products with them faster. Of narrow rows the moments are small anyway.
_FEW_ROWS, _NARROW = 0.5, 1024
# Columns up to which both halves of a symmetric product are computed: smaller products would save no time.
_GRAM_BLOCK = 256
# Rows that are summed in float32 before the sums are added up in float64; as many as the rows are wide, where
# that is more. More would leave the cache, fewer would spend the time on additions.
_MIN_ROWS_TOGETHER = 2048
# Of wide rows, those that come few at a time wait until there are a quarter as many as columns: to add to a
# large matrix takes as long as to multiply so many rows.
_WAITING = 0.25


def ridge_of(n_rows: int, n_columns: int) -> float:
    """Share of the mean diagonal that is added to a second moment before it is inverted.

    With ten rows a column the moments are trusted; below, the ridge grows in proportion, and the fit falls
    back towards the weights alone.

    Args:
        n_rows: rows that were summed.
        n_columns: width of the rows.

    Returns:
        1e-3 to 1.
    """
    lack = _ROWS_PER_COLUMN * n_columns / max(n_rows, 1)
    return min(_BASE_RIDGE * max(1.0, lack), _MAX_RIDGE)


def is_rounding(mean_diagonal: float, mean: Tensor) -> bool:
    """Whether values vary by no more than rounding: they are summed in float32.

    Args:
        mean_diagonal: of their centred second moment.
        mean: (D,) of the values.

    Returns:
        Whether the moment is below what float32 holds in full, or hardly differs from a constant.
    """
    numbers = torch.finfo(torch.float32)
    rounding = float((_ROUNDINGS * numbers.eps * mean.double()).square().mean()) if len(mean) else 0.0
    return mean_diagonal <= max(numbers.tiny, rounding)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Mean and centred second moment of rows, as a matrix or, where rows are few and wide, as the rows.

    Columns may fall into groups, as those of a grouped convolution do: of the second moment H there are only
    the blocks on the diagonal then, one for each group. Elsewhere it counts as zero.

    Attributes:
        mean: (D,) float64.
        matrix: (D, D) float64, of more than 1024 columns float32; of G > 1 groups their blocks,
            (G, D/G, D/G); or None.
        rows: (S, D) float32 or float64, centred, or None. Without matrix and rows the moments are the
            identity.
        n_rows: S; 0 for the identity.
        n_groups: G, of equally many columns, which lie side by side.
    """

    mean: Tensor
    matrix: Tensor | None
    rows: Tensor | None
    n_rows: int
    n_groups: int = 1

    @classmethod
    def identity(cls, width: int, device: torch.device) -> "Moments":
        """Moments of inputs about which nothing is known: plain, unweighted decompositions."""
        mean = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(mean=mean, matrix=None, rows=None, n_rows=0)

    @property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal."""
        if self.matrix is not None:
            return float(self.matrix.diagonal(dim1=-2, dim2=-1).mean())
        if self.rows is None:
            return 1.0
        return float(self.rows.double().square().sum() / (self.n_rows * len(self.mean)))

    @property
    def parts(self) -> tuple["Moments", ...]:
        """Moments of the columns of each group."""
        if self.n_groups == 1:
            return (self,)
        means = self.mean.chunk(self.n_groups)
        rows = (None,) * self.n_groups if self.rows is None else self.rows.chunk(self.n_groups, dim=1)
        matrices = (None,) * self.n_groups if self.matrix is None else self.matrix.unbind()
        return tuple(
            Moments(mean=mean, matrix=matrix, rows=part, n_rows=self.n_rows)
            for mean, matrix, part in zip(means, matrices, rows, strict=True)
        )

    def times(self, left: Tensor) -> Tensor:
        """``left @ H`` for ``left`` (M, D), in its dtype."""
        if self.n_groups > 1:
            return torch.cat([part.times(columns) for part, columns in self._with_parts(left)], dim=1)
        if self.matrix is not None:
            return self._times_matrix(left)
        if self.rows is None:
            return left
        rows = self.rows.to(left.dtype)
        return (left @ rows.T) @ rows / self.n_rows

    def gram(self, left: Tensor) -> Tensor:
        """``left @ H @ left.T`` for ``left`` (M, D): (M, M), in its dtype."""
        if self.n_groups > 1:
            return torch.stack([part.gram(columns) for part, columns in self._with_parts(left)]).sum(0)
        if self.matrix is not None:
            return self._times_matrix(left) @ left.T
        projected = self.on_rows(left)
        return left @ left.T if projected is None else projected @ projected.T

    def on_rows(self, left: Tensor) -> Tensor | None:
        """(M, S) in its dtype, ``P`` with ``P P^T = left @ H @ left.T``; None where there are no rows."""
        if self.rows is None or self.n_groups > 1:
            return None
        projected: Tensor = left @ self.rows.to(left.dtype).T / sqrt(self.n_rows)
        return projected

    def diagonal_of(self, left: Tensor) -> Tensor:
        """Diagonal of ``left @ H @ left.T`` for ``left`` (M, D): (M,), in its dtype."""
        if self.n_groups > 1:
            return torch.stack([part.diagonal_of(columns) for part, columns in self._with_parts(left)]).sum(0)
        if self.matrix is not None:
            return (self._times_matrix(left) * left).sum(1)
        if self.rows is None:
            return left.square().sum(1)
        return (left @ self.rows.to(left.dtype).T).square().sum(1) / self.n_rows

    def _with_parts(self, left: Tensor) -> list[tuple["Moments", Tensor]]:
        """The moments of each group, and its columns of (M, D)."""
        return list(zip(self.parts, left.chunk(self.n_groups, dim=1), strict=True))

    def _times_matrix(self, left: Tensor) -> Tensor:
        """``left @ matrix``, multiplied in float32 where one of them is, in the dtype of ``left``."""
        if self.matrix is None:
            raise TypeError("these moments have no matrix")
        dtype = torch.float32 if torch.float32 in (left.dtype, self.matrix.dtype) else left.dtype
        return (left.to(dtype) @ self.matrix.to(dtype)).to(left.dtype)

    def about_zero(self) -> "Moments":
        """Second moments of the same rows about zero instead of their mean: for a fit without a bias."""
        if self.n_groups > 1:
            return _joined([part.about_zero() for part in self.parts])
        return Moments(
            mean=torch.zeros_like(self.mean),
            matrix=None if self.matrix is None else self.matrix + self.mean.outer(self.mean).to(self.matrix),
            rows=None if self.rows is None else self.rows + self.mean.to(self.rows.dtype),
            n_rows=self.n_rows,
        )

    def restricted(self, columns: Tensor) -> "Moments":
        """Moments of some of the columns.

        Args:
            columns: (D',) int64; of several groups ascending, equally many of each that has any left.

        Raises:
            ShapeError: groups of unequal width would be left.
        """
        columns = columns.to(self.mean.device)
        if self.n_groups > 1:
            return self._restricted_in_groups(columns)
        return Moments(
            mean=self.mean[columns],
            matrix=None if self.matrix is None else self.matrix[columns][:, columns],
            rows=None if self.rows is None else self.rows[:, columns],
            n_rows=self.n_rows,
        )

    def _restricted_in_groups(self, columns: Tensor) -> "Moments":
        width = len(self.mean) // self.n_groups
        inside = [columns[columns // width == group] - group * width for group in range(self.n_groups)]
        counts = {len(part) for part in inside if len(part)}
        if len(counts) > 1:
            raise ShapeError(
                f"columns of {self.n_groups} groups: {', '.join(str(len(part)) for part in inside)} of them "
                "would stay; keep equally many of each group"
            )
        staying = zip(self.parts, inside, strict=True)
        return _joined([part.restricted(chosen) for part, chosen in staying if len(chosen)])

    def block(self, columns: Tensor) -> "Moments":
        """Moments of a few of the columns, (D',) int64, as a matrix where there are rows."""
        restricted = self.restricted(columns)
        if restricted.rows is None:
            return restricted
        if restricted.n_groups > 1:
            return _joined([part.block(torch.arange(len(part.mean))) for part in restricted.parts])
        rows, n_rows = restricted.rows.double(), restricted.n_rows
        return Moments(mean=restricted.mean, matrix=rows.T @ rows / n_rows, rows=None, n_rows=n_rows)

    def ridged(self, ridge: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """``H + ridge * mean_diagonal * I`` as a matrix (D, D) of that dtype."""
        if self.n_groups > 1:
            raise ShapeError(f"moments of {self.n_groups} groups: each has a ridge of its own; take parts")
        if self.matrix is not None:
            matrix = self.matrix.to(dtype, copy=True)
        elif self.rows is not None:
            matrix = gram(self.rows.to(dtype)).div_(self.n_rows)
        else:
            return torch.eye(len(self.mean), dtype=dtype, device=self.mean.device)
        # A layer with constant inputs has no moments: the identity then stands for "weights alone".
        scale = ridge * self.mean_diagonal
        matrix.diagonal().add_(scale if scale > 0 else 1.0)
        return matrix


def _joined(parts: Sequence[Moments]) -> Moments:
    """Moments of several groups as one; of one group as it is."""
    if len(parts) == 1:
        return parts[0]
    matrices = [part.matrix for part in parts if part.matrix is not None]
    rows = [part.rows for part in parts if part.rows is not None]
    return Moments(
        mean=torch.cat([part.mean for part in parts]),
        matrix=torch.stack(matrices) if matrices else None,
        rows=torch.cat(rows, dim=1) if rows else None,
        n_rows=parts[0].n_rows,
        n_groups=len(parts),
    )


def _in_groups(rows: Tensor, n_groups: int) -> Tensor:
    """(S, D) -> (G, S, D/G)."""
    return rows.view(len(rows), n_groups, -1).transpose(0, 1)


def gram(rows: Tensor) -> Tensor:
    """``rows.T @ rows``, the half below the diagonal copied from the one above it.

    Args:
        rows: (S, D).

    Returns:
        (D, D), dtype of the rows.
    """
    width = rows.shape[1]
    if width <= _GRAM_BLOCK:
        return rows.T @ rows
    half = width // 2
    left, right = rows[:, :half], rows[:, half:]
    product = rows.new_empty(width, width)
    product[:half, :half] = gram(left)
    product[half:, half:] = gram(right)
    product[:half, half:] = left.T @ right
    product[half:, :half] = product[:half, half:].T
    return product


def _column_sums(rows: Tensor) -> Tensor:
    """(D,) float64 sums of (S, D) rows: a product, which is faster than a sum over the first dimension."""
    return (rows.new_ones(1, len(rows)) @ rows)[0].double()


class MomentSums:
    """Running sums from which moments are made, in float64; of second moments of wide rows in float32.

    Rows are shifted by the mean of the first ones: sums of squares of large means would cancel badly.

    Args:
        width: D.
        keep_rows: store the rows themselves instead of their (D, D) sum, for rows that are few and wide.
            Where it is False, rows are stored only as long as there are less than half as many as columns.
        other_width: width O of a second set of rows, whose covariance with the first is wanted; 0 for none.
        n_groups: G, that columns fall into, and those of the second set: only sums inside of these are kept.
    """

    def __init__(
        self, width: int, *, keep_rows: bool = False, other_width: int = 0, n_groups: int = 1
    ) -> None:
        self._width = width
        self._n_groups = n_groups
        width //= n_groups
        self._block_width = width
        self._other_width = other_width
        self._most_stored = None if keep_rows else int(_FEW_ROWS * width) if width > _NARROW else 0
        self._stored_rows: list[Tensor] | None = None if self._most_stored == 0 else []
        self._stored_others: list[Tensor] = []
        is_wide = width > _NARROW
        self._most_waiting = int(_WAITING * width) if is_wide else 0
        # Half the memory, and errors far below what the ridge changes.
        self._dtype = torch.float32 if is_wide else torch.float64
        self._waiting: list[tuple[Tensor, Tensor | None]] = []
        self._shift: Tensor | None = None
        self._other_shift: Tensor | None = None
        self._sum = torch.zeros(self._width, dtype=torch.float64)
        self._other_sum = torch.zeros(other_width, dtype=torch.float64)
        self._squares: Tensor | None = None
        self._cross: Tensor | None = None
        self.n_rows = 0

    def add(self, rows: Tensor, other: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            rows: (S, D), any floating dtype.
            other: (S, O) rows that belong to them, where ``other_width`` was given.
        """
        if len(rows) == 0:
            return
        if self._shift is None:
            self._shift = rows.detach().float().mean(0)
            self._sum = self._sum.to(rows.device)
            self._other_sum = self._other_sum.to(rows.device)
        # Some rows at a time, which stay in the cache.
        together = max(_MIN_ROWS_TOGETHER, self._block_width)
        for start in range(0, len(rows), together):
            part = slice(start, start + together)
            shifted = rows.detach()[part].float() - self._shift
            self._add_shifted(shifted, None if other is None else other.detach()[part].float())

    def _add_shifted(self, shifted: Tensor, other: Tensor | None) -> None:
        self.n_rows += len(shifted)
        self._sum += _column_sums(shifted)
        if other is not None:
            other = self._shifted_other(other)
        if self._stored_rows is None:
            self._add_products(shifted, other)
            return
        self._stored_rows.append(shifted)
        if other is not None:
            self._stored_others.append(other)
        if self._most_stored is not None and self.n_rows > self._most_stored:
            self._sum_stored(self._stored_rows)

    def _add_products(self, shifted: Tensor, other: Tensor | None) -> None:
        self._waiting.append((shifted, other))
        if sum(len(rows) for rows, _ in self._waiting) >= self._most_waiting:
            self._sum_waiting()

    def _sum_waiting(self) -> None:
        """Adds the products of rows that wait."""
        if not self._waiting:
            return
        rows = torch.cat([rows for rows, _ in self._waiting])
        others = [other for _, other in self._waiting if other is not None]
        self._waiting = []
        self._add_squares(rows)
        if others:
            self._add_cross(rows, torch.cat(others))

    def _add_squares(self, shifted: Tensor) -> None:
        if self._n_groups > 1:
            parts = _in_groups(shifted, self._n_groups)
            product = parts.mT @ parts
        else:
            product = gram(shifted)
        if self._squares is None:
            self._squares = product.to(self._dtype)
        else:
            self._squares += product

    def _sum_stored(self, stored: list[Tensor]) -> None:
        """Replaces stored rows by their sums."""
        self._stored_rows = None
        self._add_products(torch.cat(stored), torch.cat(self._stored_others) if self._stored_others else None)
        self._stored_others = []

    def _shifted_other(self, other: Tensor) -> Tensor:
        if self._other_shift is None:
            self._other_shift = other.mean(0)
        other = other - self._other_shift
        self._other_sum += _column_sums(other)
        return other

    def _add_cross(self, shifted: Tensor, other: Tensor) -> None:
        product = self._cross_products(other, shifted)
        if self._cross is None:
            self._cross = product.to(self._dtype)
        else:
            self._cross += product

    def _cross_products(self, other: Tensor, rows: Tensor) -> Tensor:
        """(O, D), of several groups (G, O/G, D/G)."""
        if self._n_groups == 1:
            return other.T @ rows
        return _in_groups(other, self._n_groups).mT @ _in_groups(rows, self._n_groups)

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two vectors, in the same shape."""
        if self._n_groups == 1:
            return left.outer(right)
        return left.view(self._n_groups, -1, 1) * right.view(self._n_groups, 1, -1)

    def _less_outer(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if self._n_groups == 1:
            # Without a copy as large as the products.
            return products.addr_(left, right, alpha=-1)
        return products.sub_(self._outer(left, right))

    def moments(self) -> Moments:
        """Mean and centred second moment of all rows so far; zeros where that is rounding."""
        moments = self._moments()
        if not is_rounding(moments.mean_diagonal, moments.mean):
            return moments
        # What is left is noise, and no longer positive semi-definite.
        return replace(
            moments,
            matrix=None if moments.matrix is None else torch.zeros_like(moments.matrix),
            rows=None if moments.rows is None else torch.zeros_like(moments.rows),
        )

    def _moments(self) -> Moments:
        self._sum_waiting()
        shift = self._shift if self._shift is not None else self._sum
        n_rows = max(self.n_rows, 1)
        offset = self._sum / n_rows
        mean = shift.double() + offset
        if self._stored_rows is not None:
            rows = torch.cat(self._stored_rows) if self._stored_rows else self._sum.new_zeros(0, self._width)
            rows = rows - offset.to(rows.dtype)
            return Moments(mean=mean, matrix=None, rows=rows, n_rows=n_rows, n_groups=self._n_groups)
        squares = self._squares if self._squares is not None else self._outer(self._sum, self._sum)
        offset = offset.to(squares.dtype)
        matrix = self._less_outer(squares / n_rows, offset, offset)
        return Moments(mean=mean, matrix=matrix, rows=None, n_rows=n_rows, n_groups=self._n_groups)

    def cross(self) -> tuple[Tensor, Tensor]:
        """Centred covariance with the other rows, and their mean.

        Returns:
            (O, D) float64, of more than 1024 columns float32, zero where outputs and inputs are not of the
            same group; and (O,) float64.
        """
        if self._other_shift is None:
            raise TypeError("no other rows were added")
        self._sum_waiting()
        n_rows = max(self.n_rows, 1)
        offset, other_offset = self._sum / n_rows, self._other_sum / n_rows
        mean = self._other_shift.double() + other_offset
        if self._stored_rows is not None:
            rows, other = torch.cat(self._stored_rows), torch.cat(self._stored_others)
            product = self._cross_products(other.to(self._dtype), rows.to(self._dtype))
        else:
            product = self._cross if self._cross is not None else self._outer(other_offset, offset) * 0
        centred = self._less_outer(product / n_rows, other_offset.to(product), offset.to(product))
        return centred if self._n_groups == 1 else torch.block_diag(*centred), mean
