# SPDX-License-Identifier: Apache-2.0
"""Roots and factors of positive semi-definite matrices."""

import torch
from torch import Tensor

from slimrank._errors import WeightError

# Shares of the mean diagonal: the first is tried where a matrix is singular, each further one is ten times as
# large. A larger start would change matrices more than they need; beyond the last, the matrix is no moment.
_FIRST_JITTER = 1e-12
_LAST_JITTER = 1e-3


def square_roots(matrix: Tensor, *, shrink: float) -> tuple[Tensor, Tensor]:
    """Symmetric square root and inverse root of a shrunk matrix.

    Args:
        matrix: (M, M) positive semi-definite, float64.
        shrink: share of the mean eigenvalue that is added to every eigenvalue, above 0.

    Returns:
        Two (M, M) float64: ``S^(1/2)`` and ``S^(-1/2)`` of ``S = matrix + shrink * mean * I``, scaled so that
        the mean diagonal of ``S`` equals that of ``matrix`` (the shrinkage does not inflate the measure).
    """
    mean = matrix.diagonal().mean()
    if mean <= 0:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return eye, eye.clone()
    values, vectors = torch.linalg.eigh(matrix)
    roots = ((values.clamp_min(0) + shrink * mean) / (1 + shrink)).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def cholesky_psd(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a matrix that may be singular.

    Args:
        matrix: (M, M) positive semi-definite, float64.

    Returns:
        (M, M) lower triangular ``L`` with ``L L^T = matrix`` plus the smallest jitter that makes it
        invertible, from 1e-12 of the mean diagonal upwards.

    Raises:
        WeightError: no jitter up to 1e-3 of the mean diagonal helps.
    """
    factor: Tensor
    info: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    jitter = _FIRST_JITTER
    while jitter <= _LAST_JITTER:
        shifted = matrix.clone()
        shifted.diagonal().add_(jitter * mean)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if not info.any():
            return factor
        jitter *= 10
    raise WeightError("a moment matrix is not positive semi-definite; check weights and data for huge values")
