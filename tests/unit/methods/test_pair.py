# SPDX-License-Identifier: Apache-2.0
"""Fits: the metric is obeyed, the factors are balanced, the effective weight is that of the modules."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import seams
from slimrank.capture import describe_layers
from slimrank.cost import FORM_ROWS, forms_of, max_rank
from slimrank.linalg import Moments, MomentSums, times_root
from slimrank.methods import (
    Pair,
    Target,
    build_modules,
    effective_weight,
    error_by_rank,
    fit_pair,
    metric_roots,
)
from slimrank.records import METHODS, Form, LayerSpec
from slimrank.surgery import dense_weight

_LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(6, 5),
    "conv1d": nn.Conv1d(4, 5, 3),
    "conv2d": nn.Conv2d(4, 5, (3, 2)),
    "conv2d grouped": nn.Conv2d(6, 10, (3, 2), groups=2),
    "conv3d": nn.Conv3d(2, 5, (2, 1, 3)),
}


def _spec(layer: nn.Module) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    return spec


_GRID: list[tuple[str, Form]] = [
    (name, form)
    for name, layer in _LAYERS.items()
    for method in METHODS
    for form in forms_of(_spec(layer), method)
]
_grid = pytest.mark.parametrize(("name", "form"), _GRID)


def _gram(size: int, rng: torch.Generator) -> Tensor:
    half = torch.randn((size, size), dtype=torch.float64, generator=rng) / torch.arange(1, size + 1)
    return half @ half.T


def _problem(
    name: str, rng: torch.Generator, *, keep_rows: bool = False, n_rows: int = 60, ridge: float = 1e-6
) -> tuple[LayerSpec, Target]:
    spec = _spec(_LAYERS[name])
    weight = torch.randn(spec.weight_shape, dtype=torch.float64, generator=rng).flatten(1)
    weight = torch.block_diag(*weight.chunk(spec.groups))
    width = weight.shape[1]
    sums = MomentSums(width, keep_rows=keep_rows, n_groups=spec.groups)
    sums.add(torch.randn((n_rows, width), generator=rng) @ torch.randn((width, width), generator=rng))
    root, inverse_root = metric_roots(_gram(len(weight), rng), len(weight), weight.device)
    target = Target(dense=weight, moments=sums.moments(), root=root, inverse_root=inverse_root, ridge=ridge)
    return spec, target


def _error(target: Target, weight: Tensor) -> float:
    return float(target.moments.gram(times_root(target.root, target.dense - weight)).trace()) / 2


def test_without_gradients_the_metric_is_the_identity(rng: torch.Generator) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    for root in metric_roots(None, 3, torch.device("cpu")):
        assert torch.equal(root, torch.ones(3, dtype=torch.float64))
    root, inverse_root = metric_roots(_gram(3, rng).float(), 3, torch.device("cpu"))
    assert root.dtype == torch.float64
    torch.testing.assert_close(root @ inverse_root, eye)


def test_dense_weight_is_the_flat_weight_in_double() -> None:
    layer = nn.Conv2d(2, 3, (2, 4), dtype=torch.bfloat16)
    weight = dense_weight(layer)
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((3, 16), torch.float64, False)
    assert torch.equal(weight.bfloat16().view(3, 2, 2, 4), layer.weight)


def test_modules_without_weight_are_refused() -> None:
    layer = nn.BatchNorm1d(3, affine=False)
    with pytest.raises(TypeError, match="BatchNorm1d has no weight tensor"):
        dense_weight(layer)
    spec = _spec(_LAYERS["linear"])
    pair = Pair(form="linear", first=torch.ones(1, 6, 1), second=torch.ones(5, 1, 1))
    with pytest.raises(TypeError, match="BatchNorm1d has no weight tensor"):
        build_modules(spec, layer, pair, None)


def test_the_effective_weight_by_hand() -> None:
    # Two rows, three columns, one channel in and out: W[f, s] = first[f] second[s].
    spec = replace(_spec(nn.Conv2d(1, 1, (2, 3))), name="conv")
    two, three = torch.tensor([1.0, 10.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    v_h = Pair(form="v_h", first=two.view(1, 1, 2), second=three.view(1, 1, 3))
    h_v = Pair(form="h_v", first=three.view(1, 1, 3), second=two.view(1, 1, 2))
    expected = torch.tensor([[1.0, 2, 3, 10, 20, 30]]).double()
    assert torch.equal(effective_weight(spec, v_h), expected)
    assert torch.equal(effective_weight(spec, h_v), expected)
    assert v_h.rank == 1


@_grid
def test_the_effective_weight_is_what_the_modules_compute(
    name: str, form: Form, rng: torch.Generator
) -> None:
    spec, target = _problem(name, rng)
    pair = fit_pair(spec, form, 2, target, alternations=0)
    layer = _LAYERS[name]
    modules = nn.Sequential(*build_modules(spec, layer, pair, None)).double()
    # One position: the input is the kernel's own size, one unit at a time.
    n_inputs = spec.weight_shape[1] * spec.groups
    units = torch.eye(target.dense.shape[1], dtype=torch.float64).view(-1, n_inputs, *spec.kernel)
    computed = modules(units).flatten(1).T
    torch.testing.assert_close(computed, effective_weight(spec, pair), rtol=1e-5, atol=1e-5)
    row = torch.randn(effective_weight(spec, pair).shape[1], dtype=torch.float64, generator=rng)
    torch.testing.assert_close(pair.outputs(spec, row), effective_weight(spec, pair) @ row)


@_grid
def test_factors_are_balanced(name: str, form: Form, rng: torch.Generator) -> None:
    spec, target = _problem(name, rng)
    for alternations in (0, 2):
        pair = fit_pair(spec, form, 2, target, alternations=alternations)
        assert pair.rank == 2
        for part in pair.of_groups:
            first = part.first.flatten(1).norm(dim=1)
            second = part.second.transpose(0, 1).flatten(1).norm(dim=1)
            torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("name", "form"), [pair for pair in _GRID if FORM_ROWS[pair[1]].is_closed])
def test_no_other_metric_gives_a_better_closed_form(name: str, form: Form, rng: torch.Generator) -> None:
    # The other forms have local optima, among which a wrong metric may happen on a better one.
    spec, target = _problem(name, rng)
    eye = torch.eye(len(target.dense), dtype=torch.float64)
    blind_to_outputs = replace(target, root=eye, inverse_root=eye)
    blind_to_inputs = replace(target, moments=Moments.identity(target.dense.shape[1], eye.device))
    own = _error(target, effective_weight(spec, fit_pair(spec, form, 2, target, alternations=0)))
    for other in (blind_to_outputs, blind_to_inputs):
        pair = fit_pair(spec, form, 2, other, alternations=0)
        assert own < _error(target, effective_weight(spec, pair))


@pytest.mark.parametrize(("name", "form"), [pair for pair in _GRID if not FORM_ROWS[pair[1]].is_closed])
def test_alternations_lower_the_error_of_the_other_forms(name: str, form: Form, rng: torch.Generator) -> None:
    spec, target = _problem(name, rng)
    errors = [
        _error(target, effective_weight(spec, fit_pair(spec, form, 1, target, alternations=count)))
        for count in range(4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@_grid
def test_rows_give_the_pair_that_their_matrix_gives(name: str, form: Form) -> None:
    weights = []
    for keep_rows in (False, True):
        spec, target = _problem(name, torch.Generator().manual_seed(2), keep_rows=keep_rows, ridge=1e-2)
        pair = fit_pair(spec, form, 2, target, alternations=0)
        weights.append(effective_weight(spec, pair))
    # Float32 sums against float64 ones, magnified by the ridge of 1e-2.
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-3)


@_grid
@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_the_curve_bounds_the_error_of_the_fit(
    name: str, form: Form, ridge: float, rng: torch.Generator
) -> None:
    spec, target = _problem(name, rng, n_rows=20, ridge=ridge)
    errors = error_by_rank(spec, form, target)
    assert errors.shape == (max_rank(spec, form) + 1,)
    for rank in range(1, len(errors)):
        pair = fit_pair(spec, form, rank, target, alternations=0)
        # Roundings of the whole error.
        assert _error(target, effective_weight(spec, pair)) <= float(errors[rank] + 1e-6 * errors[0])


@_grid
def test_full_rank_gives_the_weight_back_whatever_the_moments(
    name: str, form: Form, rng: torch.Generator
) -> None:
    # Far fewer rows than columns, and a strong ridge.
    spec, target = _problem(name, rng, n_rows=3, ridge=0.1)
    pair = fit_pair(spec, form, max_rank(spec, form), target, alternations=0)
    torch.testing.assert_close(effective_weight(spec, pair), target.dense, rtol=0, atol=1e-8)


@_grid
def test_a_weight_of_low_rank_is_found_exactly(name: str, form: Form, rng: torch.Generator) -> None:
    spec, target = _problem(name, rng)
    true = fit_pair(spec, form, 2, target, alternations=0)
    low = replace(target, dense=effective_weight(spec, true))
    errors = error_by_rank(spec, form, low)
    assert errors[2] <= 1e-6 * errors[0]
    again = fit_pair(spec, form, 2, low, alternations=0)
    torch.testing.assert_close(effective_weight(spec, again), low.dense, rtol=0, atol=1e-6)


def test_every_form_is_in_the_grid() -> None:
    assert {form for _, form in _GRID} == {form for form, row in FORM_ROWS.items() if not row.has_third}


@pytest.mark.parametrize("form", [form for name, form in _GRID if name == "conv2d grouped"])
def test_each_group_is_split_as_a_layer_of_its_own(form: Form, rng: torch.Generator) -> None:
    spec, target = _problem("conv2d grouped", rng, ridge=1e-3)
    gram = target.root.T @ target.root
    own = replace(spec, groups=1, weight_shape=(5, *spec.weight_shape[1:]))
    errors = error_by_rank(spec, form, target)
    pair = fit_pair(spec, form, 2, target, alternations=1)
    expected = torch.zeros_like(errors)
    for group, part in enumerate(pair.of_groups):
        rows, columns = slice(5 * group, 5 * group + 5), slice(18 * group, 18 * group + 18)
        root = torch.linalg.cholesky(gram[rows, rows]).mT
        alone = Target(
            dense=target.dense[rows, columns],
            moments=target.moments.block(torch.arange(36)[columns]),
            root=root,
            inverse_root=root.inverse(),
            ridge=target.ridge,
        )
        expected += error_by_rank(own, form, alone)
        fitted = fit_pair(own, form, 2, alone, alternations=1)
        torch.testing.assert_close(
            effective_weight(own, part), effective_weight(own, fitted), rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(errors, expected, rtol=1e-9, atol=1e-12)
    if FORM_ROWS[form].is_closed:
        assert _error(target, effective_weight(spec, pair)) == pytest.approx(float(errors[2]), rel=1e-6)


def test_a_fit_of_groups_begins_where_another_ended(rng: torch.Generator) -> None:
    spec, target = _problem("conv2d grouped", rng)
    start = fit_pair(spec, "v_h", 1, target, alternations=3)
    again = fit_pair(spec, "v_h", 1, target, alternations=0, start=start)
    anew = fit_pair(spec, "v_h", 1, target, alternations=0)
    assert _error(target, effective_weight(spec, again)) < _error(target, effective_weight(spec, anew))


@pytest.mark.parametrize(("name", "form"), [pair for pair in _GRID if FORM_ROWS[pair[1]].is_closed])
def test_wide_layers_are_fitted_by_their_leading_directions_alone(
    name: str, form: Form, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, target = _problem(name, rng, ridge=1e-3)
    exact = _error(target, effective_weight(spec, fit_pair(spec, form, 2, target, alternations=0)))
    seams.leading_directions_alone(monkeypatch)
    again = replace(target)
    pair = fit_pair(spec, form, 2, again, alternations=0)
    assert all(part.closed_form is None for part in again.by_group or (again,))
    assert _error(target, effective_weight(spec, pair)) == pytest.approx(exact, rel=0.005)
    # What is known of all ranks, as of a curve, is used again.
    assert target.closed_form is not None or target.by_group
    known = fit_pair(spec, form, 2, target, alternations=0)
    assert _error(target, effective_weight(spec, known)) == pytest.approx(exact, rel=1e-9)
    warm = fit_pair(spec, form, 2, replace(target), alternations=0, start=pair)
    assert _error(target, effective_weight(spec, warm)) == pytest.approx(exact, rel=0.005)
