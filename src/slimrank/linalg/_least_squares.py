# SPDX-License-Identifier: Apache-2.0
"""Weights fitted by least squares to moments of inputs and wanted outputs."""

import torch
from torch import Tensor

from slimrank.linalg._moments import Moments
from slimrank.linalg._psd import cholesky_psd


def narrowed_weight(
    weight: Tensor, moments: Moments, columns: Tensor, *, ridge: float, groups: int = 1
) -> tuple[Tensor, Moments]:
    """Weight on some of the columns that does what the whole weight does, as well as they can.

    What the columns that go can be foretold from those that stay is folded into the latter; the ridge pulls
    towards leaving them as they are.

    Args:
        weight: (O, D) float64.
        moments: of all D inputs.
        columns: (D',) int64, those that stay.
        ridge: share of the mean diagonal.
        groups: as in ``least_squares_weight``, of the columns that stay.

    Returns:
        (O, D') float64, and the moments of the columns that stay. The mean is for a bias to absorb.

    Source: block OBS, Hassibi & Stork 1993, "Second order derivatives for network pruning", in the form of
    one least-squares fit.
    """
    columns = columns.to(weight.device)
    part = moments.restricted(columns)
    cross = moments.times(weight)[:, columns]
    return least_squares_weight(weight[:, columns], cross, part, ridge=ridge, groups=groups), part


def least_squares_weight(
    weight: Tensor, cross: Tensor, moments: Moments, *, ridge: float, groups: int = 1
) -> Tensor:
    """Weight that maps the inputs of a compressed model to the outputs of the original.

    The ridge pulls towards the old weight, not towards zero: ``W + (T - W H) (H + ridge I)^-1``.

    Args:
        weight: (O, D) float64, the old weight.
        cross: (O, D) float64, T: covariance of wanted outputs and inputs.
        moments: of the inputs, H.
        ridge: share of the mean diagonal.
        groups: blocks on the diagonal of the weight, outputs and columns in equal parts; nothing else is.

    Returns:
        (O, D) float64.

    Source: reduced-rank regression with shrinkage; Zhang et al. 2016, arXiv 1505.06798, section 3.3.
    """
    if groups > 1:
        blocks = [
            least_squares_weight(weight[rows][:, own], cross[rows][:, own], moments.block(own), ridge=ridge)
            for rows, own in blocks_of(weight, groups)
        ]
        joined: Tensor = torch.block_diag(*blocks)
        return joined
    missing = cross - moments.times(weight)
    if moments.rows is None:
        factor = cholesky_psd(moments.ridged(ridge))
        return weight + torch.cholesky_solve(missing.T, factor).T
    # Few rows, many columns: the inverse by the smaller side (Woodbury).
    rows = moments.rows.double()
    added = ridge * moments.mean_diagonal or 1.0
    inner = rows @ rows.T / moments.n_rows
    inner.diagonal().add_(added)
    solved = torch.cholesky_solve(rows @ missing.T, cholesky_psd(inner))  # (S, O)
    return weight + (missing - solved.T @ rows / moments.n_rows) / added


def blocks_of(weight: Tensor, groups: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns, (O / groups,) and (D / groups,) int64, of each block on the diagonal of a weight."""
    rows, columns = (torch.arange(size, device=weight.device).chunk(groups) for size in weight.shape)
    return list(zip(rows, columns, strict=True))
