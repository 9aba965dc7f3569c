# SPDX-License-Identifier: Apache-2.0
"""Three factors on float64 matrices: errors of all ranks, fits, and the same from rows instead of moments."""

import pytest
import torch
from torch import Tensor

from slimrank.linalg import (
    RidgedRows,
    Split,
    SplitMoments,
    fit_tucker,
    initial_first_factor,
    tucker_errors,
)

_SPLIT = Split(channels=5, first_taps=1, second_taps=3)
_OUTPUTS = 7


def _rows(rng: torch.Generator, count: int) -> Tensor:
    mixing = torch.randn((15, 15), dtype=torch.float64, generator=rng)
    return torch.randn((count, 15), dtype=torch.float64, generator=rng) @ mixing / count**0.5


def _as_matrix(rows: RidgedRows) -> Tensor:
    return rows.rows.T @ rows.rows + rows.ridge * torch.eye(rows.rows.shape[1], dtype=torch.float64)


def _basis(weighted: Tensor, moment: Tensor) -> Tensor:
    return torch.linalg.eigh(weighted @ moment @ weighted.T)[1].flip(1)


def _table(weighted: Tensor, moment: SplitMoments, basis: Tensor) -> Tensor:
    first = initial_first_factor(weighted, moment, _SPLIT)
    return tucker_errors(weighted, weighted @ moment, moment, first, basis, _SPLIT)


def _error(weighted: Tensor, moment: Tensor, factors: object) -> float:
    rest = weighted - _weight(factors)
    return float(torch.trace(rest @ moment @ rest.T)) / 2


def _weight(factors: object) -> Tensor:
    first, core, last = (getattr(factors, name) for name in ("first", "core", "last"))
    return torch.einsum("or,rps,pi->ois", last, core, first).reshape(len(last), -1)


@pytest.fixture
def weighted(rng: torch.Generator) -> Tensor:
    return torch.randn((_OUTPUTS, 15), dtype=torch.float64, generator=rng)


def test_errors_of_all_ranks_are_those_of_least_squares(weighted: Tensor, rng: torch.Generator) -> None:
    moment = _as_matrix(RidgedRows(rows=_rows(rng, 60), ridge=1e-3))
    basis, first = _basis(weighted, moment), initial_first_factor(weighted, moment, _SPLIT)
    table = _table(weighted, moment, basis)
    assert table.shape == (5, _OUTPUTS)
    for p in range(1, 6):
        spread = torch.kron(first[:p, :, 0], torch.eye(3, dtype=torch.float64))  # (p S, D)
        core = weighted @ moment @ spread.T @ torch.linalg.inv(spread @ moment @ spread.T)
        for r in range(1, _OUTPUTS + 1):
            kept = basis[:, :r] @ basis[:, :r].T
            rest = weighted - kept @ core @ spread
            expected = torch.trace(rest @ moment @ rest.T) / 2
            torch.testing.assert_close(table[p - 1, r - 1], expected, rtol=1e-9, atol=1e-9)


def test_errors_fall_along_both_ranks_to_nothing(weighted: Tensor, rng: torch.Generator) -> None:
    moment = _as_matrix(RidgedRows(rows=_rows(rng, 60), ridge=1e-3))
    table = _table(weighted, moment, _basis(weighted, moment))
    # Rounding alone may lift an error.
    assert (table[1:] <= table[:-1] + 1e-9).all()
    assert (table[:, 1:] <= table[:, :-1] + 1e-9).all()
    assert float(table[-1, -1]) < 1e-9 * float(table[0, 0])


@pytest.mark.parametrize("alternations", [0, 3])
def test_a_fit_has_the_error_that_its_gain_tells(
    weighted: Tensor, alternations: int, rng: torch.Generator
) -> None:
    moment = _as_matrix(RidgedRows(rows=_rows(rng, 60), ridge=1e-3))
    basis = _basis(weighted, moment)
    table = _table(weighted, moment, basis)
    for p, r in ((2, 3), (3, 2), (5, 4), (4, 7)):
        fitted = fit_tucker(
            weighted, weighted @ moment, moment, basis[:, :r], p, _SPLIT, alternations=alternations
        )
        assert (fitted.first.shape, fitted.core.shape, fitted.last.shape) == ((p, 5), (r, p, 3), (7, r))
        error = _error(weighted, moment, fitted)
        total = float(torch.trace(weighted @ moment @ weighted.T))
        assert error == pytest.approx((total - fitted.gain) / 2, rel=1e-8)
        # The first factor is the best for the outputs that are kept, the last factor for it.
        assert error <= float(table[p - 1, r - 1]) * (1 + 0.02)


def test_rounds_never_lose_gain(weighted: Tensor, rng: torch.Generator) -> None:
    moment = _as_matrix(RidgedRows(rows=_rows(rng, 60), ridge=1e-3))
    basis = _basis(weighted, moment)[:, :3]
    gains = [
        fit_tucker(weighted, weighted @ moment, moment, basis, 2, _SPLIT, alternations=rounds).gain
        for rounds in range(4)
    ]
    assert gains == sorted(gains)
    assert gains[-1] > gains[0]


def test_an_exact_kernel_of_few_directions_is_found(rng: torch.Generator) -> None:
    first, core, last = (
        torch.randn(shape, dtype=torch.float64, generator=rng) for shape in ((2, 5), (3, 2, 3), (7, 3))
    )
    weighted = torch.einsum("or,rps,pi->ois", last, core, first).reshape(7, 15)
    moment = _as_matrix(RidgedRows(rows=_rows(rng, 60), ridge=1e-3))
    basis = _basis(weighted, moment)
    total = float(torch.trace(weighted @ moment @ weighted.T))
    assert float(_table(weighted, moment, basis)[1, 2]) < 1e-9 * total
    fitted = fit_tucker(weighted, weighted @ moment, moment, basis[:, :3], 2, _SPLIT, alternations=0)
    torch.testing.assert_close(_weight(fitted), weighted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [4, 12, 40])
@pytest.mark.parametrize("alternations", [0, 2])
def test_rows_give_what_their_moments_give(
    weighted: Tensor, count: int, alternations: int, rng: torch.Generator
) -> None:
    rows = RidgedRows(rows=_rows(rng, count), ridge=0.05)
    moment = _as_matrix(rows)
    basis = _basis(weighted, moment)
    for p, r in ((2, 3), (4, 6)):
        by_rows, by_matrix = (
            fit_tucker(weighted, weighted @ known, known, basis[:, :r], p, _SPLIT, alternations=alternations)
            for known in (rows, moment)
        )
        # Steps of the first factor are in float32.
        assert by_rows.gain == pytest.approx(by_matrix.gain, rel=1e-5)
        torch.testing.assert_close(_weight(by_rows), _weight(by_matrix), rtol=0, atol=1e-3)


def test_errors_on_rows_are_bounds_that_fall(weighted: Tensor, rng: torch.Generator) -> None:
    rows = RidgedRows(rows=_rows(rng, 200), ridge=1e-3)
    plain = rows.rows.T @ rows.rows
    basis = _basis(weighted, plain)
    table = _table(weighted, rows, basis)
    assert (table[1:] <= table[:-1] + 1e-9).all()
    assert (table[:, 1:] <= table[:, :-1] + 1e-9).all()
    for p, r in ((2, 3), (4, 5)):
        moment = _as_matrix(rows)
        fitted = fit_tucker(weighted, weighted @ moment, moment, basis[:, :r], p, _SPLIT, alternations=3)
        assert _error(weighted, plain, fitted) <= float(table[p - 1, r - 1]) * (1 + 1e-6)


def test_without_rows_the_weights_alone_count(weighted: Tensor) -> None:
    rows = RidgedRows(rows=weighted.new_zeros(0, 15), ridge=1.0)
    eye = torch.eye(15, dtype=torch.float64)
    basis = _basis(weighted, eye)
    torch.testing.assert_close(
        _table(weighted, rows, basis), _table(weighted, eye, basis), rtol=1e-6, atol=1e-9
    )
    by_rows, by_matrix = (
        fit_tucker(weighted, weighted @ known, known, basis[:, :3], 2, _SPLIT, alternations=1)
        for known in (rows, eye)
    )
    assert by_rows.gain == pytest.approx(by_matrix.gain, rel=1e-5)
