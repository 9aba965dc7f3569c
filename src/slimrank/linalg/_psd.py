# SPDX-License-Identifier: Apache-2.0
"""Roots and factors of positive semi-definite matrices."""

import torch
from torch import Tensor

from slimrank._errors import WeightError

# Shares of the mean diagonal: the first is tried where a matrix is singular, each further one is ten times as
# large. A larger start would change matrices more than they need; beyond the last, the matrix is no moment.
_FIRST_JITTER = 1e-12
_LAST_JITTER = 1e-3
# Columns above which eigenvectors are found in float32, which halves the time: they are right to 1e-5, less
# than any fit to samples is.
_EXACT_COLUMNS = 1024
# Triangles are inverted by halves down to so many columns: more leave less to products, which are faster.
_TRIANGLE = 128


def square_root(matrix: Tensor, *, shrink: float) -> Tensor:
    """Root of a shrunk matrix.

    Any root measures the same: ``|S^(1/2) X|`` depends on S alone. The triangular one is the cheapest.

    Args:
        matrix: (M, M) positive semi-definite, float64; or (M,), the diagonal of a diagonal one.
        shrink: share of the mean eigenvalue that is added to every eigenvalue, above 0.

    Returns:
        A float64 tensor like ``matrix``: upper triangular ``R`` with ``R^T R = S``, of
        ``S = matrix + shrink * mean * I``, scaled so that the mean diagonal of ``S`` equals that of
        ``matrix`` (the shrinkage does not inflate the measure). Of a diagonal, and of zeros, its diagonal.
        ``times_root`` multiplies by it.
    """
    diagonal = matrix if matrix.ndim == 1 else matrix.diagonal()
    mean = diagonal.mean()
    # Below that, products of float32 numbers are rounding.
    if mean <= torch.finfo(torch.float32).tiny:
        return torch.ones_like(diagonal)
    if matrix.ndim == 1:
        return ((matrix.clamp_min(0) + shrink * mean) / (1 + shrink)).sqrt()
    shrunk = matrix / (1 + shrink)
    shrunk.diagonal().add_(shrink * mean / (1 + shrink))
    return cholesky_psd(shrunk).mT


def square_roots(matrix: Tensor, *, shrink: float) -> tuple[Tensor, Tensor]:
    """Root and inverse root of a shrunk matrix.

    Args:
        matrix: as in ``square_root``.
        shrink: as there.

    Returns:
        Two float64 tensors: ``R`` from ``square_root``, and ``R^-1`` like it.
    """
    root = square_root(matrix, shrink=shrink)
    return root, _inverse_root(root)


def roots_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Root and inverse root of a matrix as it is.

    Args:
        matrix: (M, M) positive definite, float64.

    Returns:
        Two float64 tensors (M, M): upper triangular ``R`` with ``R^T R = matrix``, and ``R^-1``.
    """
    root = cholesky_psd(matrix).mT
    return root, _inverse_root(root)


def _inverse_root(root: Tensor) -> Tensor:
    """Inverse of an upper triangular root, or of the diagonal of a diagonal one."""
    return 1 / root if root.ndim == 1 else triangle_inverse(root.mT).mT


def triangle_inverse(factor: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix, mostly by products: half the time of solving for the unit matrix.

    Args:
        factor: (M, M) lower triangular, no zero on its diagonal.

    Returns:
        (M, M) lower triangular.
    """
    inverse = torch.zeros_like(factor)
    _invert_triangle(factor, inverse)
    return inverse


def _invert_triangle(factor: Tensor, inverse: Tensor) -> None:
    """Writes the inverse into zeros."""
    size = len(factor)
    if size <= _TRIANGLE:
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        inverse.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        return
    half = size // 2
    first, last = inverse[:half, :half], inverse[half:, half:]
    _invert_triangle(factor[:half, :half], first)
    _invert_triangle(factor[half:, half:], last)
    inverse[half:, :half] = -(last @ (factor[half:, :half] @ first))


def weighted_by(root: Tensor, weight: Tensor) -> Tensor:
    """Weight with the output metric multiplied in.

    Args:
        root: (Q, Q), or (Q,) where it is diagonal, float64.
        weight: (O, D); O is Q or a multiple of it.

    Returns:
        (O, D), dtype of the weight.
    """
    return times_root(root.to(weight.dtype), weight.reshape(len(root), -1)).view(weight.shape)


def times_vector(weight: Tensor, vector: Tensor) -> Tensor:
    """``weight @ vector`` in float64, multiplied in the dtype of the weight.

    Args:
        weight: (O, D).
        vector: (D,) float64.

    Returns:
        (O,) float64.
    """
    return (weight @ vector.to(weight.dtype)).double()


def times_root(root: Tensor, matrix: Tensor) -> Tensor:
    """Product of a root from ``square_roots`` and a matrix.

    Args:
        root: (M, M), or (M,) where it is diagonal.
        matrix: (M, N).

    Returns:
        (M, N).
    """
    return root @ matrix if root.ndim == 2 else root[:, None] * matrix


def principal_directions(matrix: Tensor) -> Tensor:
    """Eigenvectors of a positive semi-definite matrix, those of the largest eigenvalues first.

    Args:
        matrix: (M, M) float64.

    Returns:
        (M, M) float64, orthonormal columns; to 1e-5 where M is above 1024, which float32 halves the time of.
    """
    dtype = torch.float32 if len(matrix) > _EXACT_COLUMNS else matrix.dtype
    _, vectors = torch.linalg.eigh(matrix.to(dtype))
    ordered: Tensor = vectors.flip(1).to(matrix.dtype)
    return ordered


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
