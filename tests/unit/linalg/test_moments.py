# SPDX-License-Identifier: Apache-2.0
"""Second moments against numpy, streamed and whole; the least-squares weight against lstsq."""

import numpy as np
import pytest
import torch
from torch import Tensor

from slimrank import ShapeError
from slimrank.linalg import Moments, MomentSums, least_squares_weight, narrowed_weight, ridge_of


def _summed(rows: Tensor, chunks: list[int], *, keep_rows: bool = False) -> Moments:
    sums = MomentSums(rows.shape[1], keep_rows=keep_rows)
    for part in rows.split(chunks):
        sums.add(part)
    return sums.moments()


def _mixed(shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Correlated columns, with a mean."""
    mixing = torch.randn(shape[1], shape[1], generator=rng)
    return torch.randn(shape, generator=rng) @ mixing + torch.randn(shape[1], generator=rng)


def _both_modes(rng: torch.Generator) -> tuple[Moments, Moments]:
    rows = _mixed((40, 5), rng)
    return _summed(rows, [40]), _summed(rows, [40], keep_rows=True)


@pytest.mark.parametrize("keep_rows", [False, True])
@pytest.mark.parametrize("chunks", [[50], [1, 2, 47], [0, 25, 25], [10] * 5], ids=str)
def test_moments_are_mean_and_covariance(chunks: list[int], keep_rows: bool, rng: torch.Generator) -> None:
    rows = _mixed((50, 6), rng)
    moments = _summed(rows, chunks, keep_rows=keep_rows)
    exact = rows.double().numpy()
    # Products of at most 50 float32 rows: a few float32 roundings of the largest entry.
    atol = 1e-5 * np.abs(np.cov(exact.T)).max()
    np.testing.assert_allclose(moments.mean.numpy(), exact.mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        moments.gram(torch.eye(6, dtype=torch.float64)).numpy(), np.cov(exact.T, bias=True), rtol=0, atol=atol
    )
    assert moments.n_rows == 50
    assert (moments.rows is not None, moments.matrix is None) == (keep_rows, keep_rows)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_a_large_mean_costs_no_precision(keep_rows: bool, rng: torch.Generator) -> None:
    rows = torch.randn((2000, 4), generator=rng) + 1e4
    moments = _summed(rows, [500] * 4, keep_rows=keep_rows)
    exact = np.cov(rows.double().numpy().T, bias=True)
    # Unshifted float32 squares (1e8) would be off by units; float32 rows around their mean by about 1e-6.
    np.testing.assert_allclose(
        moments.gram(torch.eye(4, dtype=torch.float64)).numpy(), exact, rtol=0, atol=1e-5
    )


def test_half_precision_rows_are_summed_in_float32(rng: torch.Generator) -> None:
    rows = torch.randn((300, 3), generator=rng).bfloat16()
    expected = _summed(rows.float(), [300])
    torch.testing.assert_close(_summed(rows, [300]).matrix, expected.matrix, rtol=0, atol=0)


def test_matrix_and_rows_agree(rng: torch.Generator) -> None:
    by_matrix, by_rows = _both_modes(rng)
    left = torch.randn((3, 5), dtype=torch.float64, generator=rng)
    # Float32 products on one side, float64 on the other.
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(by_rows.times(left), by_matrix.times(left), **near)
    torch.testing.assert_close(by_rows.gram(left), by_matrix.gram(left), **near)
    torch.testing.assert_close(by_rows.diagonal_of(left), by_matrix.diagonal_of(left), **near)
    torch.testing.assert_close(by_rows.ridged(0.1), by_matrix.ridged(0.1), **near)
    assert by_rows.mean_diagonal == pytest.approx(by_matrix.mean_diagonal, rel=1e-5)


def test_the_products_belong_to_one_matrix(rng: torch.Generator) -> None:
    moments, _ = _both_modes(rng)
    left = torch.randn((3, 5), dtype=torch.float64, generator=rng)
    assert moments.matrix is not None
    torch.testing.assert_close(moments.gram(left), moments.times(left) @ left.T)
    torch.testing.assert_close(moments.diagonal_of(left), moments.gram(left).diagonal())
    added = moments.ridged(0.25) - moments.matrix
    torch.testing.assert_close(added, 0.25 * moments.mean_diagonal * torch.eye(5, dtype=torch.float64))


def test_identity_is_the_unit_matrix(rng: torch.Generator) -> None:
    identity = Moments.identity(5, torch.device("cpu"))
    eye = torch.eye(5, dtype=torch.float64)
    explicit = Moments(mean=torch.zeros(5, dtype=torch.float64), matrix=eye, rows=None, n_rows=1)
    left = torch.randn((3, 5), dtype=torch.float64, generator=rng)
    torch.testing.assert_close(identity.times(left), explicit.times(left))
    torch.testing.assert_close(identity.gram(left), explicit.gram(left))
    torch.testing.assert_close(identity.diagonal_of(left), explicit.diagonal_of(left))
    torch.testing.assert_close(identity.ridged(0.5), eye)
    assert identity.mean_diagonal == explicit.mean_diagonal == 1.0
    assert identity.n_rows == 0


@pytest.mark.parametrize("keep_rows", [False, True])
def test_inputs_that_never_vary_get_the_identity_as_ridge(keep_rows: bool) -> None:
    moments = _summed(torch.full((7, 3), 2.5), [3, 4], keep_rows=keep_rows)
    torch.testing.assert_close(moments.mean, torch.full((3,), 2.5, dtype=torch.float64))
    torch.testing.assert_close(moments.ridged(1e-3), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("keep_rows", [False, True])
def test_no_rows_give_empty_moments(keep_rows: bool) -> None:
    moments = MomentSums(3, keep_rows=keep_rows).moments()
    assert moments.mean_diagonal == 0
    torch.testing.assert_close(
        moments.gram(torch.eye(3, dtype=torch.float64)), torch.zeros((3, 3), dtype=torch.float64)
    )


@pytest.mark.parametrize("keep_rows", [False, True])
def test_cross_is_the_covariance_with_other_rows(keep_rows: bool, rng: torch.Generator) -> None:
    rows, other = _mixed((60, 4), rng) + 30, _mixed((60, 3), rng) - 50
    sums = MomentSums(4, keep_rows=keep_rows, other_width=3)
    for part, other_part in zip(rows.split(25), other.split(25), strict=True):
        sums.add(part, other_part)
    cross, mean = sums.cross()
    exact = np.cov(other.double().numpy().T, rows.double().numpy().T, bias=True)[:3, 3:]
    np.testing.assert_allclose(cross.numpy(), exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    np.testing.assert_allclose(mean.numpy(), other.double().numpy().mean(0), rtol=1e-6)


@pytest.mark.parametrize("n_rows", [100, 600, 900])
def test_of_wide_rows_few_are_stored_and_many_are_summed(n_rows: int, rng: torch.Generator) -> None:
    rows, other = (torch.randn((n_rows, width), generator=rng) for width in (1100, 3))
    sums, stored = (MomentSums(1100, keep_rows=keep, other_width=3) for keep in (False, True))
    for part, other_part in zip(rows.split(250), other.split(250), strict=True):
        sums.add(part, other_part)
        stored.add(part, other_part)
    moments, expected = sums.moments(), stored.moments()
    assert (moments.rows is not None, moments.matrix is None) == (n_rows <= 550, n_rows <= 550)
    left = torch.randn((2, 1100), dtype=torch.float64, generator=rng)
    torch.testing.assert_close(moments.times(left), expected.times(left), rtol=1e-4, atol=1e-4)
    for found, wanted in zip(sums.cross(), stored.cross(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_cross_without_other_rows_is_refused() -> None:
    sums = MomentSums(2)
    sums.add(torch.ones(3, 2))
    with pytest.raises(TypeError, match="no other rows were added"):
        sums.cross()


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "ridge"),
    [(1000, 100, 1e-3), (10_000, 100, 1e-3), (100, 100, 1e-2), (1, 100, 1.0), (0, 100, 1.0), (5, 5000, 1.0)],
)
def test_ridge_grows_where_rows_are_few(n_rows: int, n_columns: int, ridge: float) -> None:
    assert ridge_of(n_rows, n_columns) == pytest.approx(ridge)


def _regression(
    rng: torch.Generator, n_rows: int, *, keep_rows: bool
) -> tuple[Tensor, Tensor, Moments, Tensor]:
    rows = _mixed((n_rows, 6), rng)
    weight = torch.randn((4, 6), generator=rng, dtype=torch.float64)
    wanted = _mixed((n_rows, 4), rng)
    sums = MomentSums(6, keep_rows=keep_rows, other_width=4)
    sums.add(rows, wanted)
    exact = np.linalg.lstsq(
        (rows - rows.mean(0)).double().numpy(), (wanted - wanted.mean(0)).double().numpy(), rcond=None
    )[0]
    return weight, sums.cross()[0], sums.moments(), torch.from_numpy(exact.T)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_least_squares_with_a_tiny_ridge_is_lstsq(keep_rows: bool, rng: torch.Generator) -> None:
    weight, cross, moments, exact = _regression(rng, 80, keep_rows=keep_rows)
    fitted = least_squares_weight(weight, cross, moments, ridge=1e-7)
    # Sums of float32 products, times the condition of the moments (some hundreds).
    torch.testing.assert_close(fitted, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_a_huge_ridge_keeps_the_old_weight(keep_rows: bool, rng: torch.Generator) -> None:
    weight, cross, moments, _ = _regression(rng, 80, keep_rows=keep_rows)
    fitted = least_squares_weight(weight, cross, moments, ridge=1e9)
    torch.testing.assert_close(fitted, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("n_rows", [3, 80])
def test_least_squares_by_rows_is_that_by_matrix(n_rows: int, ridge: float) -> None:
    results = [
        _regression(torch.Generator().manual_seed(1), n_rows, keep_rows=keep_rows)
        for keep_rows in (False, True)
    ]
    by_matrix, by_rows = (
        least_squares_weight(weight, cross, moments, ridge=ridge) for weight, cross, moments, _ in results
    )
    # Float32 sums against float64 ones, divided by the ridge.
    torch.testing.assert_close(by_rows, by_matrix, rtol=0, atol=1e-5 / ridge)


def test_least_squares_without_moments_takes_what_is_asked(rng: torch.Generator) -> None:
    weight, cross = torch.randn((2, 3, 4), dtype=torch.float64, generator=rng)
    identity = Moments.identity(4, torch.device("cpu"))
    torch.testing.assert_close(least_squares_weight(weight, cross, identity, ridge=1e-3), cross)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_least_squares_on_constant_inputs_keeps_the_old_weight(keep_rows: bool, rng: torch.Generator) -> None:
    sums = MomentSums(3, keep_rows=keep_rows, other_width=2)
    sums.add(torch.ones(9, 3), torch.ones(9, 2))
    weight = torch.randn((2, 3), dtype=torch.float64, generator=rng)
    fitted = least_squares_weight(weight, sums.cross()[0], sums.moments(), ridge=1e-3)
    torch.testing.assert_close(fitted, weight)


def test_wide_moments_are_symmetric_and_right() -> None:
    # Above the block size, where half of the product is copied.
    rows = torch.randn(900, 601, generator=torch.Generator().manual_seed(0))
    sums = MomentSums(601)
    sums.add(rows[:500])
    sums.add(rows[500:])
    matrix = sums.moments().matrix
    assert matrix is not None
    torch.testing.assert_close(matrix, matrix.T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(matrix, torch.cov(rows.double().T, correction=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_moments_of_some_columns_are_those_of_their_rows(keep_rows: bool, rng: torch.Generator) -> None:
    rows, columns = _mixed((40, 6), rng), torch.tensor([4, 0, 3])
    part = _summed(rows, [40], keep_rows=keep_rows).restricted(columns)
    expected = _summed(rows[:, columns].contiguous(), [40], keep_rows=keep_rows)
    assert part.n_rows == 40
    assert (part.rows is None, part.matrix is None) == (not keep_rows, keep_rows)
    torch.testing.assert_close(part.mean, expected.mean)
    eye = torch.eye(3, dtype=torch.float64)
    # float32 sums over 40 rows, in another order.
    torch.testing.assert_close(part.gram(eye), expected.gram(eye), rtol=1e-5, atol=1e-5)


def test_some_columns_of_the_identity_are_the_identity() -> None:
    part = Moments.identity(5, torch.device("cpu")).restricted(torch.tensor([1, 3]))
    assert (part.matrix, part.rows, part.n_rows) == (None, None, 0)
    assert part.mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("keep_rows", [False, True])
def test_narrowed_weights_are_a_regression_on_what_stays(keep_rows: bool, rng: torch.Generator) -> None:
    rows, columns = _mixed((60, 6), rng), torch.tensor([0, 2, 3, 5])
    weight = torch.randn((3, 6), dtype=torch.float64, generator=rng)
    moments = _summed(rows, [60], keep_rows=keep_rows)
    narrow, part = narrowed_weight(weight, moments, columns, ridge=1e-9)
    centred = rows.double() - rows.double().mean(0)
    expected = np.linalg.lstsq(centred[:, columns].numpy(), (centred @ weight.T).numpy(), rcond=None)[0]
    np.testing.assert_allclose(narrow.numpy(), expected.T, rtol=0, atol=1e-4)
    torch.testing.assert_close(part.mean, moments.mean[columns])
    # With the bias that the mean asks for, the outputs keep theirs.
    bias = weight @ moments.mean - narrow @ part.mean
    kept = rows.double()[:, columns] @ narrow.T + bias
    torch.testing.assert_close(kept.mean(0), (rows.double() @ weight.T).mean(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_much_ridge_leaves_the_columns_that_stay(keep_rows: bool, rng: torch.Generator) -> None:
    weight = torch.randn((3, 6), dtype=torch.float64, generator=rng)
    moments = _summed(_mixed((60, 6), rng), [60], keep_rows=keep_rows)
    columns = torch.tensor([1, 2])
    narrow, _ = narrowed_weight(weight, moments, columns, ridge=1e9)
    torch.testing.assert_close(narrow, weight[:, columns], rtol=0, atol=1e-6)


def test_columns_that_are_copies_take_over_from_each_other(rng: torch.Generator) -> None:
    rows = torch.randn((50, 2), generator=rng).repeat(1, 2)
    weight = torch.randn((3, 4), dtype=torch.float64, generator=rng)
    narrow, _ = narrowed_weight(weight, _summed(rows, [50]), torch.tensor([0, 1]), ridge=1e-9)
    torch.testing.assert_close(narrow, weight[:, :2] + weight[:, 2:], rtol=0, atol=1e-5)


def test_nothing_known_of_the_inputs_keeps_the_columns(rng: torch.Generator) -> None:
    weight = torch.randn((3, 4), dtype=torch.float64, generator=rng)
    narrow, _ = narrowed_weight(
        weight, Moments.identity(4, torch.device("cpu")), torch.tensor([0, 3]), ridge=1e-3
    )
    torch.testing.assert_close(narrow, weight[:, [0, 3]])


@pytest.mark.parametrize("keep_rows", [False, True])
def test_weights_in_blocks_are_fitted_block_by_block(keep_rows: bool, rng: torch.Generator) -> None:
    sums = MomentSums(6, keep_rows=keep_rows, other_width=4)
    inputs = torch.randn((200, 6), generator=rng) @ torch.randn((6, 6), generator=rng)
    sums.add(inputs, torch.randn((200, 4), generator=rng) + inputs[:, :4])
    moments, (cross, _) = sums.moments(), sums.cross()
    weight = torch.block_diag(*torch.randn((2, 2, 3), generator=rng, dtype=torch.float64))
    fitted = least_squares_weight(weight, cross, moments, ridge=1e-3, n_groups=2)
    assert torch.equal(fitted != 0, weight != 0)
    for rows, columns in ((slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6))):
        own = moments.block(torch.arange(6)[columns])
        alone = least_squares_weight(weight[rows, columns], cross[rows, columns], own, ridge=1e-3)
        torch.testing.assert_close(fitted[rows, columns], alone)
    narrow, part = narrowed_weight(weight, moments, torch.tensor([0, 2, 3, 5]), ridge=1e-3, n_groups=2)
    assert torch.equal(narrow != 0, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) != 0)
    assert len(part.mean) == 4


def _in_blocks(matrix: Tensor, n_groups: int) -> Tensor:
    """The blocks on the diagonal, zeros elsewhere."""
    rows, columns = (torch.arange(size) // (size // n_groups) for size in matrix.shape)
    return matrix * (rows[:, None] == columns)


def _grouped_sums(rows: Tensor, other: Tensor, *, keep_rows: bool, n_groups: int) -> MomentSums:
    sums = MomentSums(rows.shape[1], keep_rows=keep_rows, other_width=other.shape[1], n_groups=n_groups)
    for part, other_part in zip(rows.split(17), other.split(17), strict=True):
        sums.add(part, other_part)
    return sums


@pytest.mark.parametrize("keep_rows", [False, True])
def test_moments_of_groups_are_the_blocks_of_all(keep_rows: bool, rng: torch.Generator) -> None:
    rows, other = _mixed((60, 12), rng), _mixed((60, 6), rng)
    sums = _grouped_sums(rows, other, keep_rows=keep_rows, n_groups=3)
    moments = sums.moments()
    assert (moments.matrix is None) == keep_rows
    assert keep_rows or moments.matrix.shape == (3, 4, 4)
    covariance = torch.cov(rows.double().T, correction=0)
    expected = _in_blocks(covariance, 3)
    # Sums of 60 float32 products.
    atol = 1e-5 * float(covariance.abs().max())
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(moments.times(eye), expected, rtol=0, atol=atol)
    torch.testing.assert_close(moments.mean, rows.double().mean(0), rtol=0, atol=1e-5)
    assert moments.mean_diagonal == pytest.approx(float(covariance.diagonal().mean()), rel=1e-5)
    left = torch.randn((5, 12), dtype=torch.float64, generator=rng)
    squares = left @ expected @ left.T
    torch.testing.assert_close(moments.gram(left), squares, rtol=1e-4, atol=atol)
    torch.testing.assert_close(moments.diagonal_of(left), squares.diagonal(), rtol=1e-4, atol=atol)
    about_zero = expected + _in_blocks(moments.mean.outer(moments.mean), 3)
    torch.testing.assert_close(moments.about_zero().times(eye), about_zero, rtol=0, atol=2 * atol)
    cross, mean = sums.cross()
    both = torch.cov(torch.cat([other, rows], dim=1).double().T, correction=0)[:6, 6:]
    torch.testing.assert_close(cross, _in_blocks(both, 3), rtol=0, atol=2 * atol)
    torch.testing.assert_close(mean, other.double().mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_some_columns_of_groups(keep_rows: bool, rng: torch.Generator) -> None:
    rows = _mixed((60, 12), rng)
    moments = _grouped_sums(rows, rows[:, :3], keep_rows=keep_rows, n_groups=3).moments()
    covariance = torch.cov(rows.double().T, correction=0)
    atol = 1e-5 * float(covariance.abs().max())
    for columns, n_groups in (([1, 3, 9, 10], 2), ([4, 6, 7], 1), ([0, 1, 4, 5, 8, 11], 3)):
        part = moments.restricted(torch.tensor(columns))
        assert part.n_groups == n_groups
        expected = _in_blocks(covariance[columns][:, columns], n_groups)
        eye = torch.eye(len(columns), dtype=torch.float64)
        torch.testing.assert_close(part.times(eye), expected, rtol=0, atol=atol)
        as_matrix = moments.block(torch.tensor(columns))
        assert as_matrix.rows is None
        torch.testing.assert_close(as_matrix.times(eye), expected, rtol=0, atol=atol)
    with pytest.raises(ShapeError, match="columns of 3 groups: 2, 1, 0 of them would stay; keep equally"):
        moments.restricted(torch.tensor([0, 1, 4]))
    with pytest.raises(ShapeError, match="moments of 3 groups: each has a ridge of its own"):
        moments.ridged(1e-3)


def test_fits_of_groups_need_nothing_but_their_blocks(rng: torch.Generator) -> None:
    rows, wanted = _mixed((90, 12), rng), _mixed((90, 6), rng)
    weight = torch.block_diag(*torch.randn((3, 2, 4), dtype=torch.float64, generator=rng))
    found = []
    for n_groups in (1, 3):
        sums = _grouped_sums(rows, wanted, keep_rows=False, n_groups=n_groups)
        fitted = least_squares_weight(weight, sums.cross()[0], sums.moments(), ridge=1e-3, n_groups=3)
        columns = torch.tensor([0, 2, 4, 6, 8, 10])
        narrow, left = narrowed_weight(weight, sums.moments(), columns, ridge=1e-3, n_groups=3)
        assert left.n_groups == n_groups
        found.append((fitted, narrow))
    for of_all, of_groups in zip(*found, strict=True):
        torch.testing.assert_close(of_groups, of_all, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_rows", [500, 600])
def test_of_wide_groups_few_rows_are_stored(n_rows: int, rng: torch.Generator) -> None:
    # A group is 1100 columns wide: half as many rows are stored, more are summed.
    rows = torch.randn((n_rows, 2200), generator=rng)
    sums = MomentSums(2200, n_groups=2)
    sums.add(rows)
    moments = sums.moments()
    assert (moments.matrix is None) == (n_rows == 500)
    left = torch.randn((2, 2200), dtype=torch.float64, generator=rng)
    exact = _in_blocks(torch.cov(rows.double().T, correction=0), 2)
    torch.testing.assert_close(moments.times(left), left @ exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep_rows", [False, True])
@pytest.mark.parametrize(("scale", "mean"), [(1e-22, 0.0), (0.0, 3.0), (1e-7, 10.0)])
def test_values_that_vary_by_rounding_have_no_moments(
    scale: float, mean: float, keep_rows: bool, rng: torch.Generator
) -> None:
    moments = _summed(torch.randn(40, 5, generator=rng) * scale + mean, [25, 15], keep_rows=keep_rows)
    assert moments.mean_diagonal == 0
    assert moments.mean.tolist() == pytest.approx([mean] * 5)
    assert not moments.times(torch.ones(1, 5, dtype=torch.float64)).any()


@pytest.mark.parametrize(("scale", "mean"), [(1e-18, 0.0), (1e-4, 10.0)])
def test_small_values_that_vary_keep_their_moments(scale: float, mean: float, rng: torch.Generator) -> None:
    moments = _summed(torch.randn(400, 5, generator=rng) * scale + mean, [400])
    assert moments.mean_diagonal == pytest.approx(scale**2, rel=0.2)
