# SPDX-License-Identifier: Apache-2.0
"""Three factors of a kernel: its inputs and its outputs are projected, all taps stay between (Tucker-2).

``W[o, (i, s)] = sum_r sum_p A[o, r] C[r, p, s] P[p, i]``: 1x1, k x k, 1x1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.linalg._psd import cholesky_psd
from slimrank.linalg._split_pair import (
    RidgedRows,
    Split,
    SplitFactors,
    SplitMoments,
    block_sum,
    improve_first,
    initial_first_factor,
    inner_products,
    right_products,
)

# Rows on which errors of all ranks are compared; a fit takes all there are. More make the choice between
# pairs of ranks more precise, and each takes a product with every rank.
_COMPARED_ROWS = 1024
# Input directions that are projected together: more take more memory, fewer more passes over the rows.
_TOGETHER = 16
# Share of the gain that a further alternation must bring: less would spend time on nothing.
_MIN_PROGRESS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuckerFactors:
    """Three fitted factors.

    Attributes:
        first: (P, C_in) float64.
        core: (R, P, S) float64.
        last: (O, R) float64, orthonormal columns, with the output metric multiplied in.
        gain: what the factors explain; error = (total - gain) / 2.
    """

    first: Tensor
    core: Tensor
    last: Tensor
    gain: float


def tucker_errors(
    weighted: Tensor, target: Tensor, moment: SplitMoments, first: Tensor, basis: Tensor, split: Split
) -> Tensor:
    """Upper bound of the error at every pair of ranks, from one decomposition of either side.

    Args:
        weighted: (O, D) float64 or float32, ``M = G^(1/2) W``.
        target: (O, D), ``T = M H``, dtype of the moments.
        moment: (D, D) float64 or float32, invertible H; or the rows that it is made of.
        first: (P, C_in, 1) float64 from ``initial_first_factor``, in order of importance.
        basis: (O, R) float64, orthonormal columns, in order of importance.
        split: how D divides; its first factor has one tap.

    Returns:
        (P, R) float64, falling along both: entry (p - 1, r - 1) is that of the first p directions of the
        inputs and the first r of the outputs. What the two leave out adds up, since what is lost of the
        outputs is orthogonal to what is kept.
    """
    if isinstance(moment, RidgedRows):
        return _errors_on_rows(weighted, moment, first, basis, split)
    factor = cholesky_psd(inner_products(first, moment, split))
    solved = torch.linalg.solve_triangular(factor, right_products(first, target, split), upper=False)
    gains = (solved @ basis).square().view(len(first), split.second_taps, -1).sum(1)
    total = (target * weighted).sum().double()
    errors: Tensor = (total - gains.cumsum(0).cumsum(1)).clamp_min(0) / 2
    return errors


def _errors_on_rows(
    weighted: Tensor, moment: RidgedRows, first: Tensor, basis: Tensor, split: Split
) -> Tensor:
    """The same without a matrix: the core is what the mean moments of a tap make of the weight.

    Least squares would take products of all rows for every number of directions; a few fits lower the bound.
    """
    step = -(-len(moment.rows) // _COMPARED_ROWS) or 1
    rows = RidgedRows(rows=moment.rows[::step] * step**0.5, ridge=moment.ridge)
    rotated = (basis.T.to(weighted.dtype) @ weighted).to(rows.dtype)  # (R, D)
    lifted = block_sum(moment, split).double() / split.second_taps @ first.squeeze(-1).T  # (C_in, P)
    kernel = rotated.view(-1, split.channels, split.second_taps).permute(0, 2, 1)  # (R, S, C_in)
    tap_rows = rows.by_tap(split)
    rest = rows.rows @ rotated.T  # what the outputs still lack, (n, R)
    # Without data the rows are none, and the ridge is the identity.
    plain = rotated.double().square().sum(1) * (0.0 if len(rows.rows) else moment.ridge)
    errors = []
    for start in range(0, len(first), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        inputs = (tap_rows @ first[part].squeeze(-1).T.to(rows.dtype)).view(
            split.second_taps, -1, len(first[part])
        )
        cores = kernel @ lifted[:, part].to(rows.dtype)  # (R, S, p)
        for index in range(len(first[part])):
            rest = rest - inputs[:, :, index].T @ cores[:, :, index].T
            if not len(rows.rows):
                plain = plain - moment.ridge * cores[:, :, index].double().square().sum(1)
            errors.append(rest.double().square().sum(0) + plain)
    table = torch.stack(errors).clamp_min(0)
    outside = _lost(rows, weighted, basis, moment.ridge)
    table = (outside + table.cumsum(1)) / 2
    # Directions are those of the mean of all taps: on the rows one may do harm, and can be left out.
    lowest: Tensor = table.cummin(0).values.cummin(1).values
    return lowest


def _lost(rows: RidgedRows, weighted: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """(R,) twice the error of the first directions of the outputs alone."""
    if len(rows.rows):
        outputs = (rows.rows @ weighted.to(rows.dtype).T).double()
    else:
        outputs = ridge**0.5 * weighted.double().T
    kept = (outputs @ basis).square().sum(0)
    return (outputs.square().sum() - kept.cumsum(0)).clamp_min(0)


def fit_tucker(
    weighted: Tensor,
    target: Tensor,
    moment: SplitMoments,
    basis: Tensor,
    rank_in: int,
    split: Split,
    *,
    alternations: int,
    start: Tensor | None = None,
) -> TuckerFactors:
    """Factors of two ranks.

    Given the first factor, the best core and last factor are known: least squares on all outputs, then the
    leading directions of what that explains. The first factor is improved in between as that of a pair.

    Args:
        weighted: (O, D) float64 or float32, ``M = G^(1/2) W``.
        target: (O, D), ``T = M H``, dtype of the moments.
        moment: (D, D), invertible H; or the rows that it is made of.
        basis: (O, R) float64, orthonormal columns: directions of the outputs to begin with.
        rank_in: P.
        split: how D divides; its first factor has one tap.
        alternations: rounds at most; stops early when nothing is gained.
        start: (P, C_in) float64, a first factor to begin with; None for a decomposition.

    Returns:
        The factors; the gain never falls from round to round.
    """
    rank = basis.shape[1]
    if start is None:
        kept = (basis.T.to(weighted.dtype) @ weighted).to(moment.dtype)
        start = initial_first_factor(kept, moment, split)[:rank_in].squeeze(-1)
    best = _solved(weighted, target, moment, start, rank, split)
    mean_factor = cholesky_psd(block_sum(moment, split).double() / split.second_taps)
    rough_moment = moment.float()
    for _ in range(alternations):
        rough_target = (best.last.T.to(target.dtype) @ target).float()
        pair = SplitFactors(first=best.first.unsqueeze(-1), second=best.core, gain=best.gain)
        first = improve_first(rough_target, rough_moment, pair, split, mean_factor).squeeze(-1)
        refined = _solved(weighted, target, moment, first, rank, split)
        if refined.gain <= best.gain:
            break
        is_small = refined.gain - best.gain < _MIN_PROGRESS * abs(best.gain)
        best = refined
        if is_small:
            break
    return best


def _solved(
    weighted: Tensor, target: Tensor, moment: SplitMoments, first: Tensor, rank: int, split: Split
) -> TuckerFactors:
    """The best core and last factor for a first one, whose rows become orthonormal."""
    first = torch.linalg.qr(first.T).Q.T
    solution, explained = _least_squares(weighted, target, moment, first, split)
    values, vectors = torch.linalg.eigh(explained)
    last = vectors[:, -rank:].flip(1)
    core = (solution @ last).view(len(first), split.second_taps, rank).permute(2, 0, 1)
    return TuckerFactors(first=first, core=core, last=last, gain=float(values[-rank:].sum()))


def _least_squares(
    weighted: Tensor, target: Tensor, moment: SplitMoments, first: Tensor, split: Split
) -> tuple[Tensor, Tensor]:
    """The (P S, O) kernel behind a first factor of orthonormal rows, and the (O, O) gain of its outputs."""
    if not isinstance(moment, RidgedRows):
        factor = cholesky_psd(inner_products(first, moment, split))
        solved = torch.linalg.solve_triangular(factor, right_products(first, target, split), upper=False)
        return torch.linalg.solve_triangular(factor.T, solved, upper=True), solved.T @ solved
    # One row for each direction and tap: (P S, n).
    seen = (first.to(moment.dtype) @ moment.by_tap(split).T).view(len(first) * split.second_taps, -1)
    wanted = (moment.rows @ weighted.T.to(moment.dtype)).double()  # (n, O)
    projected = right_products(first, weighted, split)
    if len(seen) <= seen.shape[1]:
        square = (seen @ seen.T).double()
        square.diagonal().add_(moment.ridge)
        right = (seen @ wanted.to(seen.dtype)).double() + moment.ridge * projected
        solution = torch.cholesky_solve(right, cholesky_psd(square))
        return solution, right.T @ solution
    # Fewer rows than unknowns: what the projected weight leaves of the outputs is fitted among the rows.
    rest = wanted - (seen.T @ projected.to(seen.dtype)).double()
    square = (seen.T @ seen).double()
    square.diagonal().add_(moment.ridge)
    share = torch.cholesky_solve(rest, cholesky_psd(square)) if len(square) else rest
    solution = projected + (seen @ share.to(seen.dtype)).double()
    explained = wanted.T @ wanted + moment.ridge * (projected.T @ projected - rest.T @ share)
    return solution, (explained + explained.T) / 2
