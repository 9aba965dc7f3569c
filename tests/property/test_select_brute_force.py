from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seams
from slimrank import BudgetError
from slimrank.cost import forms_of, layer_cost, max_rank, pair_cost, pair_costs
from slimrank.plan import structure_of
from slimrank.records import Cost, Curve, LayerSpec, Metric, Setting
from slimrank.select import Select, reachable_floor, select_plan
from specs import Source, conv2d

SELECTS: tuple[Select, ...] = get_args(Select)
BUDGETS: tuple[tuple[Metric, ...], ...] = (
    ("macs",),
    ("params",),
    ("macs", "params"),
    ("macs", "params", "bytes"),
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """Three to five convolutions, each with about five options in all, of any damage at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    specs, curves = [], []
    falling = draw(st.booleans())
    coarse = draw(st.booleans())
    # Of the plans, and so of the curves: pairs carry a bias even where the layer has none.
    always_bias = bool(rng.integers(2))
    for at in range(draw(st.integers(3, 5))):
        c_out, c_in, size, stride = (
            int(rng.choice(choices)) for choices in ((8, 12), (6, 9, 16), (4, 8), (1, 2))
        )
        has_bias = bool(rng.integers(2))
        spec = conv2d(f"l{at}", c_out, c_in, size=size, stride=stride, has_bias=has_bias)
        specs.append(spec)
        for method in spec.methods:
            for form in forms_of(spec, method):
                count = int(rng.integers(1, 3))
                ranks = np.sort(rng.choice(np.arange(1, max_rank(spec, form) + 1), size=count, replace=False))
                macs, params = pair_costs(spec, form, ranks, has_bias=always_bias or has_bias)
                damage = rng.integers(0, 5, size=count) / 4 if coarse else rng.exponential(size=count)
                curves.append(
                    Curve(
                        layer=spec.name,
                        method=method,
                        form=form,
                        ranks=ranks,
                        macs=macs,
                        params=params,
                        bytes=params * 4,
                        error=damage,
                        damage=np.sort(damage)[::-1] if falling else damage,
                    )
                )
    before = sum((layer_cost(spec) for spec in specs), Cost(macs=777, params=7, bytes=28))
    return Source(structure_of(specs), before, tuple(curves), has_bias=always_bias)


def options(net: Source, spec: LayerSpec) -> list[tuple[Setting | None, Cost, float]]:
    found: list[tuple[Setting | None, Cost, float]] = [(None, layer_cost(spec), 0.0)]
    for curve in net.curves:
        if curve.layer == spec.name:
            for rank, damage in zip(curve.ranks, curve.damage, strict=True):
                cost = pair_cost(spec, curve.form, int(rank), has_bias=net.has_bias or spec.has_bias)
                setting = Setting(method=curve.method, form=curve.form, rank=int(rank))
                found.append((setting, cost, float(damage)))
    return found


def least_damage(net: Source, budgets: Mapping[Metric, float]) -> float | None:
    """By trying every combination; None where none keeps the budgets."""
    best = None
    specs = list(net.structure.layers.values())
    tables = [options(net, spec) for spec in specs]
    fixed = net.before - sum((layer_cost(spec) for spec in specs), Cost(macs=0, params=0, bytes=0))
    costs = np.array([fixed.metric(metric) for metric in budgets])[:, None]
    damages = np.zeros(1)
    for table in tables:
        steps = np.array([[cost.metric(metric) for _, cost, _ in table] for metric in budgets])
        costs = (costs[:, :, None] + steps[:, None, :]).reshape(len(budgets), -1)
        damages = (damages[:, None] + np.array([damage for _, _, damage in table])).reshape(-1)
    limits = np.array([ratio * net.before.metric(metric) for metric, ratio in budgets.items()])
    fits = (costs <= limits[:, None]).all(axis=0)
    if fits.any():
        best = float(damages[fits].min())
    return best


@pytest.mark.slow
@pytest.mark.parametrize("metrics", BUDGETS)
@given(net=sources(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_optimal_is_what_brute_force_finds(
    metrics: tuple[Metric, ...], net: Source, data: st.DataObject
) -> None:
    ratios = st.floats(0.15, 1.0, allow_subnormal=False)
    budgets = {metric: data.draw(ratios, label=metric) for metric in metrics}
    expected = least_damage(net, budgets)
    if expected is None:
        for select in SELECTS:
            with pytest.raises(BudgetError):
                select_plan(net, budgets=budgets, select=select)
        return
    plan = select_plan(net, budgets=budgets)
    assert plan.damage == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert plan.gap is not None
    assert plan.gap < 1e-9
    for select in SELECTS:
        other = select_plan(net, budgets=budgets, select=select)
        assert all(other.keep_ratio(metric) <= ratio for metric, ratio in budgets.items())
        assert (other.damage or 0) >= expected - 1e-9


@given(net=sources(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_nothing_more_fits_at_no_damage(net: Source, data: st.DataObject) -> None:
    budget = data.draw(st.floats(reachable_floor(net, "macs"), 1.0))
    for select in ("optimal", "greedy"):
        plan = select_plan(net, budgets={"macs": budget}, select=select)
        room = budget * net.before.macs - plan.after.macs
        for name, spec in net.structure.layers.items():
            table = options(net, spec)
            now = next(row for row in table if row[0] == plan.settings.get(name))
            for _, cost, damage in table:
                extra = cost.macs - now[1].macs
                assert not (0 < extra <= room and damage <= now[2] and cost.macs <= layer_cost(spec).macs)


@given(net=sources(), multiple=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_floor_is_the_cheapest_of_all_choices(net: Source, multiple: int) -> None:
    lowest = net.before.macs
    for spec in net.structure.layers.values():
        rows = [
            cost.macs
            for setting, cost, _ in options(net, spec)
            if setting is None or setting.rank % multiple == 0
        ]
        lowest += min(rows) - layer_cost(spec).macs
    assert reachable_floor(net, "macs", multiple_of=multiple) == pytest.approx(
        lowest / net.before.macs, rel=1e-12
    )


@pytest.mark.parametrize("metrics", BUDGETS)
@given(net=sources(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_gap_holds_where_the_search_is_cut_short(
    metrics: tuple[Metric, ...], net: Source, data: st.DataObject
) -> None:
    budgets = {metric: data.draw(st.floats(0.3, 1.0), label=metric) for metric in metrics}
    expected = least_damage(net, budgets)
    if expected is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        seams.short_search(patch)
        try:
            plan = select_plan(net, budgets=budgets)
        except BudgetError:
            # With two partial choices at a time, budgets that pull apart may seem out of reach.
            assert len(metrics) > 1
            return
    assert plan.damage is not None
    assert plan.gap is not None
    assert plan.damage * (1 - plan.gap) <= expected * (1 + 1e-9) + 1e-12
    assert expected <= plan.damage * (1 + 1e-9) + 1e-12
