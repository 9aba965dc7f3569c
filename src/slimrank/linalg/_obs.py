# SPDX-License-Identifier: Apache-2.0
"""Block optimal brain surgeon: which units go first where several layers read them, and what that costs.

A unit is a set of input columns in each of its consumers. When the columns R of a consumer go, the others S
make up for them by least squares: with ``M = G^(1/2) W`` and invertible H,

    E(R) = 1/2 tr(M_R (H_RR - H_RS H_SS^-1 H_SR) M_R^T)

One unit J more costs ``1/2 tr(M_J K M_J^T)`` with ``K = ([H^-1]_JJ)^-1``, where H^-1 and M are those of what
is left: ``M -= M_J K [H^-1]_J:`` and ``H^-1 -= [H^-1]_:J K [H^-1]_J:`` after each removal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from slimrank._errors import OptionError, ShapeError
from slimrank.linalg._moments import Moments, is_rounding, ridge_of
from slimrank.linalg._psd import cholesky_psd, triangle_inverse, weighted_by

# Moments of so many columns are inverted as they are; to order the units of wider ones, their taps are
# averaged to one column per unit. More would be exact for more layers: 8192 columns take 0.5 GB per matrix.
_MAX_COLUMNS = 8192
# Above so many columns their taps are averaged as well, where units have several: on the trained layers where
# both were computed, such an order lost about 3 % more than the exact one, in a small part of its time.
MAX_EXACT_COLUMNS = 2560
# Rows per column up to which errors are computed from rows, at some counts, instead of from their moments.
_FEW_ROWS = 0.25
# Above so many columns of all consumers together, several units go between two scorings of all of them.
_EXACT_COLUMNS = 2048
# There 1/128 of the units that are left goes at a time: smaller shares are more exact and take longer.
_ROUNDS_PER_HALVING = 128
# Of more units than that, 1/32 goes at a time: each round takes as long as the matrices are large.
_MANY_UNITS, _ROUNDS_OF_MANY = 2048, 32
# Units that go together are chosen among the cheapest of the last scoring, four times as many. More would be
# closer to the exact order and take longer.
_CANDIDATES = 4
# Matrices are cut down to the units that are left once these are at most this share of what they hold. More
# would copy them more often, less would compute longer with units that are gone.
_SHRINK_AT = 0.75
# Columns that change an inverse in one product. While more wait, columns that are asked for cost more; a
# product of fewer is bound by memory.
_STEPS_AT_ONCE = 96
# Where rows are few and wide, errors are computed at so many counts, and interpolated between them.
_WIDE_COUNTS = 24
# Columns whose errors are computed together: more make larger products, and waste more above their diagonal.
_ERROR_COLUMNS = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Consumer:
    """A layer that reads the units.

    Attributes:
        weight: (O, D) float64 or float32.
        moments: of its D inputs, centred: its bias makes up for the means.
        root: (Q, Q) float64, G^(1/2), or (Q,) where it is diagonal, in an absolute scale: damages of several
            consumers are added. O is Q, or a multiple of it where each of the Q outputs has that many rows,
            one after the other.
        unit_of: (D,) int64, unit of each column; -1 where it always stays.
    """

    weight: Tensor
    moments: Moments
    root: Tensor
    unit_of: Tensor

    @property
    def weighted(self) -> Tensor:
        """(O, D): G^(1/2) W, dtype of the weight."""
        return weighted_by(self.root, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """In which order units go.

    Attributes:
        order: (U,) int64, the first to go first.
        errors: (U + 1,) float64, never falling: entry k is the summed damage ``1/2 tr(G dW H dW^T)`` once the
            first k are gone and the columns that stay are fitted anew.
    """

    order: Tensor
    errors: Tensor


def removal_order(
    consumers: Sequence[Consumer], n_units: int, *, ridge: float | None = None, batch: int | None = None
) -> Removal:
    """Greedy order by block optimal brain surgeon: each time the unit goes whose removal costs least.

    Units that no consumer reads cost nothing and go first; consumers with constant inputs are
    left out. For consumers of more than 2560 columns the order is approximate: their taps are averaged to one
    column per unit. Errors are exact for them too; where rows are few, at 24 counts, interpolated in between.

    Args:
        consumers: layers that read the units.
        n_units: how many units there are.
        ridge: share of the mean diagonal that is added to H for the fit; None for what fits the
            number of rows of each consumer. Errors are those on the un-ridged moments.
        batch: units that go between two scorings of all; None for 1 or, where there are more than 2048
            columns, 1/128 of what is left (1/32 of more than 2048 units). Units of one batch are chosen one
            after another too, each as exactly as before, but among the cheapest of the last scoring (four
            times as many).

    Returns:
        The order and its errors.

    Raises:
        OptionError: no unit, or a batch below 1.
        ShapeError: unit numbers that do not fit the columns or the units.

    Source: Hassibi & Stork 1993; blocks as in Kurtic et al. 2023, arXiv 2302.04089.
    """
    if batch is not None and batch < 1:
        raise OptionError(f"batch {batch}: at least one unit goes at a time; pass 1 or more")
    consumers = _checked_consumers(consumers, n_units)
    counting = _consumers_that_count(consumers)
    weighted = [consumer.weighted for consumer in counting]
    eliminations = [
        _elimination(consumer, values, n_units, _ridge_value(consumer.moments, ridge))
        for consumer, values in zip(counting, weighted, strict=True)
    ]
    n_columns = sum(elimination.n_columns for elimination in eliminations)

    def batch_size(n_left: int) -> int:
        if batch is not None:
            return batch
        rounds = _ROUNDS_PER_HALVING if n_units <= _MANY_UNITS else _ROUNDS_OF_MANY
        return max(1, n_left // rounds) if n_columns > _EXACT_COLUMNS else 1

    device = consumers[0].weight.device if consumers else torch.device("cpu")
    order = _remove_cheapest(eliminations, torch.arange(n_units, device=device), n_units, n_units, batch_size)
    del eliminations
    return Removal(order=order, errors=_errors_of_order(counting, weighted, order, ridge))


def removal_errors(consumers: Sequence[Consumer], order: Tensor, *, ridge: float | None = None) -> Tensor:
    """Errors of any order of removal.

    Args:
        consumers: layers that read the units.
        order: (U,) int64, every unit once, the first to go first.
        ridge: as in ``removal_order``.

    Returns:
        (U + 1,) float64, never falling, as in ``Removal``.

    Raises:
        OptionError: no unit.
        ShapeError: unit numbers that do not fit the columns or the units.
    """
    n_units = len(order)
    consumers = _checked_consumers(consumers, n_units)
    if not torch.equal(order.sort().values, torch.arange(n_units, device=order.device)):
        raise ShapeError(f"order does not hold each of {n_units} units once; pass a permutation of them")
    counting = _consumers_that_count(consumers)
    return _errors_of_order(counting, [consumer.weighted for consumer in counting], order, ridge)


def _errors_of_order(
    consumers: Sequence[Consumer], weighted: Sequence[Tensor], order: Tensor, ridge: float | None
) -> Tensor:
    """Summed errors of consumers that count, given their ``weighted``."""
    n_units = len(order)
    index_in_order = torch.empty_like(order)
    index_in_order[order] = torch.arange(n_units, device=order.device)
    total = torch.zeros(n_units + 1, dtype=torch.float64, device=order.device)
    for consumer, values in zip(consumers, weighted, strict=True):
        ridge_value = _ridge_value(consumer.moments, ridge)
        # Columns that always stay are treated as if they went last.
        turns = torch.where(consumer.unit_of < 0, n_units, index_in_order[consumer.unit_of.clamp_min(0)])
        if _is_identity(consumer.moments):
            errors = _identity_errors(values, turns, n_units)
        elif consumer.moments.rows is not None and _is_few(consumer.moments.rows):
            errors = _wide_errors(values, consumer.moments.rows, turns, n_units, ridge_value)
        else:
            errors = _nested_errors(consumer.moments, values, turns, n_units, ridge_value)
        # Errors without the ridge, of fits with it, need not rise with every unit.
        total += errors.clamp_min(0).cummax(0).values
    return total


class _Elimination:
    """What is left of one consumer while units go.

    Products that change the whole inverse wait until they are many, since a product of few columns takes as
    long as the matrix takes to be read; its blocks and columns that are asked for are brought up to date.

    Args:
        units: (U,) int64, the units it reads.
        n_units: how many units there are.
        inverse: (D, D), H^-1: columns unit by unit, then those that stay always. It is written on.
        weighted: (D, O), M^T. It is written on.
        unit_columns: columns of every unit.

    Attributes:
        units: as given.
        index_of: (all units,) int64, the index of each of them in ``units``; -1 for the others.
        n_columns: D.
    """

    def __init__(
        self, units: Tensor, n_units: int, inverse: Tensor, weighted: Tensor, unit_columns: int
    ) -> None:
        self.units = units
        self.index_of = _index_of(units, n_units)
        self.n_columns = len(inverse)
        self._unit_columns = unit_columns
        self._weighted = weighted
        # H^-1 of what is left is ``_inverse - _steps[:n]^T _steps[:n]``.
        self._inverse = inverse
        self._steps = inverse.new_empty(_STEPS_AT_ONCE, len(inverse))
        self._n_steps = 0
        shape = (len(units), unit_columns)
        size = len(units) * unit_columns
        # (U, unit_columns, unit_columns), always up to date.
        blocks: Tensor = inverse[:size, :size].unflatten(0, shape).unflatten(2, shape)
        self._blocks: Tensor = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def costs(self) -> Tensor:
        """(U,) float64: what the removal of each unit would cost; 0 for those that are gone."""
        n_units, n_columns = len(self.units), self._unit_columns
        weights = self._weighted[: n_units * n_columns]
        if n_columns == 1:
            norms: Tensor = torch.linalg.vector_norm(weights, dim=1).square()
            return norms / self._blocks.flatten() / 2
        by_unit: Tensor = weights.unflatten(0, (n_units, n_columns))
        inverted: Tensor = torch.linalg.inv(self._blocks)
        return (inverted * (by_unit @ by_unit.mT)).sum((1, 2)) / 2

    def remove(self, units: Tensor) -> None:
        """Takes units out, and fits the rest anew."""
        columns = self._columns(units)
        if not len(columns):
            return
        if self._n_steps + len(columns) > _STEPS_AT_ONCE:
            self._catch_up()
        waiting = self._steps[: self._n_steps]
        across = self._inverse[columns] - waiting[:, columns].T @ waiting  # (C, D)
        factor = cholesky_psd(across[:, columns])
        step = torch.linalg.solve_triangular(factor, across, upper=False)
        gone = torch.linalg.solve_triangular(factor, self._weighted[columns], upper=False)
        self._weighted.addmm_(step.T, gone, alpha=-1)
        size = len(self.units) * self._unit_columns
        by_unit = step[:, :size].unflatten(1, (len(self.units), self._unit_columns)).transpose(0, 1)
        self._blocks -= by_unit.mT @ by_unit
        if len(columns) > _STEPS_AT_ONCE:
            self._inverse.addmm_(step.T, step, alpha=-1)
        else:
            self._steps[self._n_steps : self._n_steps + len(columns)] = step
            self._n_steps += len(columns)
        # Rounding errors left there would grow; ones on the diagonal keep the blocks of units invertible.
        self._weighted[columns] = 0
        self._inverse[columns] = 0
        self._inverse[:, columns] = 0
        self._inverse[columns, columns] = 1
        self._steps[: self._n_steps, columns] = 0
        indices = self.index_of[units]
        self._blocks[indices[indices >= 0]] = torch.eye(
            self._unit_columns, dtype=self._blocks.dtype, device=self._blocks.device
        )

    def _catch_up(self) -> None:
        """Applies the products that wait."""
        steps = self._steps[: self._n_steps]
        self._inverse.addmm_(steps.T, steps, alpha=-1)
        self._n_steps = 0

    def restricted(self, units: Tensor) -> "_Elimination":
        """A copy for some of the units: exact for them as long as no other unit goes."""
        chosen = units[self.index_of[units] >= 0]
        return self._with_units(chosen, self._columns(chosen))

    def shrunk(self, is_gone: Tensor) -> "_Elimination":
        """The same without the columns of units that are gone, once these are many."""
        remaining = self.units[~is_gone[self.units]]
        if not len(self.units) or len(remaining) > _SHRINK_AT * len(self.units):
            return self
        n_unit_columns = len(self.units) * self._unit_columns
        always = torch.arange(n_unit_columns, self.n_columns, device=remaining.device)
        return self._with_units(remaining, torch.cat([self._columns(remaining), always]))

    def _with_units(self, units: Tensor, columns: Tensor) -> "_Elimination":
        inverse = _submatrix(self._inverse, columns)
        waiting = self._steps[: self._n_steps, columns]
        inverse.addmm_(waiting.T, waiting, alpha=-1)
        return _Elimination(units, len(self.index_of), inverse, self._weighted[columns], self._unit_columns)

    def _columns(self, units: Tensor) -> Tensor:
        indices = self.index_of[units]
        indices = indices[indices >= 0]
        within_unit = torch.arange(self._unit_columns, device=indices.device)
        return (indices[:, None] * self._unit_columns + within_unit).flatten()


def _remove_cheapest(
    eliminations: list[_Elimination],
    candidates: Tensor,
    n_units: int,
    count: int,
    batch_size: Callable[[int], int],
) -> Tensor:
    """Removes ``count`` of the candidates, cheapest first; ``eliminations`` change in place.

    Args:
        eliminations: of each consumer.
        candidates: (U,) int64, the units that may go.
        n_units: how many units there are.
        count: how many go.
        batch_size: number of units left -> how many go before all are scored again.

    Returns:
        (count,) int64, the units in the order in which they went.
    """
    is_gone = torch.zeros(n_units, dtype=torch.bool, device=candidates.device)
    is_excluded = torch.ones_like(is_gone)
    is_excluded[candidates] = False
    order: list[Tensor] = []
    n_gone, n_left = 0, len(candidates)
    while n_gone < count:
        costs = torch.zeros(n_units, dtype=torch.float64, device=candidates.device)
        for elimination in eliminations:
            costs.index_add_(0, elimination.units, elimination.costs())
        costs.masked_fill_(is_excluded, torch.inf)
        size = min(batch_size(n_left), count - n_gone)
        if size == 1:
            chosen = costs.argmin()[None]
        else:
            cheapest = costs.topk(min(_CANDIDATES * size, n_left), largest=False).indices
            copies = [elimination.restricted(cheapest) for elimination in eliminations]
            chosen = _remove_cheapest(copies, cheapest, n_units, size, lambda _: 1)
        for elimination in eliminations:
            elimination.remove(chosen)
        is_gone[chosen] = is_excluded[chosen] = True
        order.append(chosen)
        n_gone, n_left = n_gone + size, n_left - size
        if n_left:
            eliminations[:] = [elimination.shrunk(is_gone) for elimination in eliminations]
    return torch.cat(order) if order else candidates[:0]


def _elimination(consumer: Consumer, weighted: Tensor, n_units: int, ridge_value: float) -> _Elimination:
    weighted = weighted.T  # (D, O)
    units, columns = _columns_by_unit(consumer.unit_of, n_units)
    if _is_identity(consumer.moments):
        # Nothing makes up for a column, so that only the norm of all columns of a unit matters.
        squares = weighted.square().sum(1)
        norms = (
            torch.where(columns < 0, 0, squares[columns.clamp_min(0)]).sum(1, keepdim=True).sqrt().double()
        )
        inverse = torch.eye(len(units), dtype=norms.dtype, device=norms.device)
        return _Elimination(units, n_units, inverse, norms, 1)
    has_taps = columns.shape[1] > 1
    if len(weighted) > (MAX_EXACT_COLUMNS if has_taps else _MAX_COLUMNS):
        moment, weighted = _averaged_over_taps(consumer.moments, weighted, columns)
        unit_columns = 1
    else:
        unit_columns = columns.shape[1]
        always = (consumer.unit_of < 0).nonzero().flatten()
        moment, weighted = _in_order_of(
            torch.cat([columns.flatten(), always]), _dense(consumer.moments), weighted.double()
        )
    moment.diagonal().add_(ridge_value)
    # Only products of columns matter: a triangle with the same ones is smaller.
    if weighted.shape[1] > len(weighted):
        weighted = torch.linalg.qr(weighted.T, mode="r").R.T.contiguous()
    inverse = torch.cholesky_inverse(cholesky_psd(moment))
    return _Elimination(units, n_units, inverse, weighted.contiguous(), unit_columns)


def _columns_by_unit(unit_of: Tensor, n_units: int) -> tuple[Tensor, Tensor]:
    """Units that have columns, (U,), and their columns, (U, n_columns), -1 where a unit has fewer."""
    columns = unit_of.argsort(stable=True)
    columns = columns[int((unit_of < 0).sum()) :]
    sizes = torch.bincount(unit_of[columns], minlength=n_units)
    units = sizes.nonzero().flatten()
    n_columns = int(sizes.max()) if n_units else 0
    within = torch.arange(len(columns), device=columns.device) - (sizes.cumsum(0) - sizes)[unit_of[columns]]
    table = columns.new_full((len(units), n_columns), -1)
    table[_index_of(units, n_units)[unit_of[columns]], within] = columns
    return units, table


def _index_of(units: Tensor, n_units: int) -> Tensor:
    """(n_units,) int64: the index of every unit in ``units``; -1 where it is not among them."""
    index_of = torch.full((n_units,), -1, dtype=torch.int64, device=units.device)
    index_of[units] = torch.arange(len(units), device=units.device)
    return index_of


def _in_order_of(columns: Tensor, moment: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Moments and weights of some columns, in that order; -1 makes a column of zeros without covariances."""
    is_missing = columns < 0
    moment_rows, weight_rows = _submatrix(moment, columns.clamp_min(0)), weighted[columns.clamp_min(0)]
    if is_missing.any():
        moment_rows[is_missing] = 0
        moment_rows[:, is_missing] = 0
        moment_rows.diagonal()[is_missing] = moment.diagonal().mean()
        weight_rows[is_missing] = 0
    return moment_rows, weight_rows


def _averaged_over_taps(moments: Moments, weighted: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """One column per unit: moments averaged over taps, and weights with the same products over all taps."""
    size, n_taps = columns.shape
    moment = torch.zeros(size, size, dtype=torch.float64, device=columns.device)
    product = torch.zeros_like(moment)
    for tap in columns.T:
        has_column = tap >= 0
        weight_rows = weighted[tap[has_column]]
        index = has_column.nonzero().flatten()
        product[index[:, None], index] += weight_rows @ weight_rows.T
        tap_moments = moments.restricted(tap[has_column])  # (U, U) at most: one column per unit
        moment[index[:, None], index] += _dense(tap_moments)
    return moment / n_taps, cholesky_psd(product)


def _nested_errors(
    moments: Moments, weighted: Tensor, turns: Tensor, n_units: int, ridge_value: float
) -> Tensor:
    """Errors of every count from one factorisation.

    With columns in the order in which they go, the last first, ``H = L L^T``, what is lost with the trailing
    columns R is ``1/2 |(M L)_R|^2``, and the change of the weight is ``(M L)_R (L^-T)_R^T``: from its square
    follows how much of that belongs to the ridge, which errors leave out.
    """
    columns = turns.argsort(descending=True, stable=True)
    # Of wide layers in float32, which is faster: errors are right to 1e-4 of each.
    dtype = torch.float64 if len(columns) <= MAX_EXACT_COLUMNS else torch.float32
    moment = _submatrix(_dense(moments, dtype), columns)
    moment.diagonal().add_(ridge_value)
    factor = cholesky_psd(moment)
    # At 8192 columns each matrix takes 0.25 GB.
    del moment
    images = weighted[:, columns].to(dtype) @ factor  # (O, D)
    losses = images.square().sum(0, dtype=torch.float64)
    if ridge_value > 0:
        inverse = triangle_inverse(factor)
        del factor
        losses -= ridge_value * _trailing_squares(images, inverse)
    return _errors_by_count(losses / 2, turns[columns], n_units)


def _trailing_squares(images: Tensor, inverse: Tensor) -> Tensor:
    """What each column adds to the square of the change ``images_R inverse_R`` over the trailing columns R.

    Args:
        images: (O, D).
        inverse: (D, D), lower triangular.

    Returns:
        (D,).
    """
    squares = images.new_empty(len(inverse))
    change = torch.zeros_like(images)
    for start in reversed(range(0, len(inverse), _ERROR_COLUMNS)):
        end = min(start + _ERROR_COLUMNS, len(inverse))
        block, rows, behind = images[:, start:end], inverse[start:end, :end], change[:, :end]
        within = (rows @ rows.T) * (block.T @ block)
        # Each column adds its square, and twice its product with what stands behind it.
        squares[start:end] = within.diagonal() + 2 * within.triu(1).sum(1)
        squares[start:end] += 2 * ((block.T @ behind) * rows).sum(1)
        behind.addmm_(block, rows)
    return squares


def _identity_errors(weighted: Tensor, turns: Tensor, n_units: int) -> Tensor:
    """Errors without moments: nothing makes up for a column."""
    return _errors_by_count(weighted.double().square().sum(0) / 2, turns, n_units)


def _errors_by_count(losses: Tensor, turns: Tensor, n_units: int) -> Tensor:
    """(n_units + 1,): entry k is what the columns of the first k units lose together."""
    by_turn = torch.zeros(n_units + 1, dtype=losses.dtype, device=losses.device)
    by_turn.index_add_(0, turns, losses)
    errors = torch.zeros_like(by_turn)
    errors[1:] = by_turn[:-1].cumsum(0)
    return errors


def _wide_errors(weighted: Tensor, rows: Tensor, turns: Tensor, n_units: int, ridge_value: float) -> Tensor:
    """Errors where rows are few and wide, by the smaller side, at some counts.

    With ``P = M_R X_R^T`` and ``A = X_S X_S^T / n``, the error of the outputs is ``r P (A + r I)^-1``.
    """
    n_rows = len(rows)
    staying = torch.zeros(n_rows, n_rows, dtype=torch.float64, device=rows.device)
    for columns in (turns == n_units).nonzero().flatten().split(_MAX_COLUMNS):
        staying += _row_products(rows[:, columns].double())
    counts = torch.linspace(0, n_units, min(n_units, _WIDE_COUNTS) + 1).round().long().tolist()
    # From the last count backwards, columns that stay are added and never taken away: no cancellation.
    removed = torch.zeros(len(weighted), n_rows, dtype=torch.float64, device=rows.device)
    for columns in (turns < n_units).nonzero().flatten().split(_MAX_COLUMNS):
        removed += weighted[:, columns] @ rows[:, columns].to(weighted.dtype).T
    errors = [0.0] * len(counts)
    for index in range(len(counts) - 1, 0, -1):
        ridged = staying / n_rows
        ridged.diagonal().add_(ridge_value)
        differences = torch.cholesky_solve(removed.T, cholesky_psd(ridged)) * ridge_value
        errors[index] = float(differences.square().sum()) / n_rows / 2
        returning = ((turns < counts[index]) & (turns >= counts[index - 1])).nonzero().flatten()
        for columns in returning.split(_MAX_COLUMNS):
            values = rows[:, columns].double()
            staying += _row_products(values)
            removed -= weighted[:, columns] @ values.to(weighted.dtype).T
    return _interpolated(counts, errors, n_units).to(rows.device)


def _interpolated(counts: Sequence[int], values: Sequence[float], n_units: int) -> Tensor:
    result = torch.zeros(n_units + 1, dtype=torch.float64)
    for (low, high), (start, end) in zip(pairwise(counts), pairwise(values), strict=True):
        result[low : high + 1] = torch.linspace(start, end, high - low + 1, dtype=torch.float64)
    return result


def _is_few(rows: Tensor) -> bool:
    """Whether errors at some counts from the rows take less time than all of them from their moments."""
    n_rows, n_columns = rows.shape
    return n_columns > _MAX_COLUMNS or (n_columns > MAX_EXACT_COLUMNS and n_rows <= _FEW_ROWS * n_columns)


def _row_products(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _submatrix(matrix: Tensor, columns: Tensor) -> Tensor:
    return matrix.index_select(0, columns).index_select(1, columns)


def _consumers_that_count(consumers: Sequence[Consumer]) -> list[Consumer]:
    """Consumers that read units and have no constant inputs."""
    return [
        consumer
        for consumer in consumers
        if not is_rounding(consumer.moments.mean_diagonal, consumer.moments.mean)
        and bool((consumer.unit_of >= 0).any())
    ]


def _is_identity(moments: Moments) -> bool:
    return moments.matrix is None and moments.rows is None


def _dense(moments: Moments, dtype: torch.dtype = torch.float64) -> Tensor:
    """A copy of H as a matrix: (D, D)."""
    if moments.matrix is not None:
        return moments.matrix.to(dtype, copy=True)
    if moments.rows is None:
        return torch.eye(len(moments.mean), dtype=dtype, device=moments.mean.device)
    rows = moments.rows.to(dtype)
    return rows.T @ rows / moments.n_rows


def _ridge_value(moments: Moments, ridge: float | None) -> float:
    """What the ridge adds to the diagonal."""
    if _is_identity(moments):
        return 0.0
    share = ridge_of(moments.n_rows, len(moments.mean)) if ridge is None else ridge
    return share * moments.mean_diagonal


def _checked_consumers(consumers: Sequence[Consumer], n_units: int) -> list[Consumer]:
    """The consumers, ``unit_of`` on the device of the weight."""
    if n_units < 1:
        raise OptionError(f"{n_units} units: there is nothing to order; pass 1 or more")
    for index, consumer in enumerate(consumers):
        n_columns = consumer.weight.shape[1]
        if consumer.unit_of.shape != (n_columns,) or len(consumer.moments.mean) != n_columns:
            raise ShapeError(
                f"consumer {index}: unit_of is {tuple(consumer.unit_of.shape)} and its moments have "
                f"{len(consumer.moments.mean)} columns, but the weight has {n_columns}; "
                "give one unit per column"
            )
        if n_columns and not -1 <= int(consumer.unit_of.min()) <= int(consumer.unit_of.max()) < n_units:
            raise ShapeError(
                f"consumer {index}: unit_of reaches from {int(consumer.unit_of.min())} to "
                f"{int(consumer.unit_of.max())}; give -1 or 0..{n_units - 1}"
            )
    return [replace(consumer, unit_of=consumer.unit_of.to(consumer.weight.device)) for consumer in consumers]
