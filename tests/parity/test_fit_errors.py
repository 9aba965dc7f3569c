# SPDX-License-Identifier: Apache-2.0
"""Predicted errors of a layer against errors measured by running the built pair on the same rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from slimrank.calibrate import draw_positions, input_rows, output_rows
from slimrank.capture import describe_layers
from slimrank.cost import FORM_ROWS, forms_of, max_rank
from slimrank.linalg import MomentSums
from slimrank.methods import Target, build_modules, effective_weight, error_by_rank, fit_pair, metric_roots
from slimrank.records import METHODS, Call, Form, LayerSpec
from slimrank.surgery import dense_weight


@dataclass(frozen=True)
class Case:
    """A layer, and the shape of its inputs."""

    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]


_CASES = {
    "linear": Case(lambda: nn.Linear(6, 9), (40, 6)),
    "linear narrowing, on tokens": Case(lambda: nn.Linear(9, 4), (8, 5, 9)),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, padding=1), (6, 4, 12)),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 4, 8, 7)),
    "conv2d widening": Case(lambda: nn.Conv2d(2, 25, 3, padding=1), (4, 2, 8, 7)),
    "conv2d strided, reflect": Case(
        lambda: nn.Conv2d(4, 5, (3, 2), stride=2, padding=(2, 1), padding_mode="reflect"), (4, 4, 9, 8)
    ),
    "conv2d same, dilated": Case(lambda: nn.Conv2d(4, 5, 3, padding="same", dilation=(1, 2)), (4, 4, 9, 8)),
    "conv3d, circular": Case(
        lambda: nn.Conv3d(3, 4, (2, 3, 2), padding=(1, 1, 0), padding_mode="circular"), (4, 3, 4, 5, 4)
    ),
}


def _spec_of(layer: nn.Module, x: Tensor) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    with torch.no_grad():
        call = Call(input_shape=tuple(x.shape), output_shape=tuple(layer(x).shape))
    return replace(spec, calls=(call,))


def _forms(name: str) -> list[Form]:
    (spec,) = describe_layers(nn.Sequential(_CASES[name].layer()))
    return [form for method in METHODS for form in forms_of(spec, method)]


_GRID = [(name, form) for name in _CASES for form in _forms(name)]
_grid = pytest.mark.parametrize(("name", "form"), _GRID, ids=[f"{name}-{form}" for name, form in _GRID])


def _inputs(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Correlated along the last dimension, with a mean that the bias has to absorb."""
    x = torch.randn(shape, generator=rng, dtype=torch.float64).cumsum(-1)
    return (x + 2).float().double()


def _problem(name: str, ridge: float, rng: torch.Generator) -> tuple[nn.Module, LayerSpec, Tensor, Target]:
    case = _CASES[name]
    layer = case.layer().double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng))
    x = _inputs(case.shape, rng)
    spec = _spec_of(layer, x[:1])
    weight = dense_weight(layer)
    sums = MomentSums(weight.shape[1])
    sums.add(input_rows(layer, spec, x, draw_positions(spec, x, 10**6, rng, None)))
    half = torch.randn((len(weight), len(weight)), dtype=torch.float64, generator=rng)
    root, inverse_root = metric_roots(half @ half.T, len(weight), weight.device)
    target = Target(dense=weight, moments=sums.moments(), root=root, inverse_root=inverse_root, ridge=ridge)
    return layer, spec, x, target


def _ranks(spec: LayerSpec, form: Form) -> list[int]:
    full = max_rank(spec, form)
    return sorted({1, max(1, full // 3), max(1, full - 1)})


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
@_grid
def test_predicted_error_is_the_measured_one(
    name: str, form: Form, ridge: float, rng: torch.Generator
) -> None:
    layer, spec, x, target = _problem(name, ridge, rng)
    errors = error_by_rank(spec, form, target)
    for rank in _ranks(spec, form):
        pair = fit_pair(spec, form, rank, target, alternations=2)
        weight = effective_weight(spec, pair)
        # The bias absorbs the mean.
        mean_out = target.dense @ target.moments.mean + layer.bias
        bias = mean_out - weight @ target.moments.mean
        modules = nn.Sequential(*build_modules(spec, layer, pair, bias))
        difference = output_rows(spec, modules(x) - layer(x)) @ target.root.T
        measured = float(difference.square().sum(1).mean()) / 2
        predicted = float(target.moments.gram(target.root @ (target.dense - weight)).trace()) / 2
        # Both on un-ridged moments; the moments are sums of float32 products.
        assert predicted == pytest.approx(measured, rel=1e-4)
        if FORM_ROWS[form].is_closed:
            assert float(errors[rank]) == pytest.approx(measured, rel=1e-4)
        else:
            assert measured <= float(errors[rank]) * (1 + 1e-4)


@_grid
def test_the_error_of_nothing_is_the_variance_of_the_outputs(
    name: str, form: Form, rng: torch.Generator
) -> None:
    layer, spec, x, target = _problem(name, 1e-9, rng)
    rows = output_rows(spec, layer(x)) @ target.root.T
    variance = float((rows - rows.mean(0)).square().sum(1).mean()) / 2
    assert float(error_by_rank(spec, form, target)[0]) == pytest.approx(variance, rel=1e-4)


@_grid
def test_no_bias_is_better_than_the_one_that_absorbs_the_mean(
    name: str, form: Form, rng: torch.Generator
) -> None:
    layer, spec, x, target = _problem(name, 1e-3, rng)
    pair = fit_pair(spec, form, 1, target, alternations=0)
    weight = effective_weight(spec, pair)
    best = target.dense @ target.moments.mean + layer.bias - weight @ target.moments.mean

    def measured(bias: Tensor) -> float:
        modules = nn.Sequential(*build_modules(spec, layer, pair, bias))
        return float(output_rows(spec, modules(x) - layer(x)).square().sum())

    for _ in range(3):
        step = 0.1 * torch.randn(len(best), dtype=torch.float64, generator=rng)
        assert measured(best) < measured(best + step)


def test_the_closed_form_is_no_worse_than_any_other_pair_of_its_rank(rng: torch.Generator) -> None:
    _, spec, _, target = _problem("conv2d", 1e-9, rng)
    errors = error_by_rank(spec, "kxk_1x1", target)
    # Plain SVD of the weight, blind to the inputs, at every rank.
    u, s, vh = torch.linalg.svd(target.dense, full_matrices=False)
    for rank in range(1, len(s)):
        blind = target.root @ (target.dense - (u[:, :rank] * s[:rank]) @ vh[:rank])
        assert errors[rank] < target.moments.gram(blind).trace() / 2
