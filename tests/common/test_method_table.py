# SPDX-License-Identifier: Apache-2.0
"""Every form of every row of the method table, on a grid of layers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimrank.calibrate import draw_positions, input_rows
from slimrank.capture import count_cost, describe_layers
from slimrank.cost import FORM_ROWS, FORMS, forms_of, max_rank, setting_cost, usual_ranks_in
from slimrank.forward import Batch
from slimrank.linalg import MomentSums
from slimrank.methods import (
    TABLE,
    Factors,
    Target,
    build_modules,
    build_replacement,
    fit_factors,
    metric_roots,
)
from slimrank.records import METHODS, MORE_METHODS, Call, Form, LayerSpec, Setting
from slimrank.surgery import dense_weight

# torch says so of the layer itself already.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@dataclass(frozen=True)
class Case:
    """A layer, and the shape of its input for one sample."""

    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]


_CASES = {
    "linear": Case(lambda: nn.Linear(6, 9), (1, 6)),
    "linear narrowing, no bias": Case(lambda: nn.Linear(9, 4, bias=False), (1, 9)),
    "linear on tokens": Case(lambda: nn.Linear(6, 9), (1, 5, 6)),
    "linear on 4-D": Case(lambda: nn.Linear(6, 5), (1, 2, 3, 6)),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, padding=1), (1, 4, 12)),
    "conv1d strided, dilated": Case(lambda: nn.Conv1d(4, 6, 4, stride=3, dilation=2), (1, 4, 21)),
    "conv1d same, circular": Case(
        lambda: nn.Conv1d(4, 5, 3, padding="same", padding_mode="circular"), (1, 4, 9)
    ),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, 3, padding=1), (1, 4, 8, 7)),
    "conv2d narrowing, no bias": Case(lambda: nn.Conv2d(6, 2, 3, bias=False), (1, 6, 7, 7)),
    "conv2d 1x1 strided": Case(lambda: nn.Conv2d(4, 6, 1, stride=2), (1, 4, 7, 8)),
    "conv2d strided": Case(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 9, 8)),
    "conv2d non-square": Case(lambda: nn.Conv2d(4, 5, (3, 2), stride=(1, 3), padding=(2, 1)), (1, 4, 9, 11)),
    "conv2d row": Case(lambda: nn.Conv2d(4, 5, (1, 5), padding=(0, 2)), (1, 4, 6, 9)),
    "conv2d dilated": Case(lambda: nn.Conv2d(4, 5, 3, dilation=(2, 1), padding=(2, 1)), (1, 4, 9, 8)),
    "conv2d same": Case(lambda: nn.Conv2d(4, 5, (3, 5), padding="same", dilation=(1, 2)), (1, 4, 9, 10)),
    "conv2d same, even": Case(lambda: nn.Conv2d(4, 5, (4, 2), padding="same"), (1, 4, 9, 8)),
    "conv2d same, even, reflect": Case(
        lambda: nn.Conv2d(3, 4, (4, 3), padding="same", padding_mode="reflect"), (1, 3, 9, 8)
    ),
    "conv2d valid": Case(lambda: nn.Conv2d(4, 5, 3, padding="valid", padding_mode="reflect"), (1, 4, 7, 8)),
    "conv2d reflect": Case(
        lambda: nn.Conv2d(4, 5, (3, 5), padding=(1, 2), padding_mode="reflect"), (1, 4, 8, 7)
    ),
    "conv2d replicate, strided": Case(
        lambda: nn.Conv2d(4, 5, 3, stride=2, padding=(2, 1), padding_mode="replicate"), (1, 4, 8, 7)
    ),
    "conv2d circular": Case(
        lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular", dilation=1), (1, 4, 6, 7)
    ),
    "conv1d grouped": Case(lambda: nn.Conv1d(6, 9, 4, stride=2, groups=3, bias=False), (1, 6, 15)),
    "conv2d grouped": Case(lambda: nn.Conv2d(12, 16, 3, padding=1, groups=4), (1, 12, 8, 7)),
    "conv2d grouped, strided": Case(
        lambda: nn.Conv2d(8, 6, (3, 5), stride=2, padding=(1, 2), padding_mode="reflect", groups=2),
        (1, 8, 9, 11),
    ),
    "conv2d grouped, 1x1": Case(lambda: nn.Conv2d(8, 12, 1, groups=2), (1, 8, 5, 6)),
    "conv3d grouped": Case(lambda: nn.Conv3d(4, 6, (2, 3, 2), groups=2), (1, 4, 4, 7, 5)),
    "conv3d": Case(lambda: nn.Conv3d(3, 4, (2, 3, 2), stride=(1, 2, 1), padding=(1, 1, 0)), (1, 3, 4, 7, 5)),
    "conv3d replicate": Case(
        lambda: nn.Conv3d(3, 2, 3, padding=1, padding_mode="replicate"), (1, 3, 4, 5, 4)
    ),
}


def _spec_of(layer: nn.Module, x: Tensor) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    call = Call(input_shape=tuple(x.shape), output_shape=tuple(layer(x).shape))
    return replace(spec, calls=(call,))


def _forms(name: str) -> list[Form]:
    (spec,) = describe_layers(nn.Sequential(_CASES[name].layer()))
    return [form for method in TABLE for form in forms_of(spec, method)]


_GRID = [(name, form) for name in _CASES for form in _forms(name)]
_grid = pytest.mark.parametrize(("name", "form"), _GRID, ids=[f"{name}-{form}" for name, form in _GRID])


@dataclass(frozen=True)
class Problem:
    """A layer with random weights, random inputs, and what a pair shall reproduce."""

    layer: nn.Module
    spec: LayerSpec
    x: Tensor
    target: Target

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias.detach().clone() if isinstance(self.layer.bias, Tensor) else None

    def setting(self, form: Form, rank: int) -> Setting:
        before = usual_ranks_in(self.spec, form, np.array([rank]))
        rank_in = None if before is None else int(before[0])
        return Setting(method=FORM_ROWS[form].method, form=form, rank=rank, rank_in=rank_in)

    def fit(self, form: Form, rank: int, alternations: int = 0) -> Factors:
        setting = self.setting(form, rank)
        return fit_factors(self.spec, setting, self.target, alternations=alternations)

    def replacement(self, form: Form, rank: int) -> nn.Sequential:
        return build_replacement(self.spec, self.layer, self.fit(form, rank), self.bias)


def _problem(name: str, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Problem:
    case = _CASES[name]
    layer = case.layer().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 4)
    layer.to(dtype)
    x = torch.randn((3, *case.shape[1:]), generator=rng).to(dtype)
    with torch.no_grad():
        spec = _spec_of(layer, x[:1])
    weight = dense_weight(layer)
    sums = MomentSums(weight.shape[1], n_groups=spec.groups)
    sums.add(input_rows(layer, spec, x, draw_positions(spec, x, 10**6, rng, None)))
    half = torch.randn((len(weight), len(weight)), dtype=torch.float64, generator=rng)
    root, inverse_root = metric_roots(half @ half.T, len(weight), weight.device)
    return Problem(
        layer=layer,
        spec=spec,
        x=x,
        target=Target(dense=weight, moments=sums.moments(), root=root, inverse_root=inverse_root, ridge=1e-2),
    )


def test_every_form_has_one_row_of_one_method() -> None:
    # Channels go in groups, not by forms of single layers.
    assert (*FORMS, "channel_pruning") == tuple(TABLE)
    assert {*METHODS, *MORE_METHODS} == set(TABLE)
    assert not {*METHODS} & {*MORE_METHODS}
    forms = [form for method in FORMS for form in FORMS[method]]
    assert len(set(forms)) == len(forms)
    assert set(forms) == set(FORM_ROWS)


def test_the_grid_reaches_every_form() -> None:
    assert {form for _, form in _GRID} == set(FORM_ROWS)


@_grid
def test_full_rank_gives_the_layer_back(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng)
    full = problem.replacement(form, max_rank(problem.spec, form))
    # float64; moments of few rows are ill-conditioned, and the ridge of 1e-2 bounds what that costs.
    torch.testing.assert_close(full(problem.x), problem.layer(problem.x), rtol=0, atol=1e-8)


@_grid
def test_a_low_rank_pair_is_new_plain_and_of_the_same_shape(
    name: str, form: Form, rng: torch.Generator
) -> None:
    problem = _problem(name, rng)
    before = copy.deepcopy(problem.layer.state_dict())
    pair = problem.replacement(form, 2)
    expected = problem.layer(problem.x)
    got = pair(problem.x)
    assert got.shape == expected.shape
    assert not torch.equal(got, expected)
    assert {type(module) for module in pair} == {type(problem.layer)}
    assert not {p.data_ptr() for p in pair.parameters()} & {p.data_ptr() for p in problem.layer.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in problem.layer.state_dict().items())
    # What safetensors and the fast kernels ask for.
    assert all(p.is_contiguous() for p in pair.parameters())
    clone = copy.deepcopy(pair)
    assert torch.equal(clone(problem.x), got)


@_grid
def test_the_counted_cost_is_the_planned_one(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng, torch.float32)
    for rank in (1, 3 if max_rank(problem.spec, form) >= 3 else 2):
        pair = problem.replacement(form, rank)
        setting = problem.setting(form, rank)
        planned = setting_cost(problem.spec, setting, has_bias=problem.bias is not None)
        assert count_cost(pair, Batch(args=(problem.x[:1],), kwargs={})) == planned


@_grid
def test_a_pair_exports(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng, torch.float32)
    pair = problem.replacement(form, 2).eval()
    program = torch.export.export(pair, (problem.x,))
    torch.testing.assert_close(program.module()(problem.x), pair(problem.x))


_KINDS = ["linear", "conv1d", "conv2d", "conv2d grouped", "conv3d"]
_SMALL_GRID = [(name, form) for name, form in _GRID if name in _KINDS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "form"), _SMALL_GRID)
def test_dtype_is_kept(name: str, form: Form, dtype: torch.dtype, rng: torch.Generator) -> None:
    problem = _problem(name, rng, dtype)
    full = problem.replacement(form, max_rank(problem.spec, form))
    assert {p.dtype for p in full.parameters()} == {dtype}
    expected, got = problem.layer(problem.x).detach(), full(problem.x).detach()
    assert got.dtype == dtype
    # Two products of balanced factors instead of one: some roundings of the largest value.
    atol = 8 * torch.finfo(dtype).eps * float(expected.float().abs().max())
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=atol)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(("name", "form"), _SMALL_GRID)
def test_mode_and_requires_grad_are_kept(
    name: str, form: Form, requires_grad: bool, training: bool, rng: torch.Generator
) -> None:
    problem = _problem(name, rng)
    problem.layer.train(training).requires_grad_(requires_grad)
    modules = build_modules(problem.spec, problem.layer, problem.fit(form, 2), problem.bias)
    assert [module.training for module in modules] == [training] * len(modules)
    flags = [p.requires_grad for module in modules for p in module.parameters()]
    assert flags == [requires_grad] * (len(modules) + 1)
    assert all(p.is_leaf for module in modules for p in module.parameters())


@pytest.mark.parametrize(("name", "form"), _SMALL_GRID)
def test_weight_and_bias_keep_their_own_requires_grad(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng)
    problem.layer.bias.requires_grad_(False)
    modules = build_modules(problem.spec, problem.layer, problem.fit(form, 1), problem.bias)
    assert all(module.weight.requires_grad for module in modules)
    assert not modules[-1].bias.requires_grad


@pytest.mark.parametrize(("name", "form"), _SMALL_GRID)
def test_a_bias_is_there_when_asked_for(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng)
    without = build_modules(problem.spec, problem.layer, problem.fit(form, 1), None)
    assert [module.bias is None for module in without] == [True] * len(without)
    wanted = torch.randn(len(problem.target.dense), dtype=torch.float64, generator=rng)
    *inner, last = build_modules(problem.spec, problem.layer, problem.fit(form, 1), wanted)
    assert [module.bias for module in inner] == [None] * len(inner)
    assert torch.equal(last.bias.detach(), wanted)


@pytest.mark.parametrize(("name", "form"), _SMALL_GRID)
def test_a_pair_trains(name: str, form: Form, rng: torch.Generator) -> None:
    problem = _problem(name, rng)
    pair = problem.replacement(form, 2)
    optimizer = torch.optim.SGD(pair.parameters(), lr=1e-3)
    wanted = problem.layer(problem.x).detach()
    losses = []
    for _ in range(3):
        loss = (pair(problem.x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
