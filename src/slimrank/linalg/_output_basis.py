# SPDX-License-Identifier: Apache-2.0
"""Closed form for pairs whose second factor is dense: project the outputs on their leading directions."""

import torch
from torch import Tensor

from slimrank.linalg._moments import Moments, gram
from slimrank.linalg._psd import cholesky_psd, principal_directions, times_root


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
            carried = (basis.T @ on_rows.double()).square().sum(1)
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
    leading = basis[:, :rank]
    left = leading.T @ root if root.ndim == 2 else leading.T * root
    return left.to(dense.dtype) @ dense, times_root(inverse_root, leading).to(dense.dtype)
