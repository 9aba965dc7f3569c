# SPDX-License-Identifier: Apache-2.0
"""Tucker-2 on layers: which ranks go together, what a fit is worth, and kernels too wide for a matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import seams
from slimrank.calibrate import draw_positions, input_rows
from slimrank.capture import describe_layers
from slimrank.cost import keeps_rows
from slimrank.linalg import MomentSums
from slimrank.methods import Target, fit_factors, layer_curves, metric_roots, weights_target
from slimrank.records import Call, LayerSpec, Setting
from slimrank.surgery import dense_weight

_FORM = "1x1_kxk_1x1"


def _problem(layer: nn.Conv2d, x: Tensor, rng: torch.Generator) -> tuple[LayerSpec, Target]:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 8)
        output_shape = tuple(layer(x[:1]).shape)
    (spec,) = describe_layers(nn.Sequential(layer))
    spec = replace(spec, calls=(Call(input_shape=(1, *x.shape[1:]), output_shape=output_shape),))
    weight = dense_weight(layer)
    sums = MomentSums(weight.shape[1], keep_rows=keeps_rows(spec))
    sums.add(input_rows(layer, spec, x, draw_positions(spec, x, 10**6, rng, None)))
    half = torch.randn((len(weight), len(weight)), dtype=torch.float64, generator=rng)
    root, inverse_root = metric_roots(half @ half.T, len(weight), weight.device)
    target = Target(dense=weight, moments=sums.moments(), root=root, inverse_root=inverse_root, ridge=1e-3)
    return spec, target


@pytest.fixture
def problem(rng: torch.Generator) -> tuple[LayerSpec, Target]:
    x = torch.randn((20, 18, 7, 7), generator=rng)
    # Inputs that hang together, as those of networks do.
    x[:, 9:] = 0.8 * x[:, :9] + 0.2 * x[:, 9:]
    return _problem(nn.Conv2d(18, 40, 3, padding=1), x, rng)


def _setting(rank_in: int, rank: int) -> Setting:
    return Setting(method="tucker2", form=_FORM, rank=rank, rank_in=rank_in)


def test_the_path_has_one_rank_for_each_and_is_aligned(problem: tuple[LayerSpec, Target]) -> None:
    ranks, ranks_in, errors = seams.rank_path(problem[0], _FORM, problem[1])
    assert ranks.tolist() == list(range(1, 41))
    assert (np.diff(ranks_in) >= 0).all()
    assert ranks_in[0] >= 1
    assert ranks_in[-1] <= 18
    for multiple in (2, 4, 8, 16):
        assert (ranks_in[ranks % multiple == 0] % multiple == 0).all()
    assert (errors.diff() <= 1e-9).all()


def test_the_path_is_near_the_least_error_for_its_cost() -> None:
    # Error falls with either rank; a second one costs three times as much.
    p, r = np.meshgrid(np.arange(1, 9), np.arange(1, 17), indexing="ij")
    errors, costs = 1 / p + 1 / r, 3 * p + r
    excess = seams.excess_of(errors, costs)
    assert (excess >= 0).all()
    assert excess[0, 0] == 0
    chosen = seams.path_along(excess, np.ones(16, dtype=np.int64), np.full(16, 8))
    free = excess[chosen - 1, np.arange(16)]
    assert (np.diff(chosen) >= 0).all()
    assert float(free.max()) < 0.2
    assert chosen[15] == 8


def test_probes_lower_the_curve_and_fits_keep_its_promise(problem: tuple[LayerSpec, Target]) -> None:
    spec, target = problem
    _, _, bound = seams.rank_path(spec, _FORM, target)
    (curve,) = layer_curves(spec, ["tucker2"], target, has_bias=True)
    assert (curve.error <= bound.numpy()[: len(curve.ranks)] * (1 + 1e-9)).all()
    for index in (5, len(curve.ranks) // 2):
        setting = curve.setting(int(curve.ranks[index]))
        fitted = fit_factors(spec, setting, target, alternations=3)
        assert seams.true_error(target, fitted.weight(spec)) <= float(curve.error[index]) * 1.05
        assert fitted.setting == setting


def test_outputs_are_those_of_the_weight(problem: tuple[LayerSpec, Target], rng: torch.Generator) -> None:
    spec, target = problem
    fitted = fit_factors(spec, _setting(7, 11), target, alternations=1)
    row = torch.randn(18 * 9, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(fitted.outputs(spec, row), fitted.weight(spec) @ row, rtol=0, atol=1e-10)


def test_factors_are_balanced(problem: tuple[LayerSpec, Target]) -> None:
    first, core, last = fit_factors(problem[0], _setting(7, 11), problem[1], alternations=1).tensors
    torch.testing.assert_close(first.norm(dim=1), core.transpose(0, 1).flatten(1).norm(dim=1))
    # The inputs of the core were balanced last, by one number each: its outputs stay near.
    ratio = last.norm(dim=0) / core.flatten(1).norm(dim=1)
    assert 0.05 < float(ratio.min()) <= float(ratio.max()) < 20


def test_a_start_is_taken_and_never_worse_than_it(problem: tuple[LayerSpec, Target]) -> None:
    spec, target = problem
    setting = _setting(5, 9)
    good = fit_factors(spec, setting, target, alternations=4)
    again = fit_factors(spec, setting, target, alternations=0, start=good)
    plain = fit_factors(spec, setting, target, alternations=0)
    errors = [seams.true_error(target, factors.weight(spec)) for factors in (good, again, plain)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert errors[1] < errors[2]


def test_weights_alone_are_enough(problem: tuple[LayerSpec, Target]) -> None:
    spec, target = problem
    (curve,) = layer_curves(spec, ["tucker2"], weights_target(target.dense), has_bias=True)
    assert (np.diff(curve.error) <= 0).all()


@pytest.mark.parametrize("has_data", [True, False])
def test_a_tall_kernel_is_fitted_without_a_matrix_of_moments(
    has_data: bool, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    spec, target = _problem(nn.Conv2d(20, 24, (512, 1)), torch.randn((8, 20, 530, 1), generator=rng), rng)
    assert keeps_rows(spec)
    if not has_data:
        target = weights_target(target.dense)
    # A matrix of 10,240 columns would take 0.4 GB in float32.
    seams.forbid_moment_matrices(monkeypatch)
    (curve,) = layer_curves(spec, ["tucker2"], target, has_bias=True)
    assert curve.ranks_in is not None
    setting = curve.setting(int(curve.ranks[len(curve.ranks) // 2]))
    fitted = fit_factors(spec, setting, target, alternations=1)
    error = seams.true_error(target, fitted.weight(spec))
    assert 0 < error <= float(curve.error[len(curve.ranks) // 2]) * 1.05
