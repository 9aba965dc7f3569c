# SPDX-License-Identifier: Apache-2.0
"""Plans under latency budgets against brute force on tiny networks, with invented times."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from select_nets import METHODS, heads_behind_a_group, invented_times
from select_nets import NETS as ALL_NETS

from seams import Costing, State, fastest_choice, joint_of, standing_cost
from slimrank import BudgetError
from slimrank.cost import (
    group_is_inside,
    layer_cost,
    max_rank,
    model_cost,
    network_time,
    pair_cost,
    slimmed_spec,
)
from slimrank.plan import Rounding, is_inside
from slimrank.records import (
    LATENCY,
    Kept,
    LayerSpec,
    NetworkTimes,
    Setting,
)
from slimrank.select import select_plan_and_rounding
from specs import Source

Values = tuple[float, ...]
# Three factors are in no table of times, so that no plan with one has them.
NETS = {name: make for name, make in ALL_NETS.items() if name != "three factors"}


class Choices:
    """All that a plan may choose, by the one formula for whole networks."""

    def __init__(self, net: Source, times: NetworkTimes) -> None:
        self.net, self.times = net, times
        self.channels, self.layers = net.structure.channels, net.structure.layers

    def every(self) -> Iterator[Values]:
        """Time, MACs and damage of each."""
        groups = [
            [
                (None, 0.0),
                *(
                    (curve.channels_kept(int(k)), float(d))
                    for k, d in zip(curve.kept, curve.damage, strict=True)
                    if k % self.times.step == 0
                ),
            ]
            for curve in self.net.group_curves
        ]
        blocks = [[(None, 0.0), (one.block, one.damage)] for one in self.net.block_damages]
        for widths, gone in product(product(*groups), product(*blocks)):
            kept = {
                curve.group: units
                for curve, (units, _) in zip(self.net.group_curves, widths, strict=True)
                if units is not None
            }
            dropped = [name for name, _ in gone if name is not None]
            if any(group_is_inside(self.channels, name, dropped) for name in kept):
                # No plan may slim what is not there.
                continue
            base = self.cost({}, kept, dropped)
            damage = sum(d for _, d in widths) + sum(d for _, d in gone)
            there = [spec for name, spec in self.layers.items() if not is_inside(name, dropped)]
            for picks in product(*(self.options(spec, kept, dropped) for spec in there)):
                yield tuple(np.sum([(*base, damage), *picks], axis=0))

    def cost(self, settings: Mapping[str, Setting], kept: Kept, dropped: Sequence[str]) -> tuple[float, int]:
        net = self.net
        time = network_time(
            self.times, self.layers, self.channels, settings=settings, kept=kept, dropped=dropped
        )
        counted = model_cost(
            net.before,
            self.layers,
            self.channels,
            settings=settings,
            kept=kept,
            dropped=dropped,
            has_bias=net.has_bias,
        )
        return time, counted.macs

    def options(self, spec: LayerSpec, kept: Kept, dropped: Sequence[str]) -> list[Values]:
        """What each option of a layer adds to the layer in one piece."""
        base_time, base_macs = self.cost({}, kept, dropped)
        slimmed = slimmed_spec(spec, self.channels, kept)
        found: list[Values] = [(0.0, 0, 0.0)]
        curves = [
            one
            for one in self.net.curves
            if one.layer == spec.name and has_form(self.times, spec.name, one.form)
        ]
        for curve in curves:
            for rank, loss in zip(curve.ranks, curve.damage, strict=True):
                pair = pair_cost(slimmed, curve.form, int(rank), has_bias=spec.has_bias)
                if (
                    rank % self.times.step
                    or rank > max_rank(slimmed, curve.form)
                    or pair.params >= layer_cost(slimmed).params
                ):
                    continue
                setting = Setting(method=curve.method, form=curve.form, rank=int(rank))
                time, macs = self.cost({spec.name: setting}, kept, dropped)
                if time < base_time:
                    found.append((time - base_time, macs - base_macs, float(loss)))
        return found


def has_form(times: NetworkTimes, layer: str, form: str) -> bool:
    return layer in times.layers and form in times.layers[layer].pairs


@cache
def tried(make: Callable[[int], Source], seed: int, step: int = 1) -> tuple[Source, NetworkTimes, np.ndarray]:
    """A network, its times, and (3, n) time, MACs and damage of every choice; the array is read only."""
    net = make(seed)
    times = invented_times(net, seed, step)
    values = np.array(list(Choices(net, times).every())).T
    values.setflags(write=False)
    return net, times, values


def planned(net: Source, times: NetworkTimes, latency: float, **options: object):  # noqa: ANN201
    plan, _ = select_plan_and_rounding(
        lambda _: net,
        net.structure,
        budgets=options.pop("budgets", {}),
        multiple_of=options.pop("multiple_of", 1),
        latency=latency,
        times=times,
        **options,
    )
    return plan


def time_of(net: Source, times: NetworkTimes, plan) -> float:  # noqa: ANN001
    return network_time(
        times,
        net.structure.layers,
        net.structure.channels,
        settings=plan.settings,
        kept=plan.groups,
        dropped=plan.dropped,
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 4)])
def test_latency_plans_against_brute_force(make: Callable[[int], Source], seed: int, step: int) -> None:
    net, times, (time, macs, damage) = tried(make, seed, step)
    exact = tests = 0
    for latency, ratio in ((0.35, 1.0), (0.5, 1.0), (0.7, 1.0), (0.7, 0.6), (0.55, 0.5)):
        budgets = {} if ratio == 1.0 else {"macs": ratio}
        # The coefficients of the planner are rounded in the fourteenth digit.
        fits = (time <= latency * times.reference * (1 + 1e-12)) & (macs <= ratio * net.before.macs)
        if not fits.any():
            with pytest.raises(BudgetError):
                planned(net, times, latency, budgets=budgets)
            continue
        best = float(damage[fits].min())
        plan = planned(net, times, latency, budgets=budgets)
        assert time_of(net, times, plan) <= latency * times.reference * (1 + 1e-12)
        assert plan.keep_ratio("macs") <= ratio
        assert best * (1 - 1e-9) <= plan.damage <= best * 1.05 + 1e-12
        assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9) + 1e-12
        exact += plan.damage <= best * (1 + 1e-9) + 1e-12
        tests += 1
    assert exact >= tests - 1


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_every_selector_keeps_a_latency(make: Callable[[int], Source], select: str) -> None:
    net, times, (time, _, damage) = tried(make, 2)
    methods = METHODS[2:] if select == "uniform" else METHODS
    latency = 0.75
    plan = planned(net, times, latency, select=select, methods=methods)
    taken = time_of(net, times, plan)
    assert taken <= latency * times.reference * (1 + 1e-12)
    # What was chosen is one of the choices, with its time and its damage.
    assert (np.isclose(time, taken, rtol=1e-9) & np.isclose(damage, plan.damage, rtol=1e-9)).any()


COUNTED = {**NETS, "heads behind a group": heads_behind_a_group}


@pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_the_joint_search_counts_the_time_of_whole_networks(make: Callable[[int], Source], step: int) -> None:
    net = make(1)
    times = invented_times(net, 1, step)
    width_step = step
    if make is heads_behind_a_group and step > 1:
        # Some numbers of heads times their width are no whole steps. What goes with units, or with products
        # of three groups, is counted without stairs; all else is exact.
        width_step = 1
        layer = times.layers["a"]
        slim = replace(layer, dense=replace(layer.dense, per_product=0.0))
        times = replace(times, layers={**times.layers, "a": slim}, groups=dict.fromkeys(times.groups, 0.0))
        before = network_time(
            times, net.structure.layers, net.structure.channels, settings={}, kept={}, dropped=()
        )
        times = replace(times, before=before)
    limits = {"macs": 10.0**9, LATENCY: 10.0**9}
    joint = joint_of(
        replace(net, curves=()),
        limits,
        methods=METHODS,
        skipped=(),
        rounding=Rounding(ranks=step, widths=width_step),
        times=times,
    )
    curves = {curve.group: curve for curve in net.group_curves}
    sizes = [range(len(group.kept)) for group in joint.widths]
    whole = standing_cost(joint, joint.whole, ())
    costing = Costing(limits, times)
    for widths in product(*sizes):
        kept = {
            group.name: curves[group.name].channels_kept(int(group.kept[width]))
            for group, width in zip(joint.widths, widths, strict=True)
        }
        found = (
            costing.whole_model(net)[1] - whole[1] + standing_cost(joint, State(widths=widths).widths, ())[1]
        )
        expected = network_time(
            times, net.structure.layers, net.structure.channels, settings={}, kept=kept, dropped=()
        )
        assert found == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 4)])
def test_the_floor_of_a_latency_is_exact_and_what_holds_it_up_is_named(
    make: Callable[[int], Source], seed: int, step: int
) -> None:
    net, times, (time, _, _) = tried(make, seed, step)
    floor = float(time.min()) / times.reference
    with pytest.raises(
        BudgetError, match=r"latency=.* cannot be met; the smallest reachable is latency="
    ) as told:
        planned(net, times, floor * 0.99)
    text = str(told.value)
    number = re.search(r"reachable is latency=(\d\.\d+)", text)
    assert number is not None
    shown = float(number[1])
    # Rounded up to four digits.
    assert floor * (1 - 1e-9) <= shown <= floor + 1e-4
    unproved = re.search(r"latency=\S+ \(as far as was found: none is below latency=(\d.\d+)\)", text)
    assert unproved is None or float(unproved[1]) < floor
    assert "what no layer holds: norms" in text
    plan = planned(net, times, floor * (1 + 1e-9))
    assert time_of(net, times, plan) == pytest.approx(float(time.min()), rel=1e-9)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("counted", [(), ("macs", "params")])
def test_the_bound_of_the_fastest_choice_holds_and_mostly_proves_it(
    make: Callable[[int], Source], counted: tuple[str, ...]
) -> None:
    proved = 0
    cases = [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 4)]
    for seed, step in cases:
        net, times, (time, _, _) = tried(make, seed, step)
        joint = joint_of(
            net,
            {**dict.fromkeys(counted, 10.0**9), LATENCY: times.reference},
            methods=METHODS,
            skipped=(),
            rounding=Rounding(ranks=step, widths=step),
            times=times,
        )
        fastest = fastest_choice(joint)
        least = float(time.min()) - times.reference
        assert fastest.over == pytest.approx(least, rel=1e-9)
        assert fastest.bound <= least + 1e-9 * times.reference
        proved += fastest.bound >= least - 1e-9 * times.reference
    # A group inside of two blocks counts whole where both go: no bound knows that.
    assert proved >= (1 if make is NETS["blocks"] else len(cases) - 1)


def test_ranks_and_widths_are_multiples_of_the_step() -> None:
    net, times, _ = tried(NETS["chain"], 0)
    stairs = replace(times, step=2)
    for multiple_of, number in ((1, 2), ("auto", 2), (3, 6), ({"a": 3}, 2)):
        plan = planned(net, stairs, 0.7, multiple_of=multiple_of)
        sizes = [setting.rank for setting in plan.settings.values()]
        sizes += [len(kept) for kept in plan.groups.values()]
        assert sizes
        assert all(size % number == 0 for size in sizes)
    assert plan.multiple_of == {"a": 6, "*": 2}
