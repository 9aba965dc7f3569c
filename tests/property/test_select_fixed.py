# SPDX-License-Identifier: Apache-2.0
"""Plans around what is fixed, against brute force over all that is left to choose."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from select_nets import METHODS, NETS, invented_times

from seams import State, joint_of, whole_cost
from slimrank import BudgetError, LatencyError, RankError, SlimrankError
from slimrank.cost import group_is_inside, model_cost, network_time, rank_problem, slimmed_spec
from slimrank.plan import (
    Fixed,
    Plan,
    Rounding,
    SettingLike,
    block_damage_at,
    damage_at,
    fixed_of,
    group_damage_at,
    is_inside,
    step_of,
)
from slimrank.records import LATENCY, Budgeted, Cost, Metric, Setting
from slimrank.select import Select, reachable_floor, select_plan, select_plan_and_rounding
from specs import Source

Choice = tuple[Cost, float]
BUDGETS: tuple[dict[Metric, float], ...] = (
    {"macs": 0.45},
    {"macs": 0.7},
    {"params": 0.6},
    {"macs": 0.6, "params": 0.7},
)


def something_fixed(net: Source, seed: int) -> dict[str, SettingLike]:
    """Settings of a few names, at random: pairs whose rank has a damage, widths, blocks and None."""
    rng = np.random.default_rng([seed, 7])
    typed: dict[str, list[tuple[str, dict[str, int | str]]]] = {}
    found: dict[str, SettingLike] = {}
    for name in net.structure.layers:
        kind = rng.random()
        if kind < 0.15:
            found[name] = None
        elif kind < 0.45:
            curves = [curve for curve in net.curves if curve.layer == name]
            curve = curves[int(rng.integers(len(curves)))]
            typed[name] = [(curve.method, {"rank": int(rng.choice(curve.ranks)), "form": curve.form})]
    for group in net.group_curves:
        if rng.random() < 0.3:
            keep = int(rng.choice([*group.kept, len(group.order)]))
            typed.setdefault(group.group, []).append(("channel_pruning", {"keep": keep}))
    for block in net.block_damages:
        if rng.random() < 0.4:
            found[block.block] = "drop" if rng.random() < 0.6 else None
    gone = [name for name, setting in found.items() if setting == "drop"]
    settings: dict[str, SettingLike] = {
        name: each for name, each in typed.items() if not is_inside(name, gone)
    }
    return {
        **{name: each for name, each in found.items() if name in gone or not is_inside(name, gone)},
        **settings,
    }


def may_go(net: Source, fixed: Fixed) -> list[str]:
    """Blocks that hold nothing that is fixed, alone or together."""
    channels = net.structure.channels
    blocks = [
        one.block
        for one in net.block_damages
        if one.block not in fixed.standing
        and not is_inside(one.block, fixed.dropped)
        and not any(
            is_inside(name, (one.block,)) for name in (*fixed.layers, *fixed.dropped, *fixed.standing)
        )
    ]
    for group in (*fixed.groups, *fixed.whole):
        if group_is_inside(channels, group, (*blocks, *fixed.dropped)):
            touched = [
                name
                for name, tensor in channels.tensors.items()
                if any(axis.group == group for axis in tensor.axes)
            ]
            blocks = [block for block in blocks if not any(is_inside(name, (block,)) for name in touched)]
    return blocks


def widths_left(net: Source, fixed: Fixed) -> Iterator[dict[str, tuple[int, ...]]]:
    """Units that groups keep, wherever the fixed pairs are pairs of the slimmed layers."""
    channels = net.structure.channels
    groups: list[list[tuple[int, ...] | None]] = []
    for curve in net.group_curves:
        if curve.group in fixed.groups:
            groups.append([fixed.groups[curve.group]])
        elif curve.group in fixed.whole or group_is_inside(channels, curve.group, fixed.dropped):
            groups.append([None])
        else:
            groups.append([None, *(curve.channels_kept(int(kept)) for kept in curve.kept)])
    for widths in product(*groups):
        pairs = zip(net.group_curves, widths, strict=True)
        kept = {curve.group: units for curve, units in pairs if units is not None}
        try:
            step_of(net.structure, fixed.settings, kept, fixed.dropped)
        except RankError:
            continue
        yield kept


def options_left(
    net: Source, fixed: Fixed, kept: dict[str, tuple[int, ...]], dropped: list[str]
) -> Iterator[list[Choice]]:
    """The cost of the model with nothing chosen for layers, then what each option of each layer changes."""
    structure = net.structure

    def cost_with(settings: dict[str, Setting]) -> Cost:
        return model_cost(
            net.before,
            structure.layers,
            structure.channels,
            settings={**fixed.settings, **settings},
            kept=kept,
            dropped=dropped,
            has_bias=net.has_bias,
        )

    base = cost_with({})
    yield [(base, 0.0)]
    for spec in structure.layers.values():
        if spec.name in fixed.layers or is_inside(spec.name, dropped):
            continue
        slimmed = slimmed_spec(spec, structure.channels, kept)
        options = [(Cost(macs=0, params=0, bytes=0), 0.0)]
        for curve in net.curves:
            for rank, loss in zip(curve.ranks, curve.damage, strict=True):
                setting = curve.setting(int(rank))
                if curve.layer == spec.name and rank_problem(slimmed, setting) is None:
                    options.append((cost_with({spec.name: setting}) - base, float(loss)))
        yield options


def every_choice(net: Source, fixed: Fixed) -> Iterator[Choice]:
    """Cost and damage of every plan that holds what is fixed, by the formula for whole models."""
    held = sum(damage_at(net.curves, name, each) or 0.0 for name, each in fixed.settings.items())
    for kept in widths_left(net, fixed):
        slimmed = sum(group_damage_at(net.group_curves, name, units) or 0.0 for name, units in kept.items())
        for gone in product(*[[(), (block,)] for block in may_go(net, fixed)]):
            dropped = [*fixed.dropped, *(name for names in gone for name in names)]
            damage = held + slimmed
            damage += sum(block_damage_at(net.block_damages, name) or 0.0 for name in dropped)
            for picks in product(*options_left(net, fixed, kept, dropped)):
                cost = sum((each for each, _ in picks), Cost(macs=0, params=0, bytes=0))
                yield cost, damage + sum(loss for _, loss in picks)


def check_held(plan: Plan, fixed: Fixed, net: Source) -> None:
    for name, setting in fixed.settings.items():
        assert plan.settings[name] == setting
    for name, kept in fixed.groups.items():
        assert plan.groups[name] == kept
    assert set(fixed.dropped) <= set(plan.dropped)
    assert not fixed.untouched & set(plan.settings)
    assert not fixed.whole & set(plan.groups)
    assert not fixed.standing & set(plan.dropped)
    assert set(plan.dropped) - set(fixed.dropped) <= set(may_go(net, fixed))


def fixed_nets(make: Callable[[int], Source], seeds: range) -> Iterator[tuple[Source, Fixed]]:
    for seed in seeds:
        net = make(seed)
        try:
            fixed = fixed_of(net, something_fixed(net, seed))
        except SlimrankError:
            continue
        if fixed:
            yield net, fixed


def table(net: Source, fixed: Fixed) -> tuple[dict[Metric, np.ndarray], np.ndarray]:
    costs, damages = zip(*every_choice(net, fixed), strict=True)
    metrics: tuple[Metric, ...] = ("macs", "params", "bytes")
    return {m: np.array([cost.metric(m) for cost in costs]) for m in metrics}, np.array(damages)


@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_plans_around_what_is_fixed_against_brute_force(make: Callable[[int], Source]) -> None:
    planned = refused = exact = tried = 0
    for net, fixed in fixed_nets(make, range(12)):
        costs, damages = table(net, fixed)
        tried += 1
        for budgets in BUDGETS:
            fits = np.all([costs[m] <= ratio * net.before.metric(m) for m, ratio in budgets.items()], axis=0)
            if not fits.any():
                refused += 1
                with pytest.raises(BudgetError):
                    select_plan(net, budgets=budgets, fixed=fixed)
                continue
            best = float(damages[fits].min())
            plan = select_plan(net, budgets=budgets, fixed=fixed)
            planned += 1
            check_held(plan, fixed, net)
            assert all(plan.keep_ratio(metric) <= ratio for metric, ratio in budgets.items())
            assert plan.damage is not None
            assert plan.gap is not None
            assert best * (1 - 1e-9) <= plan.damage <= best * 1.05 + 1e-12
            assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9) + 1e-12
            exact += plan.damage <= best * (1 + 1e-9) + 1e-12
            same = np.all([costs[metric] == plan.after.metric(metric) for metric in costs], axis=0)
            assert np.isclose(damages[same], plan.damage).any()
    assert tried >= 3
    assert planned >= 5
    assert exact >= 0.8 * planned


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("select", ["greedy", "uniform"])
@pytest.mark.parametrize("methods", [METHODS, METHODS[:2], METHODS[2:]], ids=["all", "pairs", "channels"])
def test_the_simple_rules_hold_what_is_fixed(
    make: Callable[[int], Source], select: Select, methods: tuple[str, ...]
) -> None:
    planned = 0
    for net, fixed in fixed_nets(make, range(12)):
        # With pairs, "uniform" leaves groups alone.
        used = METHODS[:2] if select == "uniform" and methods != METHODS[2:] else methods
        floor = reachable_floor(net, "macs", methods=used, fixed=fixed)
        for ratio in (min(1.0, 1.1 * floor), 0.9):
            if ratio < floor:
                continue
            try:
                plan = select_plan(net, budgets={"macs": ratio}, select=select, methods=methods, fixed=fixed)
            except BudgetError:
                # These rules drop no block.
                assert net.block_damages
                continue
            planned += 1
            check_held(plan, fixed, net)
            assert plan.keep_ratio("macs") <= ratio
            best = select_plan(net, budgets={"macs": ratio}, methods=methods, fixed=fixed)
            assert best.damage is not None
            assert plan.damage is not None
            assert best.damage <= plan.damage * (1 + 1e-9)
            free = {each.method for name, each in plan.settings.items() if name not in fixed.settings}
            assert free <= set(methods)
    assert planned >= 4


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("metric", ["macs", "params"])
def test_the_floor_counts_what_is_fixed(make: Callable[[int], Source], metric: Metric) -> None:
    for net, fixed in fixed_nets(make, range(8)):
        costs, _ = table(net, fixed)
        floor = reachable_floor(net, metric, fixed=fixed)
        assert floor == pytest.approx(costs[metric].min() / net.before.metric(metric), rel=1e-9)
        assert select_plan(net, budgets={metric: floor}, fixed=fixed).keep_ratio(metric) <= floor
        with pytest.raises(BudgetError, match=r"the smallest reachable is.*Fixed: .*fix less or other"):
            select_plan(net, budgets={metric: floor * 0.99}, fixed=fixed)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("step", [1, 2])
def test_what_is_fixed_is_counted_at_any_widths_in_time_too(make: Callable[[int], Source], step: int) -> None:
    counted = 0
    limits: dict[Budgeted, float] = {"macs": 10.0**9, LATENCY: 10.0**9}
    for seed, (net, fixed) in enumerate(fixed_nets(make, range(8))):
        times = invented_times(net, seed, step)
        layers, channels = net.structure.layers, net.structure.channels
        if any(
            name in times.layers and setting.form not in times.layers[name].pairs
            for name, setting in fixed.settings.items()
        ) or not set(fixed.settings) <= set(times.layers):
            continue
        joint = joint_of(
            replace(net, curves=()),
            limits,
            methods=METHODS,
            skipped=(),
            rounding=Rounding(ranks=step, widths=step),
            times=times,
            fixed=fixed,
        )
        curves = {curve.group: curve for curve in net.group_curves}
        for widths in product(*(range(len(group.kept)) for group in joint.widths)):
            if not all(fit.fits(widths) for fit in joint.fits):
                continue
            kept = dict(fixed.groups)
            for group, width in zip(joint.widths, widths, strict=True):
                if group.kept[width] < group.units:
                    kept[group.name] = curves[group.name].channels_kept(int(group.kept[width]))
            found = np.array(list(limits.values())) - joint.room + whole_cost(joint, State(widths=widths))
            cost = model_cost(
                net.before,
                layers,
                channels,
                settings=fixed.settings,
                kept=kept,
                dropped=fixed.dropped,
                has_bias=net.has_bias,
            )
            time = network_time(
                times, layers, channels, settings=fixed.settings, kept=kept, dropped=fixed.dropped
            )
            assert found[0] == cost.macs
            assert found[1] == pytest.approx(time, rel=1e-9)
            counted += 1
    assert counted >= 8


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_latency_is_kept_around_what_is_fixed(make: Callable[[int], Source]) -> None:
    planned = refused = 0
    for seed, (net, fixed) in enumerate(fixed_nets(make, range(12))):
        times = invented_times(net, seed)
        try:
            floor = reachable_floor(net, LATENCY, times=times, fixed=fixed)
        except LatencyError as error:
            assert "the table has no times of" in str(error)  # noqa: PT017
            refused += 1
            continue
        for ratio in (floor * 1.0001, 0.5 * (1 + floor)):
            plan, _ = select_plan_and_rounding(
                lambda _, net=net: net,
                net.structure,
                budgets={},
                multiple_of=1,
                latency=min(ratio, 1.0),
                times=times,
                fixed=fixed,
            )
            time = network_time(
                times,
                net.structure.layers,
                net.structure.channels,
                settings=plan.settings,
                kept=plan.groups,
                dropped=plan.dropped,
            )
            check_held(plan, fixed, net)
            assert time <= ratio * times.reference * (1 + 1e-9)
            planned += 1
    assert planned >= 4


@pytest.mark.parametrize("seed", range(6))
def test_layers_alone_around_what_is_fixed(seed: int) -> None:
    net = replace(NETS["chain"](seed), group_curves=(), methods=METHODS[:2])
    curve = net.curves[2 * (seed % 3)]
    fixed = fixed_of(net, {curve.layer: (curve.method, {"rank": int(curve.ranks[0])})})
    costs, damages = table(net, fixed)
    for ratio in (0.5, 0.7):
        fits = costs["macs"] <= ratio * net.before.macs
        plan = select_plan(net, budgets={"macs": ratio}, fixed=fixed)
        assert plan.damage == pytest.approx(float(damages[fits].min()), rel=1e-9)
        for select in ("greedy", "uniform"):
            other = select_plan(net, budgets={"macs": ratio}, select=select, fixed=fixed)
            check_held(other, fixed, net)
            assert other.keep_ratio("macs") <= ratio
