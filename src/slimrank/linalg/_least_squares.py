# SPDX-License-Identifier: Apache-2.0
"""Weights fitted by least squares to moments of inputs and wanted outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from slimrank.linalg._moments import Moments
from slimrank.linalg._psd import cholesky_psd

# Numbers of a weight that are fitted at once: 64 MB in float64. Fewer would make products small.
_NUMBERS_AT_ONCE = 2**23


def narrowed_weight(
    weight: Tensor, moments: Moments, columns: Tensor, *, ridge: float, n_groups: int = 1
) -> tuple[Tensor, Moments]:
    """Weight on the columns that stay whose outputs come closest to those of the whole weight.

    As far as the inputs of removed columns can be predicted from the others, the weights of these take over;
    the ridge pulls them towards what they were.

    Args:
        weight: (O, D) float64 or float32.
        moments: of all D inputs.
        columns: (D',) int64, those that stay.
        ridge: share of the mean diagonal.
        n_groups: as in ``least_squares_weight``, of the columns that stay.

    Returns:
        (O, D'), dtype of the weight, and the moments of the columns that stay. The mean is for a bias to
        absorb.

    Source: block OBS, Hassibi & Stork 1993, "Second order derivatives for network pruning", in the form of
    one least-squares fit.
    """
    columns = columns.to(weight.device)
    staying = moments.restricted(columns)
    cross = moments.times(weight)[:, columns]
    return least_squares_weight(weight[:, columns], cross, staying, ridge=ridge, n_groups=n_groups), staying


def least_squares_weight(
    weight: Tensor, cross: Tensor, moments: Moments, *, ridge: float, n_groups: int = 1
) -> Tensor:
    """Weight that maps the inputs of a compressed model to the outputs of the original.

    The ridge pulls towards the old weight, not towards zero: ``W + (T - W H) (H + ridge I)^-1``.

    Args:
        weight: (O, D) float64 or float32, the old weight.
        cross: (O, D) float64 or float32, T: covariance of wanted outputs and inputs.
        moments: of the inputs, H.
        ridge: share of the mean diagonal.
        n_groups: groups of the convolution: the weight has that many equal blocks on its diagonal, and zeros
            elsewhere.

    Returns:
        (O, D), dtype of the weight.

    Source: reduced-rank regression with shrinkage; Zhang et al. 2016, arXiv 1505.06798, section 3.3.
    """
    if n_groups > 1:
        blocks = [
            least_squares_weight(
                weight[rows][:, columns], cross[rows][:, columns], moments.block(columns), ridge=ridge
            )
            for rows, columns in diagonal_blocks(weight, n_groups)
        ]
        joined: Tensor = torch.block_diag(*blocks)
        return joined
    inverse = RidgedInverse(moments, ridge=ridge)
    return inverse.moved(weight, lambda part: cross[part].to(weight.dtype) - moments.times(weight[part]))


class RidgedInverse:
    """``(H + ridge I)^-1``, factored once and used for several matrices.

    Args:
        moments: H.
        ridge: share of the mean diagonal.
        n_groups: as in ``least_squares_weight``.
    """

    def __init__(self, moments: Moments, *, ridge: float, n_groups: int = 1) -> None:
        self._moments = moments
        self._n_groups = n_groups
        self._blocks: list[RidgedInverse] = []
        self._ridge_value = 0.0
        if n_groups > 1:
            columns = torch.arange(len(moments.mean), device=moments.mean.device).chunk(n_groups)
            self._blocks = [RidgedInverse(moments.block(part), ridge=ridge) for part in columns]
        elif moments.rows is None:
            self._factor = cholesky_psd(moments.ridged(ridge))
        else:
            # Few rows, many columns: the inverse by the smaller side (Woodbury).
            rows = moments.rows.double()
            self._ridge_value = ridge * moments.mean_diagonal or 1.0
            inner = rows @ rows.T / moments.n_rows
            inner.diagonal().add_(self._ridge_value)
            self._factor = cholesky_psd(inner)

    def moved(self, weight: Tensor, residual: Callable[[slice], Tensor]) -> Tensor:
        """``W + R (H + ridge I)^-1``, some rows at a time, so that a large weight takes few copies.

        Args:
            weight: (O, D) float64 or float32, W.
            residual: gives the (O', D) of R for O' of the rows.

        Returns:
            (O, D), dtype of the weight.
        """
        # The blocks of a convolution in groups lie in different rows.
        at_once = len(weight) if self._blocks else max(1, _NUMBERS_AT_ONCE // weight.shape[1])
        moved = torch.empty_like(weight)
        for start in range(0, len(weight), at_once):
            part = slice(start, start + at_once)
            moved[part] = weight[part] + self.after(residual(part).to(weight.dtype))
        return moved

    def after(self, left: Tensor) -> Tensor:
        """``left @ (H + ridge I)^-1``.

        Args:
            left: (O, D) float64, or float32 of very large layers; of a convolution in groups only the blocks
                on the diagonal count.

        Returns:
            (O, D), its dtype.
        """
        if self._blocks:
            parts = [
                block.after(left[rows][:, columns])
                for block, (rows, columns) in zip(
                    self._blocks, diagonal_blocks(left, self._n_groups), strict=True
                )
            ]
            joined: Tensor = torch.block_diag(*parts)
            return joined
        if self._moments.rows is None:
            return torch.cholesky_solve(left.T, self._factor.to(left.dtype)).T
        rows, n_rows = self._moments.rows.to(left.dtype), self._moments.n_rows
        solved = torch.cholesky_solve(rows @ left.T, self._factor.to(left.dtype))  # (S, O)
        return (left - solved.T @ rows / n_rows) / self._ridge_value


def diagonal_blocks(weight: Tensor, n_groups: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of each block on the diagonal of a weight: (O / n_groups,), (D / n_groups,) int64."""
    rows, columns = (torch.arange(size, device=weight.device).chunk(n_groups) for size in weight.shape)
    return list(zip(rows, columns, strict=True))
