# SPDX-License-Identifier: Apache-2.0
"""Pairs that share the taps of a kernel: some in the first factor, the rest in the second.

A kernel of ``F * S`` taps over C_in channels is written ``W[o, (i, f, s)] = sum_p B[o, p, s] V[p, i, f]``.
F = 1 is 1x1 -> k x k, S = 1 is k x k -> 1x1, F = k_h and S = k_w is the spatial pair.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.linalg._moments import gram
from slimrank.linalg._psd import cholesky_psd, principal_directions

# Conjugate-gradient steps for one improvement of the first factor: each costs about as much as one product
# with the moments. Of wide layers, where that is most of the time, two: errors are 0.3 % above those of six.
_CG_STEPS, _CG_STEPS_OF_WIDE = 6, 2
_WIDE_COLUMNS = 1024
# Rows of the normal equations of the second factor above which errors of all ranks are found in float32, in
# half the time: the first factors are orthonormal in the mean metric, so that these are well conditioned.
_WIDE_EQUATIONS = 2560
# The steps end when the squared residual has fallen to this share: in float32 little is gained beyond.
_CG_TOLERANCE = 1e-10
# Share of the gain that a further alternation must bring: less would spend time on nothing.
_MIN_PROGRESS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How D columns divide.

    Attributes:
        channels: C_in.
        first_taps: taps F in the first factor.
        second_taps: taps S in the second factor; D = channels * first_taps * second_taps, in that order.
    """

    channels: int
    first_taps: int
    second_taps: int

    @property
    def first_columns(self) -> int:
        """Columns of the first factor, C_in F."""
        return self.channels * self.first_taps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitFactors:
    """A fitted pair.

    Attributes:
        first: (R, C_in, F) float64.
        second: (O, R, S) float64, with the output metric multiplied in.
        gain: what the pair explains, ``tr(T W'^T)`` at the least-squares second factor;
            error = (total - gain) / 2.
    """

    first: Tensor
    second: Tensor
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RidgedRows:
    """Moments ``X^T X + ridge I`` of rows fewer than their columns; the matrix is never formed.

    Attributes:
        rows: X, (n, D) float32 or float64, centred and divided by the square root of their number.
        ridge: above 0.
    """

    rows: Tensor
    ridge: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.rows.dtype

    def __rmatmul__(self, left: Tensor) -> Tensor:
        return (left @ self.rows.T) @ self.rows + self.ridge * left

    def float(self) -> "RidgedRows":
        """The same in float32."""
        return RidgedRows(rows=self.rows.float(), ridge=self.ridge)

    def by_tap(self, split: Split) -> Tensor:
        """Rows cut into one for each tap of the second factor: (S n, C_in F)."""
        n_columns, taps = split.first_columns, split.second_taps
        return self.rows.view(-1, n_columns, taps).permute(2, 0, 1).reshape(-1, n_columns)


# H as a matrix, or as the rows that it is made of.
SplitMoments = Tensor | RidgedRows


def initial_first_factor(weighted: Tensor, moment: SplitMoments, split: Split) -> Tensor:
    """First factors for every rank at once, by a block-diagonal approximation of the moments.

    Args:
        weighted: (O, D) float64 or float32, G^(1/2) W.
        moment: (D, D) float64 or float32, invertible.
        split: how D divides.

    Returns:
        (R, C_in, F) float64 with R = min(C_in F, O S), most important first.
    """
    second_taps, n_columns = split.second_taps, split.first_columns
    factor = cholesky_psd(block_sum(moment, split).double() / second_taps)
    # (O, C_in F, S) -> (C_in F, O S)
    unfolded = weighted.double().view(-1, n_columns, second_taps).permute(1, 0, 2).reshape(n_columns, -1)
    scaled = factor.T @ unfolded
    if scaled.shape[0] <= scaled.shape[1]:
        left = principal_directions(scaled @ scaled.T)
    else:
        left = torch.linalg.qr(scaled @ principal_directions(scaled.T @ scaled)).Q
    first_factor: Tensor = torch.linalg.solve_triangular(factor.T, left, upper=True).T
    return first_factor.reshape(-1, split.channels, split.first_taps)


def block_sum(moment: SplitMoments, split: Split) -> Tensor:
    """Sum of the moments over the taps of the second factor: (D, D) -> (C_in F, C_in F)."""
    n_columns, second_taps = split.first_columns, split.second_taps
    if isinstance(moment, RidgedRows):
        product = gram(moment.by_tap(split))
        product.diagonal().add_(moment.ridge * second_taps)
        return product
    return moment.view(n_columns, second_taps, n_columns, second_taps).diagonal(dim1=1, dim2=3).sum(-1)


def inner_products(
    first: Tensor, moment: SplitMoments, split: Split, dtype: torch.dtype = torch.float64
) -> Tensor:
    """P H P^T, rank-major, for P[(p, s), (i, f, s')] = V[p, i, f] where s = s', else 0; P is never formed.

    The products are in the dtype of the moments, what comes out is in ``dtype``.
    """
    rank, n_columns, second_taps = len(first), split.first_columns, split.second_taps
    vectors = first.reshape(rank, n_columns).to(moment.dtype)
    if isinstance(moment, RidgedRows):
        projected = (vectors @ moment.by_tap(split).T).view(rank * second_taps, -1)
        product = (projected @ projected.T).to(dtype)
        blocks = product.view(rank, second_taps, rank, second_taps).diagonal(dim1=1, dim2=3)
        blocks += moment.ridge * (vectors @ vectors.T)[:, :, None]
        return product
    left = (vectors @ moment.view(n_columns, -1)).view(rank * second_taps, n_columns, second_taps)
    # (R S, C_in F, S) -> (S R S, C_in F): one large product instead of many small ones
    stacked = left.permute(2, 0, 1).reshape(-1, n_columns)
    product = (stacked @ vectors.T).view(second_taps, rank * second_taps, rank)
    return product.permute(1, 2, 0).reshape(rank * second_taps, rank * second_taps).to(dtype)


def right_products(first: Tensor, target: Tensor, split: Split) -> Tensor:
    """P T^T: (R S, O) float64, from products in the dtype of the target."""
    rank, n_columns, second_taps = len(first), split.first_columns, split.second_taps
    # (O, C_in F, S) -> (S O, C_in F)
    stacked = target.view(-1, n_columns, second_taps).permute(2, 0, 1).reshape(-1, n_columns)
    vectors = first.reshape(rank, n_columns).to(target.dtype)
    product = (stacked @ vectors.T).view(second_taps, -1, rank)  # (S, O, R)
    return product.permute(2, 0, 1).reshape(rank * second_taps, -1).double()


def nested_errors(
    weighted: Tensor, target: Tensor, moment: SplitMoments, first: Tensor, split: Split
) -> Tensor:
    """Upper bound of the error at every rank, from one Cholesky factorisation.

    Args:
        weighted: (O, D) float64 or float32, G^(1/2) W.
        target: (O, D) float64, ``T = G^(1/2) W H``; or float32, as the moments.
        moment: (D, D) float64, invertible H; or float32, which is faster and takes less memory.
        first: (R, C_in, F) float64, first factors in order of importance.
        split: how D divides.

    Returns:
        (R + 1,) float64, never rising: ``1/2 (tr(M H M^T) - gain of the first r)`` at the least-squares
        second factor.
    """
    dtype = torch.float64 if len(first) * split.second_taps <= _WIDE_EQUATIONS else torch.float32
    factor = cholesky_psd(inner_products(first, moment, split, dtype))
    right = right_products(first, target, split).to(dtype)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    gains = solved.square().sum(1, dtype=torch.float64).view(len(first), split.second_taps).sum(1).cumsum(0)
    total = (target * weighted).sum()
    return (total - torch.cat([gains.new_zeros(1), gains])).clamp_min(0) / 2


def fit_split(target: Tensor, moment: SplitMoments, first: Tensor, split: Split) -> SplitFactors:
    """Least-squares second factor for a given first one.

    Args:
        target: (O, D) float64, ``T = G^(1/2) W H``; or float32, as the moments.
        moment: (D, D) float64, invertible H; or float32, which is faster and takes less memory.
        first: (R, C_in, F) float64.
        split: how D divides.

    Returns:
        The pair, with its gain.
    """
    right = right_products(first, target, split)
    factor = cholesky_psd(inner_products(first, moment, split))
    second = torch.cholesky_solve(right, factor)
    gain = float((second * right).sum())
    return SplitFactors(
        first=first, second=second.view(len(first), split.second_taps, -1).permute(2, 0, 1), gain=gain
    )


def refine_split(
    target: Tensor, moment: SplitMoments, factors: SplitFactors, split: Split, *, alternations: int
) -> SplitFactors:
    """Alternates between the two factors; the gain never falls.

    The first factor is improved by a few preconditioned conjugate-gradient steps on its normal equations
    (they are too large to write down), the second by exact least squares.

    Args:
        target: (O, D) float64, ``T = G^(1/2) W H``; or float32, as the moments.
        moment: (D, D) float64, invertible H; or float32, which is faster and takes less memory.
        factors: where to start.
        split: how D divides.
        alternations: rounds at most; stops early when nothing is gained.

    Returns:
        The refined pair.
    """
    mean_factor = cholesky_psd(block_sum(moment, split).double() / split.second_taps)
    if target.shape[1] > _WIDE_COLUMNS:
        # It only guides the steps.
        mean_factor = mean_factor.float()
    best = factors
    # In float32, which is faster: a step need only be about right, and what it gains is measured in float64.
    rough_target, rough_moment = target.float(), moment.float()
    for _ in range(alternations):
        first = improve_first(rough_target, rough_moment, best, split, mean_factor)
        norms = first.flatten(1).norm(dim=1).clamp_min(torch.finfo(first.dtype).tiny)
        refined = fit_split(target, moment, first / norms[:, None, None], split)
        if refined.gain <= best.gain:
            break
        is_small = refined.gain - best.gain < _MIN_PROGRESS * abs(best.gain)
        best = refined
        if is_small:
            break
    return best


def improve_first(
    target: Tensor, moment: SplitMoments, factors: SplitFactors, split: Split, mean_factor: Tensor
) -> Tensor:
    """A better first factor for a given second one, by preconditioned conjugate gradients."""
    n_out, n_columns = len(target), split.first_columns
    second = factors.second.to(target.dtype)
    normal = _normal_equations(moment, second, split)
    gram_factor = cholesky_psd(torch.einsum("ops,oqs->pq", factors.second, factors.second))

    def precondition(residual: Tensor) -> Tensor:
        half = torch.cholesky_solve(residual.to(gram_factor.dtype), gram_factor)
        return torch.cholesky_solve(half.T.to(mean_factor.dtype), mean_factor).T.to(residual.dtype)

    first = factors.first.reshape(len(factors.first), n_columns).to(target.dtype)
    residual = _times_second(target.view(n_out, n_columns, split.second_taps), second) - normal(first)
    direction = precondition(residual)
    strength = (residual * direction).sum()
    start = strength
    for _ in range(_CG_STEPS if target.shape[1] <= _WIDE_COLUMNS else _CG_STEPS_OF_WIDE):
        if strength <= _CG_TOLERANCE * start or strength <= 0:
            break
        image = normal(direction)
        step = strength / (direction * image).sum()
        first = first + step * direction
        residual = residual - step * image
        conditioned = precondition(residual)
        renewed = (residual * conditioned).sum()
        direction = conditioned + (renewed / strength) * direction
        strength = renewed
    return first.to(factors.first.dtype).view_as(factors.first)


def _times_second(rows: Tensor, second: Tensor) -> Tensor:
    """Inner products with the second factor: (O, C_in F, S) with (O, R, S) -> (R, C_in F)."""
    return torch.einsum("ops,ocs->pc", second, rows)


def _normal_equations(moment: SplitMoments, second: Tensor, split: Split) -> Callable[[Tensor], Tensor]:
    """The normal equations of the first factor: (R, C_in F) -> (R, C_in F), whichever way multiplies less."""
    n_out, rank, taps = second.shape
    if isinstance(moment, RidgedRows):
        return _normal_equations_of_rows(moment, second, split)
    n_columns = len(moment)

    def by_outputs(first: Tensor) -> Tensor:
        weight = torch.einsum("ops,pc->ocs", second, first).reshape(n_out, n_columns)
        return _times_second((weight @ moment).view(n_out, n_columns // taps, taps), second)

    # Multiply-accumulates of ``by_ranks`` less those of ``by_outputs``, without their common factor.
    if (rank - n_out) * n_columns + (rank * taps - 2 * n_out) * rank >= 0:
        return by_outputs
    flat = second.permute(2, 1, 0).reshape(taps * rank, n_out)  # (S R, O)
    products = (flat @ flat.T).view(taps, rank, taps * rank)

    def by_ranks(first: Tensor) -> Tensor:
        left = (first @ moment.view(-1, taps * n_columns)).view(rank, taps, -1, taps)
        # (R, S, C_in F, S') -> (S', S R, C_in F)
        stacked = left.permute(3, 1, 0, 2).reshape(taps, taps * rank, -1)
        return (products @ stacked).sum(0)

    return by_ranks


def _normal_equations_of_rows(moment: RidgedRows, second: Tensor, split: Split) -> Callable[[Tensor], Tensor]:
    """The same where moments are rows: outputs of the pair on the rows, and back."""
    n_out, rank, taps = second.shape
    rows = moment.by_tap(split)
    flat = second.permute(1, 2, 0).reshape(rank * taps, n_out)
    products = flat @ flat.T if rank * taps < 2 * n_out else None
    ridge_products = moment.ridge * torch.einsum("ops,oqs->pq", second, second)

    def by_rows(first: Tensor) -> Tensor:
        inner = (first @ rows.T).view(rank * taps, -1)
        outer = products @ inner if products is not None else flat @ (flat.T @ inner)
        return outer.view(rank, -1) @ rows + ridge_products @ first

    return by_rows
