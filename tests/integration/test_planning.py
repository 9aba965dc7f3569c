# SPDX-License-Identifier: Apache-2.0
"""Budgets, selectors, rounding and hand-made plans, on the built model."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import slimrank as sr
from slimrank.records import Method

FACTORS: tuple[Method, ...] = ("weight_svd", "spatial_svd")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 20),
    )
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel()
            p.copy_(torch.randn(p.shape, generator=generator) * (2 / fan) ** 0.5 * (p.ndim > 1))
    return model.eval()


@cache
def studied(model: nn.Module, methods: Sequence[Method]) -> sr.Study:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(3)]
    return sr.study(model, batches, methods=methods, progress=False)


@pytest.fixture
def study(model: nn.Module) -> sr.Study:
    """Of ranks alone."""
    return studied(model, FACTORS)


@pytest.fixture(params=[FACTORS, sr.METHODS], ids=["factors", "all methods"])
def either(model: nn.Module, request: pytest.FixtureRequest) -> sr.Study:
    """Of ranks alone, and of ranks and widths."""
    return studied(model, request.param)


def ranks(result: sr.Result) -> dict[str, int]:
    """Of every pair that really stands in the model."""
    return {
        name: module[0].weight.shape[0]
        for name, module in result.model.named_children()
        if isinstance(module, nn.Sequential)
    }


def total_damage(result: sr.Result) -> float:
    return sum(layer.damage for layer in result.layers if layer.damage is not None)


@pytest.mark.slow
@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
@pytest.mark.parametrize("macs", [0.3, 0.6])
def test_every_selector_keeps_the_budget(either: sr.Study, select: str, macs: float) -> None:
    plan = either.plan(macs=macs, select=select)
    result = either.apply(plan)
    assert plan.select == select
    assert result.after == plan.after
    assert result.keep_ratio("macs") <= macs
    assert result.keep_ratio("macs") > macs - (0.03 if select == "optimal" else 0.1)
    assert (plan.gap is None) == (select != "optimal")


def test_optimal_has_the_lowest_predicted_damage(either: sr.Study) -> None:
    damages = {one: either.plan(macs=0.4, select=one).damage for one in ("optimal", "greedy", "uniform")}
    assert damages["optimal"] is not None
    assert all(damages["optimal"] <= other * (1 + 1e-9) for other in damages.values() if other is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "budgets",
    [
        {"params": 0.5},
        {"bytes": 0.4},
        {"macs": 0.5, "params": 0.3},
        {"macs": 0.35, "params": 0.6, "bytes": 0.5},
    ],
)
def test_several_budgets_hold_together(either: sr.Study, budgets: Mapping[str, float]) -> None:
    plan = either.plan(**budgets, multiple_of=1)
    result = either.apply(plan)
    assert result.after == plan.after
    ratios = {metric: result.keep_ratio(metric) for metric in budgets}
    assert all(ratios[metric] <= budgets[metric] for metric in budgets)
    # At least one of them is used up.
    assert any(ratios[metric] > budgets[metric] - 0.01 for metric in budgets)


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_ranks_of_the_built_model_are_multiples(either: sr.Study, select: str) -> None:
    result = either.apply(either.plan(macs=0.5, multiple_of=4, select=select))
    # Of all methods, channels alone may do.
    assert ranks(result) or result.plan.groups
    assert all(rank % 4 == 0 for rank in ranks(result).values())
    assert result.keep_ratio("macs") <= 0.5


def test_multiples_by_glob_first_match_wins(study: sr.Study) -> None:
    result = study.apply(study.plan(macs=0.5, multiple_of={"0": 3, "[0-4]": 8, "*": 2}))
    found = ranks(result)
    assert found
    for name, rank in found.items():
        assert rank % (3 if name == "0" else 8 if name in "1234" else 2) == 0


def test_methods_and_skip_narrow_a_plan(study: sr.Study) -> None:
    plan = study.plan(macs=0.6, methods=("weight_svd",), skip=("2", "9"))
    assert {setting.method for setting in plan.settings.values()} == {"weight_svd"}
    assert not {"2", "9"} & set(plan.settings)
    result = study.apply(plan)
    assert isinstance(result.model[2], nn.Conv2d)
    left = {layer.name: layer.reason for layer in result.layers if not layer.setting}
    assert left["2"] == "left alone by the plan"


def test_methods_and_skip_of_a_study(nets: ModuleType) -> None:
    study = sr.study(nets.cnn(), nets.noise(1, 8, 8), methods=("spatial_svd",), skip="la*", progress=False)
    assert study.methods == ("spatial_svd",)
    assert {curve.method for curve in study.curves} == {"spatial_svd"}
    reasons = {spec.name: spec.reason for spec in study.layers}
    assert reasons["last"] == "skipped by the caller"
    assert reasons["fc"] == "none of spatial_svd applies"
    with pytest.raises(sr.UnknownNameError, match="'weight_svd' was not measured by the study"):
        study.plan(macs=0.9, methods=("weight_svd",))


def test_manual_plans(study: sr.Study) -> None:
    plan = sr.Plan.manual(
        study,
        {"2": ("spatial_svd", 0.4), "4": ("weight_svd", {"ratio": 0.5}), "7": ("weight_svd", {"rank": 30})},
        multiple_of={"7": 8, "*": 1},
    )
    result = study.apply(plan)
    assert result.after == plan.after
    assert ranks(result)["7"] == 32
    layers = {layer.name: layer for layer in result.layers}
    assert layers["2"].after.macs <= 0.4 * layers["2"].before.macs
    assert layers["2"].damage is not None
    assert plan.damage is not None
    assert plan.damage == pytest.approx(
        sum(layer.damage for layer in result.layers if layer.damage is not None)
    )


def test_replace_and_diff(study: sr.Study) -> None:
    plan = study.plan(macs=0.5)
    name = next(iter(plan.settings))
    other = plan.replace(name, ("weight_svd", {"rank": 2}))
    result = study.apply(other)
    assert ranks(result)[name] == 2
    assert result.after == other.after
    assert name in plan.diff(other)
    assert plan.diff(plan).startswith("no difference")


def test_layer_damages_are_those_of_the_curves(study: sr.Study) -> None:
    result = study.apply(study.plan(macs=0.5))
    assert result.damage == pytest.approx(sum(one.damage for one in result.layers if one.damage is not None))
    curves = {
        (c.layer, c.form): dict(zip(c.ranks.tolist(), c.damage.tolist(), strict=True)) for c in study.curves
    }
    for layer in result.layers:
        if layer.setting:
            assert layer.damage == curves[layer.name, layer.setting.form][layer.setting.rank]


@pytest.mark.parametrize("has_data", [True, False])
def test_curves_hold_what_their_plans_cost(has_data: bool) -> None:
    # Without data only the layer that has a bias gives its pair one.
    model = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    batch = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    study = sr.study(model, [batch], methods=FACTORS, data_free=not has_data, progress=False)
    assert {curve.layer for curve in study.curves} == {"0", "2"}
    for curve in study.curves:
        layer = next(spec for spec in study.layers if spec.name == curve.layer)
        # Ranks that save params alone cannot be asked for by hand.
        for place in np.flatnonzero(curve.macs < layer.macs)[[0, -1]]:
            asked = (curve.method, {"rank": int(curve.ranks[place]), "form": curve.form})
            saved = study.before - sr.Plan.manual(study, {curve.layer: asked}).after
            assert curve.macs[place] == layer.macs - saved.macs
            assert curve.params[place] == layer.params - saved.params
            assert curve.bytes[place] == 4 * layer.params - saved.bytes


def test_an_unreachable_budget_names_the_floor_and_what_holds_it_up(either: sr.Study) -> None:
    with pytest.raises(
        sr.BudgetError, match=r"macs=0\.001 cannot be met; the smallest reachable is macs=0\.\d+.*remain: .*%"
    ) as caught:
        either.plan(macs=0.001)
    found = re.search(r"smallest reachable is macs=(\d\.\d+)", str(caught.value))
    assert found is not None
    floor = float(found[1])
    plan = either.plan(macs=floor)
    assert either.apply(plan).keep_ratio("macs") <= floor
    with pytest.raises(sr.BudgetError, match=r"'7' \(left alone: in skip\)"):
        either.plan(params=0.2, skip=("7",))


def test_a_model_that_is_one_layer(nets: ModuleType) -> None:
    with pytest.raises(sr.ModelError, match=r"the model itself is this layer; wrap it in nn\.Sequential"):
        sr.study(nn.Linear(24, 24), nets.noise(24), progress=False)


def test_the_order_of_methods_does_not_matter(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(
        nets.two_layers(),
        nets.noise(12, seed=1),
        methods=("spatial_svd", "weight_svd", "weight_svd"),
        progress=False,
    )
    study.save(tmp_path)
    assert study.methods == ("weight_svd", "spatial_svd")
    sr.Study.load(tmp_path, model=nets.two_layers(), progress=False)
