# SPDX-License-Identifier: Apache-2.0
"""Joint plans against brute force on tiny networks whose widths and ranks interact."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from select_nets import BUDGETS, METHODS, NETS, Builder, chain, heads, residual

from seams import Hulls, Priced, bound_of, cost_limit, joint_of
from slimrank import BudgetError
from slimrank.cost import model_cost, rank_problem, slimmed_spec
from slimrank.plan import Rounding
from slimrank.records import (
    BlockDamage,
    Cost,
    Metric,
)
from slimrank.select import reachable_floor, select_plan
from specs import Source


def apart(seed: int) -> Source:
    """Groups that share no layer, each between two of its own."""
    net = Builder(seed, few=30)
    for at in range(int(net.rng.integers(4, 8))):
        units, size = int(net.rng.integers(12, 41)), int(net.rng.choice([1, 2, 4]))
        net.layer(f"a{at}", [("", 3)], [(f"g{at}", units)], size)
        net.layer(f"b{at}", [(f"g{at}", units)], [("", 10)], size)
    return uneven(replace(net.source(), curves=()), seed)


def streams(seed: int) -> Source:
    """Two streams of channels, each read and added to by three groups of its own."""
    net = Builder(seed, few=24)
    net.layer("stem", [("", 3)], [("s0", 24)], 8)
    for stream, width, size in (("s0", 24, 8), ("s1", 40, 4)):
        for at in range(3):
            group = (f"{stream}.g{at}", int(net.rng.integers(32, 65)))
            net.layer(f"{stream}.up{at}", [(stream, width)], [group], size)
            net.layer(f"{stream}.down{at}", [group], [(stream, width)], size)
        if stream == "s0":
            net.layer("next", [("s0", 24)], [("s1", 40)], 4)
    net.layer("last", [("s1", 40)], [("", 10)], 1)
    return uneven(replace(net.source(), curves=()), seed)


def uneven(net: Source, seed: int) -> Source:
    """The same network, with damages that fall in any way: convex, concave, in one jump or in steps."""
    rng = np.random.default_rng([seed, 1])

    def falling(left: np.ndarray) -> np.ndarray:
        gone = 1 - left
        steps = rng.exponential(size=len(gone)) ** 3
        kinds = (
            gone ** rng.uniform(1.5, 4),
            gone ** rng.uniform(0.1, 0.7),
            0.2 * gone**2 + (gone > rng.uniform(0.05, 0.5)) * rng.uniform(0.1, 1),
            steps[::-1].cumsum()[::-1] / steps.sum(),
        )
        damage: np.ndarray = kinds[rng.integers(len(kinds))] * np.exp(rng.normal())
        return damage

    return replace(
        net,
        group_curves=tuple(
            replace(one, damage=falling(one.kept / len(one.order))) for one in net.group_curves
        ),
        curves=tuple(replace(one, damage=falling(one.ranks / (one.ranks.max() + 1))) for one in net.curves),
    )


def every_choice(net: Source) -> Iterator[tuple[Cost, float]]:
    """Cost and damage of everything that can be chosen, by the one formula for whole models."""
    channels, layers = net.structure.channels, net.structure.layers
    groups = [
        [
            (None, 0.0),
            *((curve.channels_kept(int(k)), float(d)) for k, d in zip(curve.kept, curve.damage, strict=True)),
        ]
        for curve in net.group_curves
    ]
    blocks = [[(None, 0.0), (one.block, one.damage)] for one in net.block_damages]
    for widths in product(*groups):
        kept = {
            curve.group: units
            for curve, (units, _) in zip(net.group_curves, widths, strict=True)
            if units is not None
        }
        for gone in product(*blocks):
            dropped = [name for name, _ in gone if name is not None]
            damage = sum(d for _, d in widths) + sum(d for _, d in gone)
            rows = []
            base = model_cost(
                net.before, layers, channels, settings={}, kept=kept, dropped=dropped, has_bias=net.has_bias
            )
            for spec in layers.values():
                if any(spec.name.startswith(f"{name}.") for name in dropped):
                    continue
                slimmed = slimmed_spec(spec, channels, kept)
                rows.append([(Cost(macs=0, params=0, bytes=0), 0.0)])
                for curve in net.curves:
                    for rank, loss in zip(curve.ranks, curve.damage, strict=True):
                        setting = curve.setting(int(rank))
                        if curve.layer != spec.name or rank_problem(slimmed, setting) is not None:
                            continue
                        after = model_cost(
                            net.before,
                            layers,
                            channels,
                            settings={spec.name: setting},
                            kept=kept,
                            dropped=dropped,
                            has_bias=net.has_bias,
                        )
                        rows[-1].append((after - base, float(loss)))
            yield from combined(base, damage, rows)


def combined(base: Cost, damage: float, rows: list[list[tuple[Cost, float]]]) -> Iterator[tuple[Cost, float]]:
    for picks in product(*rows):
        yield sum((cost for cost, _ in picks), base), damage + sum(loss for _, loss in picks)


Table = tuple[Mapping[Metric, np.ndarray], np.ndarray]


def table(net: Source) -> Table:
    costs, damages = zip(*every_choice(net), strict=True)
    metrics: tuple[Metric, ...] = ("macs", "params", "bytes")
    return {m: np.array([cost.metric(m) for cost in costs]) for m in metrics}, np.array(damages)


@cache
def net_and_table(make: Callable[[int], Source], seed: int) -> tuple[Source, Table]:
    """A network and all that can be chosen in it, tried once for several tests; the arrays are read only."""
    net = make(seed)
    costs, damages = table(net)
    for values in (*costs.values(), damages):
        values.setflags(write=False)
    return net, (costs, damages)


@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("seed", range(4))
def test_joint_plans_against_brute_force(make: Callable[[int], Source], seed: int) -> None:
    net, (costs, damages) = net_and_table(make, seed)
    exact = 0
    for budgets in ({"macs": 0.3}, {"macs": 0.6}, {"params": 0.5}, {"macs": 0.5, "params": 0.6}):
        asked: dict[Metric, float] = {metric: ratio for metric, ratio in budgets.items() if metric in costs}
        fits = np.all(
            [costs[metric] <= ratio * net.before.metric(metric) for metric, ratio in asked.items()], axis=0
        )
        if not fits.any():
            with pytest.raises(BudgetError):
                select_plan(net, budgets=asked)
            continue
        best = float(damages[fits].min())
        plan = select_plan(net, budgets=asked)
        assert all(plan.keep_ratio(metric) <= ratio for metric, ratio in asked.items())
        assert plan.damage is not None
        assert plan.gap is not None
        assert best * (1 - 1e-9) <= plan.damage <= best * 1.05 + 1e-12
        assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9) + 1e-12
        exact += plan.damage <= best * (1 + 1e-9) + 1e-12
        for methods in (METHODS[:2], METHODS[2:]):
            try:
                other = select_plan(net, budgets=asked, methods=methods)
            except BudgetError:
                continue
            assert other.damage is not None
            assert plan.damage <= other.damage * (1 + 1e-12)
    assert exact >= 1


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_joint_plan_costs_what_it_was_chosen_for(make: Callable[[int], Source]) -> None:
    net, (costs, damages) = net_and_table(make, 11)
    for select in ("optimal", "greedy", "uniform"):
        plan = select_plan(
            net, budgets={"macs": 0.6}, select=select, methods=METHODS[select == "uniform" and 2 :]
        )
        same = np.all([costs[metric] == plan.after.metric(metric) for metric in costs], axis=0)
        assert np.isclose(damages[same], plan.damage or 0.0).any()
        assert plan.keep_ratio("macs") <= 0.6


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
def test_the_floor_can_be_reached_and_nothing_is_below_it(
    make: Callable[[int], Source], metric: Metric
) -> None:
    net, (costs, _) = net_and_table(make, 5)
    floor = reachable_floor(net, metric)
    assert floor == pytest.approx(costs[metric].min() / net.before.metric(metric), rel=1e-9)
    assert select_plan(net, budgets={metric: floor}).keep_ratio(metric) <= floor
    with pytest.raises(BudgetError, match="cannot be met; the smallest reachable is"):
        select_plan(net, budgets={metric: floor * 0.99})


@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("level", [0.1, 1.0, 10.0])
def test_the_bound_is_what_prices_alone_allow(make: Callable[[int], Source], level: float) -> None:
    metrics: tuple[Metric, ...] = ("macs", "params")
    shares = []
    for seed in range(4):
        net, (costs, damages) = net_and_table(make, seed)
        limits = dict.fromkeys(metrics, 0)
        joint = joint_of(net, limits, methods=net.methods, skipped=(), rounding=Rounding(ranks=1, widths=1))
        price = level * np.array([1.0, 0.3 * seed]) / joint.scale
        over = np.array([costs[metric] - limits[metric] for metric in metrics])
        least = float((damages + price @ over).min())
        hulls = Hulls(joint)
        bound = bound_of(Priced(joint, hulls, price))
        assert bound <= max(least, 0.0) + 1e-9
        if least > 0:
            shares.append(bound / least)
    # Exact where groups form no circle, no layer touches three and every block has a group of its own; else
    # weak at prices so high that all that can go does.
    exact = make in (chain, residual, heads)
    assert exact or level > 1 or min(shares) > 0.3
    assert not exact or min(shares) > 0.999


def within(net: Source, costs: Mapping[Metric, np.ndarray], budgets: Mapping[Metric, float]) -> np.ndarray:
    """Which choices keep all budgets."""
    kept: np.ndarray = np.all(
        [costs[metric] <= cost_limit(net.before, metric, ratio) for metric, ratio in budgets.items()], axis=0
    )
    return kept


@given(
    make=st.sampled_from(list(NETS.values())), seed=st.integers(0, 2**16), metrics=st.sampled_from(BUDGETS)
)
@pytest.mark.slow
@settings(max_examples=12, deadline=None)
def test_pruning_alone_is_the_best_there_is_and_never_worse_with_more_budget(
    make: Callable[[int], Source], seed: int, metrics: tuple[Metric, ...]
) -> None:
    net = uneven(replace(make(seed), curves=()), seed)
    costs, damages = table(net)
    least = np.inf
    for ratio in np.linspace(0.1, 0.95, 9):
        budgets = dict.fromkeys(metrics, float(ratio))
        kept = within(net, costs, budgets)
        if not kept.any():
            continue
        plan = select_plan(net, budgets=budgets, methods=METHODS[2:])
        best = float(damages[kept].min())
        assert all(plan.after.metric(metric) <= cost_limit(net.before, metric, ratio) for metric in metrics)
        assert plan.damage is not None
        assert plan.gap is not None
        assert plan.damage == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9) + 1e-12
        assert plan.damage <= least * (1 + 1e-9) + 1e-12
        least = plan.damage


def least_damages(net: Source) -> tuple[np.ndarray, np.ndarray]:
    """Rising MACs, and the least damage within them, of groups that share no layer."""
    costs, damages = np.array([net.before.macs]), np.zeros(1)
    for curve in net.group_curves:
        specs = [spec for spec in net.structure.layers.values() if spec.name[1:] == curve.group[1:]]
        each = sum(spec.macs for spec in specs) // len(curve.order)
        saved = np.append(each * (len(curve.order) - curve.kept), 0)
        costs = np.subtract.outer(costs, saved).ravel()
        damages = np.add.outer(damages, np.append(curve.damage, 0.0)).ravel()
        order = np.lexsort((damages, costs))
        costs, damages = costs[order], damages[order]
        better = np.append(True, damages[1:] < np.minimum.accumulate(damages)[:-1])
        costs, damages = costs[better], damages[better]
    return costs, damages


@pytest.mark.slow
@given(seed=st.integers(0, 2**16))
@settings(max_examples=12, deadline=None)
def test_groups_that_share_no_layer_are_chosen_best(seed: int) -> None:
    net = apart(seed)
    costs, damages = least_damages(net)
    least = np.inf
    for ratio in np.linspace(costs[0] / net.before.macs, 1, 11)[1:-1]:
        plan = select_plan(net, budgets={"macs": float(ratio)})
        limit = cost_limit(net.before, "macs", float(ratio))
        best = float(damages[np.searchsorted(costs, limit, side="right") - 1])
        assert plan.after.macs <= limit
        assert plan.damage is not None
        assert plan.gap is not None
        # The search ends a thousandth above the bound.
        assert best * (1 - 1e-9) <= plan.damage <= best * 1.002
        assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9)
        assert plan.damage <= least * 1.002
        least = plan.damage


@pytest.mark.slow
def test_what_a_group_leaves_that_jumps_is_spent() -> None:
    net = Builder(0, few=64)
    for at in range(7):
        net.layer(f"a{at}", [("", 3)], [(f"g{at}", 64)], 4)
        net.layer(f"b{at}", [(f"g{at}", 64)], [("", 10)], 4)
    # No price asks for more than nothing and less than all of the last group.
    powers = dict(zip(net.units, (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.4), strict=True))
    source = net.source()
    curves = tuple(
        replace(one, damage=(1 - one.kept / 64) ** powers[one.group]) for one in source.group_curves
    )
    source = replace(source, group_curves=curves, curves=())
    ratios = np.linspace(0.4, 0.9, 26)
    plans = [select_plan(source, budgets={"macs": float(ratio)}) for ratio in ratios]
    damages = np.array([plan.damage for plan in plans])
    spare = ratios - np.array([plan.keep_ratio("macs") for plan in plans])
    assert (np.diff(damages) < 0).all()
    assert spare.min() >= 0
    assert spare.max() < 0.003


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_more_budget_never_brings_more_damage(seed: int) -> None:
    net = streams(seed)
    floor = reachable_floor(net, "macs")
    plans = [select_plan(net, budgets={"macs": float(ratio)}) for ratio in np.linspace(floor, 1, 24)[1:-1]]
    found = np.array([plan.damage for plan in plans])
    assert (np.diff(found) <= 1e-9 * found[:-1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_more_budget_never_brings_more_damage_with_ranks(make: Callable[[int], Source]) -> None:
    net = uneven(make(3), 3)
    costs, damages = table(net)
    least = np.inf
    floor = costs["macs"].min() / net.before.macs
    for ratio in np.linspace(floor, 1, 10)[1:-1]:
        budgets: dict[Metric, float] = {"macs": float(ratio)}
        plan = select_plan(net, budgets=budgets)
        assert plan.damage is not None
        assert plan.damage <= float(damages[within(net, costs, budgets)].min()) * 1.05 + 1e-12
        assert plan.damage <= least * (1 + 1e-9) + 1e-12
        least = plan.damage


def test_blocks_go_where_groups_that_went_for_the_room_are_whole_again() -> None:
    """The stream saves more for its damage than a block does, but once it has gone no block helps."""
    net = Builder(3, few=30)
    net.layer("a", [("", 3)], [("g", 32)], 8)
    for block in ("b0", "b1"):
        net.layer(f"{block}.c", [("g", 32)], [("", 32)], 8)
        net.layer(f"{block}.d", [("", 32)], [("g", 32)], 8)
    for name in "wxyz":
        net.layer(f"e{name}", [("g", 32)], [(name, 48)], 3)
        net.layer(f"f{name}", [(name, 48)], [("", 24)], 3)
    source = net.source(blocks=("b0", "b1"))
    wide = {"kept": np.array([4, 16, 24]), "damage": np.array([1.06, 0.96, 0.75])}
    curves = [
        replace(curve, error=wide["damage"], **wide)
        if curve.group == "g"
        else replace(curve, damage=0.25 * curve.damage / curve.damage.max())
        for curve in source.group_curves
    ]
    blocks = [BlockDamage(block="b0", damage=0.68), BlockDamage(block="b1", damage=0.69)]
    source = replace(source, group_curves=curves, block_damages=blocks)
    plan = select_plan(source, budgets={"macs": 0.55}, methods=METHODS[2:])
    assert plan.dropped == ("b0",)
    assert "g" not in plan.groups
    assert plan.damage is not None
    assert plan.damage < 0.82  # with the stream slimmed 0.96 and more
