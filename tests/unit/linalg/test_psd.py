# SPDX-License-Identifier: Apache-2.0
"""Roots and Cholesky factors, of regular, singular and indefinite matrices."""

import pytest
import torch
from torch import Tensor

from slimrank import WeightError
from slimrank.linalg import cholesky_psd, square_roots, times_root, weighted_by


def _psd(size: int, rank: int, rng: torch.Generator) -> Tensor:
    factor = torch.randn((size, rank), dtype=torch.float64, generator=rng)
    return factor @ factor.T


@pytest.mark.parametrize("shrink", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("rank", [2, 6])
def test_square_roots_of_the_shrunk_matrix(rank: int, shrink: float, rng: torch.Generator) -> None:
    matrix = _psd(6, rank, rng)
    root, inverse = square_roots(matrix, shrink=shrink)
    mean = matrix.diagonal().mean()
    shrunk = (matrix + shrink * mean * torch.eye(6, dtype=torch.float64)) / (1 + shrink)
    torch.testing.assert_close(root.T @ root, shrunk, rtol=0, atol=1e-12 * float(mean) * 6)
    torch.testing.assert_close(root, root.triu())
    # The inverse magnifies roundings by the condition of the root, at most 1e3 * sqrt(6).
    torch.testing.assert_close(root @ inverse, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close((root.T @ root).diagonal().mean(), mean)


@pytest.mark.parametrize("size", [127, 129, 515])
def test_inverse_roots_of_matrices_that_are_inverted_by_halves(size: int, rng: torch.Generator) -> None:
    matrix = _psd(size, 2 * size, rng) / size
    root, inverse = square_roots(matrix, shrink=0.1)
    torch.testing.assert_close(inverse, inverse.triu(), rtol=0, atol=0)
    torch.testing.assert_close(root @ inverse, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


def test_square_roots_of_a_diagonal_equal_those_of_its_matrix(rng: torch.Generator) -> None:
    diagonal = torch.rand(5, dtype=torch.float64, generator=rng)
    factors = zip(square_roots(diagonal, shrink=0.3), square_roots(diagonal.diag(), shrink=0.3), strict=True)
    matrix = torch.randn((5, 2), dtype=torch.float64, generator=rng)
    for of_diagonal, of_matrix in factors:
        assert of_diagonal.shape == (5,)
        torch.testing.assert_close(of_diagonal.diag(), of_matrix)
        torch.testing.assert_close(times_root(of_diagonal, matrix), times_root(of_matrix, matrix))


def test_very_large_weights_are_weighted_in_float32(rng: torch.Generator) -> None:
    root = torch.randn((3, 3), dtype=torch.float64, generator=rng)
    weight = torch.randn((6, 4), dtype=torch.float64, generator=rng)
    exact = weighted_by(root, weight)
    torch.testing.assert_close(exact, torch.kron(root, torch.eye(2, dtype=torch.float64)) @ weight)
    rough = weighted_by(root, weight.float())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-5)


def test_square_roots_of_nothing_are_identities() -> None:
    root, inverse = square_roots(torch.zeros((3, 3), dtype=torch.float64), shrink=0.1)
    torch.testing.assert_close(root, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(inverse, torch.ones(3, dtype=torch.float64))
    assert root.data_ptr() != inverse.data_ptr()


def test_cholesky_of_a_regular_matrix_is_torchs(rng: torch.Generator) -> None:
    matrix = _psd(5, 9, rng)
    torch.testing.assert_close(cholesky_psd(matrix), torch.linalg.cholesky(matrix), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 3])
def test_cholesky_of_a_singular_matrix_moves_it_by_a_trifle(rank: int, rng: torch.Generator) -> None:
    matrix = _psd(8, rank, rng)
    before = matrix.clone()
    factor = cholesky_psd(matrix)
    assert torch.equal(factor, factor.tril())
    # A rank deficit is cured by a jitter some powers of ten above float64 rounding.
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=1e-8 * float(matrix.diagonal().mean()))
    assert torch.equal(matrix, before)


def test_cholesky_of_roundings_below_zero_takes_the_smallest_jitter_that_helps() -> None:
    matrix = torch.diag(torch.tensor([2.0, 1.0, -1e-8], dtype=torch.float64))
    factor = cholesky_psd(matrix)
    # Just above 1e-8 of the mean diagonal, in powers of ten.
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=1.1e-7)


def test_cholesky_of_zeros_is_nearly_zero() -> None:
    factor = cholesky_psd(torch.zeros((3, 3), dtype=torch.float64))
    assert factor.isfinite().all()
    assert factor.abs().max() < 1e-100


def test_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(WeightError, match="not positive semi-definite; check weights and data"):
        cholesky_psd(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_a_matrix_with_nan_is_refused() -> None:
    with pytest.raises(WeightError, match="not positive semi-definite"):
        cholesky_psd(torch.full((2, 2), float("nan"), dtype=torch.float64))
