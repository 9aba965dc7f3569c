# SPDX-License-Identifier: Apache-2.0
"""Block optimal brain surgeon: which units go first where several layers read them, and what that costs.

A unit is a set of input columns in each of its consumers. When the columns R of a consumer go, the others S
make up for them by least squares: with ``M = G^(1/2) W`` and regular H,

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
from slimrank.linalg._moments import Moments, ridge_of
from slimrank.linalg._psd import cholesky_psd

# Matrices of so many columns are inverted as they are; wider ones are folded over the taps to choose by.
_MAX_COLUMNS = 8192
_EXACT_COLUMNS = 2048
_ROUNDS_PER_HALVING = 128
_CANDIDATES = 4
_SHRINK_AT = 0.75
_GRID = 24
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Consumer:
    """A layer that reads the units.

    Attributes:
        weight: (O, D) float64.
        moments: of its D inputs, centred: its bias makes up for the means.
        root: (Q, Q) float64, G^(1/2), in an absolute scale: damages of several consumers are added. O is Q,
            or a multiple where every one of Q outputs has as many rows, one after the other.
        unit_of: (D,) int64, unit of each column; -1 where it always stays.
    """

    weight: Tensor
    moments: Moments
    root: Tensor
    unit_of: Tensor

    @property
    def weighted(self) -> Tensor:
        """(O, D) float64: G^(1/2) W."""
        return (self.root @ self.weight.reshape(len(self.root), -1)).view(self.weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """In which order units go.

    Attributes:
        order: (U,) int64, the first to go first.
        errors: (U + 1,) float64, never falling: entry k is the summed damage ``1/2 tr(G dW H dW^T)`` once the
            first k are gone and the kept columns are fitted anew.
    """

    order: Tensor
    errors: Tensor


def removal_order(
    consumers: Sequence[Consumer], n_units: int, *, ridge: float | None = None, batch: int | None = None
) -> Removal:
    """Greedy order by block optimal brain surgeon: each time the unit goes whose removal costs least.

    Units that no consumer reads cost nothing and go first; consumers whose inputs never vary have no say.
    Consumers of more than 8192 columns are folded to choose by: their taps are averaged to one column per
    unit. Errors are exact for them too, at 24 counts, and interpolated in between.

    Args:
        consumers: layers that read the units.
        n_units: how many units there are.
        ridge: share of the mean diagonal that is added to H for the fit; None for what the rows of each
            consumer call for. Errors are those on the un-ridged moments.
        batch: units that go between two scorings of all; None for 1, where there are more than 2048 columns
            1/128 of what is left. Those of one batch are chosen one after another too, each as exactly as
            before, but among the cheapest of the last scoring (four times as many).

    Returns:
        The order and its errors.

    Raises:
        OptionError: no unit, or a batch below 1.
        ShapeError: unit numbers that do not fit the columns or the units.

    Source: Hassibi & Stork 1993; blocks as in Kurtic et al. 2023, arXiv 2302.04089.
    """
    if batch is not None and batch < 1:
        raise OptionError(f"batch {batch}: at least one unit goes at a time; pass 1 or more")
    consumers = _checked(consumers, n_units)
    left = _eliminations(consumers, n_units, ridge)
    columns = sum(len(part.inverse) for part in left)

    def step(alive: int) -> int:
        if batch is not None:
            return batch
        return max(1, alive // _ROUNDS_PER_HALVING) if columns > _EXACT_COLUMNS else 1

    device = consumers[0].weight.device if consumers else torch.device("cpu")
    order = _pick(left, torch.arange(n_units, device=device), n_units, n_units, step)
    return Removal(order=order, errors=removal_errors(consumers, order, ridge=ridge))


def removal_errors(consumers: Sequence[Consumer], order: Tensor, *, ridge: float | None = None) -> Tensor:
    """Errors of an order, however it was found.

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
    consumers = _checked(consumers, n_units)
    if not torch.equal(order.sort().values, torch.arange(n_units, device=order.device)):
        raise ShapeError(f"order does not hold each of {n_units} units once; pass a permutation of them")
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n_units, device=order.device)
    total = torch.zeros(n_units + 1, dtype=torch.float64, device=order.device)
    for consumer in _heard(consumers):
        added = _added(consumer.moments, ridge)
        # Columns that stay come as if they went last.
        goes = torch.where(consumer.unit_of < 0, n_units, rank[consumer.unit_of.clamp_min(0)])
        if _is_plain(consumer.moments):
            errors = _plain_errors(consumer, goes, n_units)
        elif len(consumer.unit_of) > _MAX_COLUMNS and consumer.moments.rows is not None:
            errors = _wide_errors(consumer, consumer.moments.rows, goes, n_units, added)
        else:
            errors = _nested_errors(consumer, goes, n_units, added)
        total += errors.clamp_min(0).cummax(0).values
    return total


@dataclass(slots=True, eq=False)
class _Elimination:
    """What is left of one consumer while units go.

    Attributes:
        units: (U,) int64, the units it reads.
        place: (all units,) int64, where each of them stands in ``units``; -1 for the others.
        inverse: (D, D), H^-1 of what is left: columns unit by unit, then those that stay always.
        weighted: (D, O), M^T.
        width: columns per unit.
    """

    units: Tensor
    place: Tensor
    inverse: Tensor
    weighted: Tensor
    width: int

    def costs(self) -> Tensor:
        """(U,) float64: what the removal of each unit would cost; 0 for those that are gone."""
        count, width = len(self.units), self.width
        size = count * width
        weights: Tensor = self.weighted[:size].unflatten(0, (count, width))
        if width == 1:
            norms: Tensor = weights.square().sum((1, 2))
            return norms / self.inverse.diagonal()[:size] / 2
        blocks = self.inverse[:size, :size].unflatten(0, (count, width)).unflatten(2, (count, width))
        # (width, width, U) -> (U, width, width)
        inverted: Tensor = torch.linalg.inv(blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        return (inverted * (weights @ weights.mT)).sum((1, 2)) / 2

    def remove(self, units: Tensor) -> None:
        """Takes units out, and fits the rest anew."""
        columns = self._columns(units)
        if not len(columns):
            return
        across = self.inverse[:, columns]
        factor = cholesky_psd(across[columns])
        step = torch.linalg.solve_triangular(factor, across.T, upper=False)  # (C, D)
        gone = torch.linalg.solve_triangular(factor, self.weighted[columns], upper=False)
        self.weighted.addmm_(step.T, gone, alpha=-1)
        self.inverse.addmm_(step.T, step, alpha=-1)
        # What roundings left of them would grow; the ones keep their blocks regular.
        self.weighted[columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0
        self.inverse[columns, columns] = 1

    def part(self, units: Tensor) -> "_Elimination":
        """A copy that knows of some units alone: right for them as long as no other goes."""
        held = units[self.place[units] >= 0]
        columns = self._columns(held)
        place = torch.full_like(self.place, -1)
        place[held] = torch.arange(len(held), device=held.device)
        return _Elimination(held, place, _square(self.inverse, columns), self.weighted[columns], self.width)

    def shrunk(self, is_gone: Tensor) -> "_Elimination":
        """Itself, without the columns of units that are gone once these are many."""
        held = self.units[~is_gone[self.units]]
        if len(held) > _SHRINK_AT * len(self.units):
            return self
        stays = torch.arange(len(self.units) * self.width, len(self.inverse), device=held.device)
        columns = torch.cat([self._columns(held), stays])
        place = torch.full_like(self.place, -1)
        place[held] = torch.arange(len(held), device=held.device)
        return _Elimination(held, place, _square(self.inverse, columns), self.weighted[columns], self.width)

    def _columns(self, units: Tensor) -> Tensor:
        places = self.place[units]
        places = places[places >= 0]
        taps = torch.arange(self.width, device=places.device)
        return (places[:, None] * self.width + taps).flatten()


def _pick(
    left: list[_Elimination], among: Tensor, n_units: int, count: int, step: Callable[[int], int]
) -> Tensor:
    """Removes so many of some units, cheapest first, and says in which order; ``left`` changes in place."""
    is_gone = torch.zeros(n_units, dtype=torch.bool, device=among.device)
    is_barred = torch.ones_like(is_gone)
    is_barred[among] = False
    order: list[Tensor] = []
    n_gone, n_alive = 0, len(among)
    while n_gone < count:
        costs = torch.zeros(n_units, dtype=torch.float64, device=among.device)
        for part in left:
            costs.index_add_(0, part.units, part.costs())
        costs.masked_fill_(is_barred, torch.inf)
        size = min(step(n_alive), count - n_gone)
        if size == 1:
            chosen = costs.argmin()[None]
        else:
            candidates = costs.topk(min(_CANDIDATES * size, n_alive), largest=False).indices
            parts = [part.part(candidates) for part in left]
            chosen = _pick(parts, candidates, n_units, size, lambda _: 1)
        for part in left:
            part.remove(chosen)
        is_gone[chosen] = is_barred[chosen] = True
        order.append(chosen)
        n_gone, n_alive = n_gone + size, n_alive - size
        if n_alive:
            left[:] = [part.shrunk(is_gone) for part in left]
    return torch.cat(order) if order else among[:0]


def _eliminations(consumers: Sequence[Consumer], n_units: int, ridge: float | None) -> list[_Elimination]:
    return [
        _elimination(consumer, n_units, _added(consumer.moments, ridge)) for consumer in _heard(consumers)
    ]


def _elimination(consumer: Consumer, n_units: int, added: float) -> _Elimination:
    weighted = consumer.weighted.T  # (D, O)
    units, columns = _table(consumer.unit_of, n_units)
    if _is_plain(consumer.moments):
        norms = weighted.square().sum(1)
        own = torch.where(columns < 0, 0, norms[columns.clamp_min(0)]).sum(1, keepdim=True).sqrt()
        inverse = torch.eye(len(units), dtype=own.dtype, device=own.device)
        return _Elimination(units, _places(units, n_units), inverse, own, 1)
    if len(weighted) > _MAX_COLUMNS:
        moment, weighted = _folded(consumer.moments, weighted, columns)
        width = 1
    else:
        width = columns.shape[1]
        stays = (consumer.unit_of < 0).nonzero().flatten()
        moment, weighted = _laid_out(
            _dense(consumer.moments), weighted, torch.cat([columns.flatten(), stays])
        )
    moment.diagonal().add_(added)
    if weighted.shape[1] > len(weighted):
        weighted = torch.linalg.qr(weighted.T, mode="r").R.T.contiguous()
    inverse = torch.cholesky_inverse(cholesky_psd(moment))
    return _Elimination(units, _places(units, n_units), inverse, weighted.contiguous(), width)


def _table(unit_of: Tensor, n_units: int) -> tuple[Tensor, Tensor]:
    """Units that have columns, and their columns: (U,) and (U, width), -1 where a unit has fewer."""
    columns = unit_of.argsort(stable=True)
    columns = columns[int((unit_of < 0).sum()) :]
    sizes = torch.bincount(unit_of[columns], minlength=n_units)
    units = sizes.nonzero().flatten()
    width = int(sizes.max()) if n_units else 0
    within = torch.arange(len(columns), device=columns.device) - (sizes.cumsum(0) - sizes)[unit_of[columns]]
    table = columns.new_full((len(units), width), -1)
    table[_places(units, n_units)[unit_of[columns]], within] = columns
    return units, table


def _places(units: Tensor, n_units: int) -> Tensor:
    place = torch.full((n_units,), -1, dtype=torch.int64, device=units.device)
    place[units] = torch.arange(len(units), device=units.device)
    return place


def _laid_out(moment: Tensor, weighted: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Moments and weights in the order of columns; -1 makes one that has nothing to do with the others."""
    missing = columns < 0
    ordered, own = _square(moment, columns.clamp_min(0)), weighted[columns.clamp_min(0)]
    if missing.any():
        ordered[missing] = 0
        ordered[:, missing] = 0
        ordered.diagonal()[missing] = moment.diagonal().mean()
        own[missing] = 0
    return ordered, own


def _folded(moments: Moments, weighted: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """One column per unit: moments averaged over taps, and weights with the same products over all taps."""
    size, width = columns.shape
    moment = torch.zeros(size, size, dtype=torch.float64, device=columns.device)
    product = torch.zeros_like(moment)
    for tap in columns.T:
        here = tap >= 0
        own = weighted[tap[here]]
        index = here.nonzero().flatten()
        product[index[:, None], index] += own @ own.T
        part = moments.restricted(tap[here])  # (U, U) at most: one column per unit
        moment[index[:, None], index] += _dense(part)
    return moment / width, cholesky_psd(product)


def _nested_errors(consumer: Consumer, goes: Tensor, n_units: int, added: float) -> Tensor:
    """Errors of every count from one factorisation.

    With columns in the order in which they go, the last first, ``H = L L^T``, what is lost with the trailing
    columns R is ``1/2 |(M L)_R|^2``, and the change of the weight is ``(M L)_R (L^-T)_R^T``: its square tells
    how much of that belongs to the ridge, which errors leave out.
    """
    columns = goes.argsort(descending=True, stable=True)
    moment = _square(_dense(consumer.moments), columns)
    moment.diagonal().add_(added)
    factor = cholesky_psd(moment)
    del moment
    images = consumer.weighted[:, columns] @ factor  # (O, D)
    losses = images.square().sum(0)
    if added > 0:
        eye = torch.eye(len(columns), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        del factor, eye
        losses -= added * _trailing_squares(images, inverse)
    return _summed(losses / 2, goes[columns], n_units)


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
    for start in reversed(range(0, len(inverse), _BLOCK)):
        end = min(start + _BLOCK, len(inverse))
        own, rows, behind = images[:, start:end], inverse[start:end, :end], change[:, :end]
        within = (rows @ rows.T) * (own.T @ own)
        # Each brings its own square, and twice its product with what stands behind it.
        squares[start:end] = within.diagonal() + 2 * within.triu(1).sum(1)
        squares[start:end] += 2 * ((own.T @ behind) * rows).sum(1)
        behind.addmm_(own, rows)
    return squares


def _plain_errors(consumer: Consumer, goes: Tensor, n_units: int) -> Tensor:
    """Errors without moments: nothing makes up for a column."""
    return _summed(consumer.weighted.square().sum(0) / 2, goes, n_units)


def _summed(losses: Tensor, goes: Tensor, n_units: int) -> Tensor:
    by_rank = torch.zeros(n_units + 1, dtype=losses.dtype, device=losses.device)
    by_rank.index_add_(0, goes, losses)
    errors = torch.zeros_like(by_rank)
    errors[1:] = by_rank[:-1].cumsum(0)
    return errors


def _wide_errors(consumer: Consumer, rows: Tensor, goes: Tensor, n_units: int, added: float) -> Tensor:
    """Errors where rows are few and wide, by the smaller side, at some counts.

    With ``P = M_R X_R^T`` and ``A = X_S X_S^T / n``, what is wrong in the outputs is ``r P (A + r I)^-1``.
    """
    n_rows = len(rows)
    weighted = consumer.weighted
    kept = torch.zeros(n_rows, n_rows, dtype=torch.float64, device=rows.device)
    for part in (goes == n_units).nonzero().flatten().split(_MAX_COLUMNS):
        kept += _outer(rows[:, part].double())
    counts = torch.linspace(0, n_units, min(n_units, _GRID) + 1).round().long().tolist()
    # From the last count backwards kept columns are added, not taken away: no cancellation.
    missed = torch.zeros(len(weighted), n_rows, dtype=torch.float64, device=rows.device)
    for part in (goes < n_units).nonzero().flatten().split(_MAX_COLUMNS):
        missed += weighted[:, part] @ rows[:, part].double().T
    found = [0.0] * len(counts)
    for index in range(len(counts) - 1, 0, -1):
        shifted = kept / n_rows
        shifted.diagonal().add_(added)
        wrong = torch.cholesky_solve(missed.T, cholesky_psd(shifted)) * added
        found[index] = float(wrong.square().sum()) / n_rows / 2
        back = ((goes < counts[index]) & (goes >= counts[index - 1])).nonzero().flatten()
        for part in back.split(_MAX_COLUMNS):
            own = rows[:, part].double()
            kept += _outer(own)
            missed -= weighted[:, part] @ own.T
    return _interpolated(counts, found, n_units).to(rows.device)


def _interpolated(counts: Sequence[int], values: Sequence[float], n_units: int) -> Tensor:
    result = torch.zeros(n_units + 1, dtype=torch.float64)
    for (low, high), (start, end) in zip(pairwise(counts), pairwise(values), strict=True):
        result[low : high + 1] = torch.linspace(start, end, high - low + 1, dtype=torch.float64)
    return result


def _outer(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _square(matrix: Tensor, columns: Tensor) -> Tensor:
    return matrix.index_select(0, columns).index_select(1, columns)


def _heard(consumers: Sequence[Consumer]) -> list[Consumer]:
    """Those that read units, from inputs that vary."""
    return [
        consumer
        for consumer in consumers
        if consumer.moments.mean_diagonal > 0 and bool((consumer.unit_of >= 0).any())
    ]


def _is_plain(moments: Moments) -> bool:
    return moments.matrix is None and moments.rows is None


def _dense(moments: Moments) -> Tensor:
    """A copy of H as a matrix: (D, D) float64."""
    if moments.matrix is not None:
        return moments.matrix.clone()
    if moments.rows is None:
        return torch.eye(len(moments.mean), dtype=torch.float64, device=moments.mean.device)
    rows = moments.rows.double()
    return rows.T @ rows / moments.n_rows


def _added(moments: Moments, ridge: float | None) -> float:
    """What the ridge adds to the diagonal."""
    if _is_plain(moments):
        return 0.0
    share = ridge_of(moments.n_rows, len(moments.mean)) if ridge is None else ridge
    return share * moments.mean_diagonal


def _checked(consumers: Sequence[Consumer], n_units: int) -> list[Consumer]:
    """The consumers, their unit numbers beside their weights."""
    if n_units < 1:
        raise OptionError(f"{n_units} units: there is nothing to order; pass 1 or more")
    for index, consumer in enumerate(consumers):
        width = consumer.weight.shape[1]
        if consumer.unit_of.shape != (width,) or len(consumer.moments.mean) != width:
            raise ShapeError(
                f"consumer {index}: unit_of is {tuple(consumer.unit_of.shape)} and its moments have "
                f"{len(consumer.moments.mean)} columns, but the weight has {width}; give one unit per column"
            )
        if width and not -1 <= int(consumer.unit_of.min()) <= int(consumer.unit_of.max()) < n_units:
            raise ShapeError(
                f"consumer {index}: unit_of reaches from {int(consumer.unit_of.min())} to "
                f"{int(consumer.unit_of.max())}; give -1 or 0..{n_units - 1}"
            )
    return [replace(one, unit_of=one.unit_of.to(one.weight.device)) for one in consumers]
