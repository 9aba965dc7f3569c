# SPDX-License-Identifier: Apache-2.0
"""The closed form: errors at every rank against errors of explicit projections."""

import pytest
import torch
from torch import Tensor

from slimrank.linalg import (
    Moments,
    MomentSums,
    has_leading_directions,
    leading_directions,
    output_basis,
    project_pair,
    square_roots,
    weighted_by,
)

_SHAPES = [(1, 1), (4, 7), (7, 4), (5, 5), (1, 6), (6, 1)]


def _moments(width: int, kind: str, rng: torch.Generator) -> Moments:
    if kind == "identity":
        return Moments.identity(width, torch.device("cpu"))
    rows = torch.randn((30, width), generator=rng) @ torch.randn((width, width), generator=rng)
    sums = MomentSums(width, keep_rows=kind == "rows")
    sums.add(rows)
    return sums.moments()


def _error(difference: Tensor, moments: Moments) -> Tensor:
    return moments.gram(difference).trace() / 2


@pytest.mark.parametrize("kind", ["matrix", "rows", "identity"])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
@pytest.mark.parametrize("ridge", [1e-9, 0.5])
def test_errors_are_those_of_the_projected_weights(
    shape: tuple[int, int], kind: str, ridge: float, rng: torch.Generator
) -> None:
    weighted = torch.randn(shape, dtype=torch.float64, generator=rng)
    moments = _moments(shape[1], kind, rng)
    basis, errors = output_basis(weighted, moments, ridge=ridge)
    explicit = [
        _error(weighted - basis[:, :r] @ basis[:, :r].T @ weighted, moments) for r in range(min(shape) + 1)
    ]
    # The ridge only chooses directions: errors are on the un-ridged moments, up to roundings of the total.
    torch.testing.assert_close(errors, torch.stack(explicit), rtol=0, atol=1e-6 * float(explicit[0]))
    assert (errors.diff() <= 0).all()
    torch.testing.assert_close(errors[0], _error(weighted, moments))


@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_without_moments_errors_are_the_tail_of_the_singular_values(
    shape: tuple[int, int], rng: torch.Generator
) -> None:
    weighted = torch.randn(shape, dtype=torch.float64, generator=rng)
    _, errors = output_basis(weighted, Moments.identity(shape[1], torch.device("cpu")), ridge=1e-12)
    energy = torch.linalg.svdvals(weighted).square()
    expected = torch.stack([energy[r:].sum() / 2 for r in range(len(energy) + 1)])
    torch.testing.assert_close(errors, expected, rtol=0, atol=1e-12 * float(energy.sum()))


def test_errors_are_the_whitened_tail(rng: torch.Generator) -> None:
    weighted = torch.randn((4, 6), dtype=torch.float64, generator=rng)
    moments = _moments(6, "matrix", rng)
    _, errors = output_basis(weighted, moments, ridge=1e-14)
    assert moments.matrix is not None
    energy = torch.linalg.svdvals(weighted @ torch.linalg.cholesky(moments.matrix)).square()
    expected = torch.stack([energy[r:].sum() / 2 for r in range(5)])
    # The float32 sums are symmetric to float32 rounding only, and every decomposition reads one half.
    torch.testing.assert_close(errors, expected, rtol=0, atol=1e-7 * float(energy.sum()))


def test_tall_and_wide_branches_agree(rng: torch.Generator) -> None:
    tall = torch.randn((7, 4), dtype=torch.float64, generator=rng)
    moments = _moments(4, "matrix", rng)
    assert moments.matrix is not None
    # Four more inputs that no output reads make the same problem wide, at the same mean diagonal.
    extra = torch.eye(4, dtype=torch.float64) * moments.mean_diagonal
    padded = Moments(
        mean=torch.zeros(8, dtype=torch.float64),
        matrix=torch.block_diag(moments.matrix, extra),
        rows=None,
        n_rows=30,
    )
    wide = torch.cat([tall, torch.zeros((7, 4), dtype=torch.float64)], dim=1)
    basis, errors = output_basis(tall, moments, ridge=1e-2)
    wide_basis, wide_errors = output_basis(wide, padded, ridge=1e-2)
    atol = 1e-10 * float(errors[0])
    torch.testing.assert_close(errors, wide_errors[:5], rtol=0, atol=atol)
    torch.testing.assert_close(wide_errors[5:], torch.zeros(3, dtype=torch.float64), rtol=0, atol=atol)
    torch.testing.assert_close(basis[:, :2] @ basis[:, :2].T, wide_basis[:, :2] @ wide_basis[:, :2].T)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)], ids=str)
def test_the_basis_stays_orthonormal_where_the_weight_has_no_full_rank(
    shape: tuple[int, int], rng: torch.Generator
) -> None:
    weighted = torch.outer(
        torch.randn(shape[0], dtype=torch.float64, generator=rng),
        torch.randn(shape[1], dtype=torch.float64, generator=rng),
    )
    basis, errors = output_basis(weighted, _moments(shape[1], "matrix", rng), ridge=1e-3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert errors[0] > 0
    assert (errors[1:] <= 1e-12 * errors[0]).all()


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)], ids=str)
def test_the_pair_is_the_projection_in_the_output_metric(
    shape: tuple[int, int], rng: torch.Generator
) -> None:
    dense = torch.randn(shape, dtype=torch.float64, generator=rng)
    gram = torch.randn((shape[0], shape[0]), dtype=torch.float64, generator=rng)
    root, inverse = square_roots(gram @ gram.T, shrink=0.1)
    moments = _moments(shape[1], "matrix", rng)
    basis, errors = output_basis(root @ dense, moments, ridge=1e-3)
    for rank in range(1, min(shape) + 1):
        first, second = project_pair(dense, basis, rank, root, inverse)
        assert first.shape == (rank, shape[1])
        assert second.shape == (shape[0], rank)
        error = _error(root @ (dense - second @ first), moments)
        torch.testing.assert_close(error, errors[rank], rtol=0, atol=1e-10 * float(errors[0]))
    torch.testing.assert_close(second @ first, dense, rtol=0, atol=1e-10)


def test_very_large_weights_are_decomposed_in_float32(rng: torch.Generator) -> None:
    dense = torch.randn((4, 7), dtype=torch.float64, generator=rng)
    sums = MomentSums(7, keep_rows=True)
    sums.add(torch.randn((5, 7), generator=rng))
    gram = torch.randn((4, 4), dtype=torch.float64, generator=rng)
    root, inverse = square_roots(gram @ gram.T, shrink=0.1)
    exact_basis, exact = output_basis(root @ dense, sums.moments(), ridge=0.5)
    expected = project_pair(dense, exact_basis, 2, root, inverse)
    dense = dense.float()
    basis, errors = output_basis(weighted_by(root, dense), sums.moments(), ridge=0.5)
    torch.testing.assert_close(errors, exact, rtol=0, atol=1e-5 * float(exact[0]))
    first, second = project_pair(dense, basis, 2, root, inverse)
    assert first.dtype == second.dtype == torch.float32
    exact_weight = (expected[1] @ expected[0]).float()
    torch.testing.assert_close(second @ first, exact_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["matrix", "rows"])
def test_directions_of_a_wide_layer_are_right_to_float32(kind: str, rng: torch.Generator) -> None:
    # Above 1,024 outputs they are found in float32.
    decay = torch.logspace(0, -3, 1100, dtype=torch.float64)
    weighted = decay[:, None] * torch.randn((1100, 1200), dtype=torch.float64, generator=rng)
    sums = MomentSums(1200, keep_rows=kind == "rows")
    sums.add(torch.randn((60, 1200), generator=rng))
    moments = sums.moments()
    basis, errors = output_basis(weighted, moments, ridge=1e-2)
    total = float(errors[0])
    torch.testing.assert_close(errors[0], _error(weighted, moments))
    for rank in (5, 40, 300):
        leading = basis[:, :rank]
        explicit = _error(weighted - leading @ (leading.T @ weighted), moments)
        torch.testing.assert_close(errors[rank], explicit, rtol=0, atol=1e-5 * total)
    # 60 rows span 59 directions about their mean, and so many leading outputs carry nearly all.
    assert float(errors[59]) < 1e-3 * total
    torch.testing.assert_close(basis.T @ basis, torch.eye(1100, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_diagonal", [False, True])
@pytest.mark.parametrize("kind", ["matrix", "rows", "identity"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)], ids=str)
def test_leading_directions_alone_lose_hardly_more_than_those_of_all(
    shape: tuple[int, int], kind: str, is_diagonal: bool, rng: torch.Generator
) -> None:
    dense = torch.randn(shape, dtype=torch.float64, generator=rng)
    gradients = torch.randn((200, shape[0]), dtype=torch.float64, generator=rng)
    gram = gradients.T @ gradients / 200
    root, _ = square_roots(gram.diagonal() if is_diagonal else gram, shrink=0.1)
    moments, ridge, rank = _moments(shape[1], kind, rng), 0.1, 7
    weighted = weighted_by(root, dense)
    value = ridge * moments.mean_diagonal

    def lost(directions: Tensor) -> float:
        rest = weighted - directions @ (directions.T @ weighted)
        return float(_error(rest, moments) + value * rest.square().sum() / 2)

    least = lost(output_basis(weighted, moments, ridge=ridge)[0][:, :rank])
    anew = leading_directions(dense, root, moments, ridge=ridge, rank=rank)
    assert anew.shape == (shape[0], rank)
    torch.testing.assert_close(anew.T @ anew, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-5)
    assert least * (1 - 1e-6) <= lost(anew) <= 1.005 * least
    again = leading_directions(dense, root, moments, ridge=ridge, rank=rank)
    assert torch.equal(again, anew)
    # Those of a similar weight are a start, from which two rounds do.
    moved = dense + 0.01 * torch.randn(shape, dtype=torch.float64, generator=rng)
    start = leading_directions(moved, root, moments, ridge=ridge, rank=rank)
    assert (
        lost(leading_directions(dense, root, moments, ridge=ridge, rank=rank, start=start)) <= 1.005 * least
    )


def test_leading_directions_are_found_alone_where_few_of_many_are_wanted() -> None:
    assert has_leading_directions(4096, 9216, 80)
    assert not has_leading_directions(4096, 9216, 1000)
    assert not has_leading_directions(512, 4608, 8)
