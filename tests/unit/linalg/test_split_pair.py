# SPDX-License-Identifier: Apache-2.0
"""Pairs that share the taps of a kernel: bounds, least squares, refinement."""

import pytest
import torch
from torch import Tensor

import seams
from slimrank.linalg import (
    Moments,
    RidgedRows,
    Split,
    SplitFactors,
    fit_split,
    initial_first_factor,
    nested_errors,
    output_basis,
    refine_split,
)

_SPLITS = {
    "1x1 then kxk": Split(channels=5, first_taps=1, second_taps=4),
    "spatial": Split(channels=3, first_taps=3, second_taps=2),
    "kxk then 1x1": Split(channels=2, first_taps=5, second_taps=1),
    "one channel": Split(channels=1, first_taps=3, second_taps=3),
}
_OUT = [2, 6]


def _width(split: Split) -> int:
    return split.channels * split.first_taps * split.second_taps


def _problem(split: Split, n_out: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and a strongly correlated, regular moment matrix."""
    width = _width(split)
    weighted = torch.randn((n_out, width), dtype=torch.float64, generator=rng)
    mixing = torch.randn((width, width), dtype=torch.float64, generator=rng)
    moment = mixing @ mixing.T + 0.1 * torch.eye(width, dtype=torch.float64)
    return weighted, moment


def _weight_of(factors: SplitFactors) -> Tensor:
    product = torch.einsum("ops,pif->oifs", factors.second, factors.first)
    return product.reshape(len(product), -1)


def _error(weighted: Tensor, weight: Tensor, moment: Tensor) -> Tensor:
    difference = weighted - weight
    return (difference @ moment @ difference.T).trace() / 2


@pytest.mark.parametrize("n_out", _OUT)
@pytest.mark.parametrize("name", _SPLITS)
def test_rows_with_a_ridge_are_as_good_as_their_matrix(name: str, n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    rows = torch.randn((4, _width(split)), dtype=torch.float64, generator=rng)
    weighted = torch.randn((n_out, _width(split)), dtype=torch.float64, generator=rng)
    matrix = rows.T @ rows + 0.2 * torch.eye(_width(split), dtype=torch.float64)
    results = []
    for moment in (matrix, RidgedRows(rows=rows, ridge=0.2)):
        target = weighted @ moment
        first = initial_first_factor(weighted, moment, split)
        errors = nested_errors(weighted, target, moment, first, split)
        rank = max(len(first) // 2, 1)
        factors = fit_split(target, moment, first[:rank], split)
        refined = refine_split(target, moment, factors, split, alternations=2)
        results.append((target, errors, _weight_of(factors), _weight_of(refined)))
    for by_matrix, by_rows in zip(*results, strict=True):
        # Refinement works in float32 and stops where little is gained.
        torch.testing.assert_close(by_rows, by_matrix, rtol=0, atol=1e-4 * float(by_matrix.abs().max()))


@pytest.mark.parametrize("n_out", _OUT)
@pytest.mark.parametrize("name", _SPLITS)
def test_products_in_float32_come_near_those_in_float64(name: str, n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, n_out, rng)
    target = weighted @ moment
    first = initial_first_factor(weighted, moment, split)
    rough = nested_errors(weighted, target.float(), moment.float(), first, split)
    exact = nested_errors(weighted, target, moment, first, split)
    assert rough.dtype == torch.float64
    torch.testing.assert_close(rough, exact, rtol=0, atol=1e-4 * float(exact[0]))


@pytest.mark.parametrize("name", _SPLITS)
def test_errors_of_wide_layers_are_found_in_float32(
    name: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, 6, rng)
    first = initial_first_factor(weighted, moment, split)
    exact = nested_errors(weighted, weighted @ moment, moment, first, split)
    seams.errors_in_float32(monkeypatch)
    rough = nested_errors(weighted, weighted @ moment, moment, first, split)
    assert rough.dtype == torch.float64
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0, atol=1e-5 * float(exact[0]))


@pytest.mark.parametrize("n_out", _OUT)
@pytest.mark.parametrize("name", _SPLITS)
def test_nested_errors_are_those_of_the_fit_at_each_rank(name: str, n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, n_out, rng)
    first = initial_first_factor(weighted, moment, split)
    errors = nested_errors(weighted, weighted @ moment, moment, first, split)
    total = _error(weighted, torch.zeros_like(weighted), moment)
    atol = 1e-10 * float(total)
    torch.testing.assert_close(errors[0], total)
    assert first.shape == (
        min(split.channels * split.first_taps, n_out * split.second_taps),
        split.channels,
        split.first_taps,
    )
    for rank in range(1, len(first) + 1):
        factors = fit_split(weighted @ moment, moment, first[:rank], split)
        explicit = _error(weighted, _weight_of(factors), moment)
        torch.testing.assert_close(errors[rank], explicit, rtol=0, atol=atol)
        assert float(explicit) == pytest.approx(float(total) - factors.gain / 2, abs=atol)
    assert (errors.diff() <= 0).all()


@pytest.mark.parametrize("n_out", _OUT)
@pytest.mark.parametrize("name", _SPLITS)
def test_full_rank_gives_the_weight_back(name: str, n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, n_out, rng)
    first = initial_first_factor(weighted, moment, split)
    factors = fit_split(weighted @ moment, moment, first, split)
    torch.testing.assert_close(_weight_of(factors), weighted, rtol=0, atol=1e-8)
    assert (
        nested_errors(weighted, weighted @ moment, moment, first, split)[-1]
        <= 1e-12 * (weighted @ moment * weighted).sum()
    )


@pytest.mark.parametrize("n_out", _OUT)
def test_one_tap_in_the_second_factor_is_the_closed_form(n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS["kxk then 1x1"]
    weighted, moment = _problem(split, n_out, rng)
    nested = nested_errors(
        weighted, weighted @ moment, moment, initial_first_factor(weighted, moment, split), split
    )
    moments = Moments(mean=torch.zeros(len(moment)).double(), matrix=moment, rows=None, n_rows=1)
    _, closed = output_basis(weighted, moments, ridge=1e-14)
    torch.testing.assert_close(nested, closed, rtol=0, atol=1e-10 * float(closed[0]))


@pytest.mark.parametrize("n_out", _OUT)
@pytest.mark.parametrize("name", _SPLITS)
def test_without_moments_the_bound_is_the_tail_of_the_unfolded_weight(
    name: str, n_out: int, rng: torch.Generator
) -> None:
    split = _SPLITS[name]
    weighted, _ = _problem(split, n_out, rng)
    eye = torch.eye(_width(split), dtype=torch.float64)
    errors = nested_errors(weighted, weighted @ eye, eye, initial_first_factor(weighted, eye, split), split)
    unfolded = weighted.view(n_out, -1, split.second_taps).transpose(0, 1).flatten(1)  # (C_in F, O S)
    energy = torch.linalg.svdvals(unfolded).square()
    expected = torch.stack([energy[r:].sum() / 2 for r in range(len(energy) + 1)])
    torch.testing.assert_close(errors, expected, rtol=0, atol=1e-12 * float(energy.sum()))


@pytest.mark.parametrize("name", _SPLITS)
def test_no_other_second_factor_is_better(name: str, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, 4, rng)
    first = initial_first_factor(weighted, moment, split)[:1]
    factors = fit_split(weighted @ moment, moment, first, split)
    best = _error(weighted, _weight_of(factors), moment)
    for _ in range(5):
        step = 1e-3 * torch.randn(factors.second.shape, dtype=torch.float64, generator=rng)
        moved = SplitFactors(first=first, second=factors.second + step, gain=0.0)
        assert _error(weighted, _weight_of(moved), moment) > best


@pytest.mark.parametrize("name", _SPLITS)
def test_refinement_never_raises_the_error(name: str, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, 4, rng)
    target = weighted @ moment
    full = initial_first_factor(weighted, moment, split)
    for rank in range(1, len(full) + 1):
        start = fit_split(target, moment, full[:rank], split)
        before = _error(weighted, _weight_of(start), moment)
        for alternations in (1, 2, 5):
            refined = refine_split(target, moment, start, split, alternations=alternations)
            after = _error(weighted, _weight_of(refined), moment)
            assert after <= before + 1e-10 * start.gain
            before = after
            assert refined.first.shape == start.first.shape


@pytest.mark.parametrize("name", ["1x1 then kxk", "spatial"])
def test_refinement_gains_where_columns_are_correlated(name: str, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    weighted, moment = _problem(split, 4, rng)
    target = weighted @ moment
    start = fit_split(target, moment, initial_first_factor(weighted, moment, split)[:2], split)
    refined = refine_split(target, moment, start, split, alternations=3)
    before, after = (_error(weighted, _weight_of(f), moment) for f in (start, refined))
    assert after < 0.99 * before
    assert float(before - after) == pytest.approx((refined.gain - start.gain) / 2)


def test_a_step_that_loses_is_not_taken(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    split = _SPLITS["spatial"]
    weighted, moment = _problem(split, 4, rng)
    target = weighted @ moment
    full = initial_first_factor(weighted, moment, split)
    start = fit_split(target, moment, full[:2], split)
    worst = full[-2:]
    assert fit_split(target, moment, worst, split).gain < start.gain
    seams.propose_first_factor(monkeypatch, worst)
    assert refine_split(target, moment, start, split, alternations=3) is start


def test_refinement_leaves_an_exact_pair_alone(rng: torch.Generator) -> None:
    split = _SPLITS["spatial"]
    weighted, moment = _problem(split, 4, rng)
    target = weighted @ moment
    start = fit_split(target, moment, initial_first_factor(weighted, moment, split), split)
    refined = refine_split(target, moment, start, split, alternations=3)
    torch.testing.assert_close(_weight_of(refined), weighted, rtol=0, atol=1e-8)
    assert refine_split(target, moment, start, split, alternations=0) is start


@pytest.mark.parametrize("n_out", [2, 40])
@pytest.mark.parametrize("name", _SPLITS)
def test_normal_equations_are_the_gradient_whichever_way(name: str, n_out: int, rng: torch.Generator) -> None:
    split = _SPLITS[name]
    _, moment = _problem(split, 2, rng)
    height = split.channels * split.first_taps
    second = torch.randn(n_out, 5, split.second_taps, dtype=torch.float64, generator=rng)
    first = torch.randn(5, height, dtype=torch.float64, generator=rng, requires_grad=True)
    weight = torch.einsum("ops,pc->ocs", second, first).reshape(n_out, -1)
    ((weight @ moment * weight).sum() / 2).backward()
    torch.testing.assert_close(seams.normal_equations(moment, second, split)(first.detach()), first.grad)
