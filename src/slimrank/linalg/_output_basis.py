# SPDX-License-Identifier: Apache-2.0
"""Closed form for pairs whose second factor is dense: project the outputs on their leading directions."""

import torch
from torch import Tensor

from slimrank.linalg._moments import Moments, gram
from slimrank.linalg._psd import cholesky_psd, principal_directions, times_root

# Of a wide layer, leading directions alone are found by power iteration where they are at most this share of
# its outputs: more of them would take as long as all.
_WIDE_OUTPUTS, _LEADING_SHARE = 1024, 1 / 8
# Directions beside those that are wanted, at least and as a share of them, and rounds: what is lost is then
# within 0.5 % of the least. After a start that is about right, fewer rounds do.
_MIN_BESIDE, _BESIDE, _ROUNDS, _ROUNDS_AFTER_START = 16, 1 / 4, 7, 2


def output_basis(weighted: Tensor, moments: Moments, *, ridge: float) -> tuple[Tensor, Tensor]:
    """Directions of the outputs, those that carry most first, and what is lost at every rank.

    Args:
        weighted: (O, D) float64 or float32, the weight with the output metric multiplied in,
            ``M = G^(1/2) W``.
        moments: second moments H of the D inputs.
        ridge: share of the mean diagonal that is added to H while directions are chosen, above 0.

    Returns:
        ``basis`` (O, R) float64 with orthonormal columns, R = min(O, D); ``errors`` (R + 1,) float64, entry r
        is ``1/2 tr((M - U_r U_r^T M) H (...)^T)`` on the un-ridged moments: never rising, entry 0 is all.

    Source: principal components of predicted outputs, Zhang et al. 2016, arXiv 1505.06798, section 2.
    """
    n_out, n_in = weighted.shape
    ridge_value = ridge * moments.mean_diagonal or 1.0
    # Of the two matrices with the same eigenvalues, the smaller one is decomposed.
    if n_out <= n_in:
        on_rows = moments.on_rows(weighted)
        products = (moments.gram(weighted) if on_rows is None else on_rows @ on_rows.T).double()
        basis = principal_directions(products + ridge_value * gram(weighted.T).double())
        if on_rows is not None and on_rows.shape[1] < n_out:
            carried = (basis.to(on_rows.dtype).T @ on_rows).square().sum(1, dtype=torch.float64)
        else:
            carried = (basis * (products @ basis)).sum(0)
        total = products.diagonal().sum()
    else:
        weighted = weighted.double()
        scaled = weighted @ cholesky_psd(moments.ridged(ridge))  # (O, D)
        # QR instead of a division by singular values: columns stay orthonormal where the weight has no full
        # rank.
        basis = torch.linalg.qr(scaled @ principal_directions(scaled.T @ scaled)).Q
        carried = moments.diagonal_of(basis.T @ weighted)
        total = moments.diagonal_of(weighted).sum()
    errors = (total - torch.cat([carried.new_zeros(1), carried.clamp_min(0).cumsum(0)])).clamp_min(0) / 2
    return basis, errors


def has_leading_directions(n_out: int, n_in: int, rank: int) -> bool:
    """Whether ``leading_directions`` finds so many in less time than ``output_basis`` finds all."""
    return min(n_out, n_in) > _WIDE_OUTPUTS and rank <= _LEADING_SHARE * min(n_out, n_in)


def leading_directions(
    dense: Tensor, root: Tensor, moments: Moments, *, ridge: float, rank: int, start: Tensor | None = None
) -> Tensor:
    """The first directions of ``output_basis``, by power iteration on a block of vectors.

    Neither the weighted weight nor a product of all its outputs is formed: a round takes four products with
    ``rank`` vectors.

    Args:
        dense: (O, D) float64 or float32, the weight W.
        root: (O, O) float64, G^(1/2); (O,) where it is diagonal.
        moments: second moments H of the D inputs.
        ridge: as in ``output_basis``.
        rank: how many.
        start: (O, R') directions of a similar weight; None begins with random ones, always the same.

    Returns:
        (O, rank) float64, orthonormal columns to 1e-5, those that carry most first.

    Source: Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4.
    """
    n_out = len(dense)
    weight, metric = dense.float(), root.float()
    transposed = metric.mT if metric.ndim == 2 else metric
    ridge_value = ridge * moments.mean_diagonal or 1.0
    count = min(n_out, rank + max(_MIN_BESIDE, int(_BESIDE * rank)))

    def carried(vectors: Tensor) -> Tensor:
        on_inputs = times_root(transposed, vectors).T @ weight  # (R, D)
        return times_root(metric, weight @ (moments.times(on_inputs) + ridge_value * on_inputs).T)

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(n_out, count, generator=generator).to(weight.device)
    if start is not None:
        known = start[:, :count].to(vectors)
        vectors = torch.cat([known, vectors[:, : count - known.shape[1]]], dim=1)
    for _ in range(_ROUNDS if start is None else _ROUNDS_AFTER_START):
        basis = torch.linalg.qr(vectors).Q
        vectors = carried(basis)
    within = principal_directions((basis.T @ vectors).double())
    leading: Tensor = (basis.double() @ within)[:, :rank]
    return leading


def project_pair(
    dense: Tensor, basis: Tensor, rank: int, root: Tensor, inverse_root: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors of the best weight of a rank, given the output basis.

    Args:
        dense: (O, D) float64 or float32, the weight W.
        basis: (O, R) float64 from ``output_basis(G^(1/2) W, ...)``.
        rank: at most R.
        root: (O, O) float64, G^(1/2); (O,) where it is diagonal.
        inverse_root: like it, G^(-1/2).

    Returns:
        ``first`` (rank, D), ``second`` (O, rank), dtype of W: ``second @ first = G^(-1/2) U U^T G^(1/2) W``.
    """
    leading, metric = basis[:, :rank].to(dense.dtype), root.to(dense.dtype)
    left = leading.T @ metric if metric.ndim == 2 else leading.T * metric
    return left @ dense, times_root(inverse_root.to(dense.dtype), leading)
