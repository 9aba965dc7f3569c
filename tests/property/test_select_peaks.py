# SPDX-License-Identifier: Apache-2.0
"""Plans under limits on the bytes at places of a forward pass, against brute force, with invented bytes."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
from select_nets import NETS

from slimrank import BudgetError
from slimrank.cost import layer_cost, max_rank, model_cost, pair_cost, slimmed_spec
from slimrank.plan import is_inside
from slimrank.records import PairBytes, PeakPoint, Setting
from slimrank.select import Budget, reachable_floor, select_plan_and_rounding
from specs import Source

PEAK = 1000


def invented_points(net: Source, seed: int) -> list[PeakPoint]:
    """At two layers: bytes for each unit of some groups, and more or less with a pair."""
    draw = np.random.default_rng(seed)
    groups = net.structure.channels.groups
    points = []
    for name in list(net.structure.layers)[:2]:
        units = {group: int(draw.integers(0, 30)) for group in groups if groups[group].reason is None}
        held = sum(each * groups[group].units for group, each in units.items())
        forms = {curve.form for curve in net.curves if curve.layer == name and curve.ranks_in is None}
        pairs = {
            form: PairBytes(fixed=-int(draw.integers(0, 60)), per_rank=int(draw.integers(1, 9)))
            for form in sorted(forms)
        }
        points.append(
            PeakPoint(
                module=name,
                is_inside=True,
                peak=PEAK,
                whole=held + int(draw.integers(60, 120)),
                units=units,
                group_units={group: groups[group].units for group in units},
                pairs=pairs,
            )
        )
    return points


def every_choice(net: Source, points: list[PeakPoint]) -> Iterator[tuple[float, ...]]:
    """Bytes at each place, MACs and damage of each choice."""
    channels, layers = net.structure.channels, net.structure.layers
    groups = [
        [
            (None, 0.0),
            *((curve.channels_kept(int(k)), float(d)) for k, d in zip(curve.kept, curve.damage, strict=True)),
        ]
        for curve in net.group_curves
    ]
    for widths in product(*groups):
        kept = {
            curve.group: units
            for curve, (units, _) in zip(net.group_curves, widths, strict=True)
            if units is not None and len(units) < channels.groups[curve.group].units
        }
        options: list[list[tuple[str, Setting | None, float]]] = []
        for name, spec in layers.items():
            slimmed = slimmed_spec(spec, channels, kept)
            found: list[tuple[str, Setting | None, float]] = [(name, None, 0.0)]
            for curve in net.curves:
                if curve.layer != name:
                    continue
                for rank, loss in zip(curve.ranks, curve.damage, strict=True):
                    pair = pair_cost(slimmed, curve.form, int(rank), has_bias=spec.has_bias)
                    if rank <= max_rank(slimmed, curve.form) and pair.params < layer_cost(slimmed).params:
                        found.append(
                            (name, Setting(method=curve.method, form=curve.form, rank=int(rank)), float(loss))
                        )
            options.append(found)
        for picks in product(*options):
            settings = {name: setting for name, setting, _ in picks if setting is not None}
            damage = sum(d for _, d in widths) + sum(loss for _, _, loss in picks)
            macs = model_cost(
                net.before, layers, channels, settings=settings, kept=kept, dropped=(), has_bias=net.has_bias
            ).macs
            yield (*(point.bytes_left(settings, kept, ()) for point in points), macs, damage)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [NETS["chain"]], ids=["chain"])
def test_plans_within_bytes_against_brute_force(make: Callable[[int], Source], seed: int) -> None:
    net = make(seed)
    points = invented_points(net, seed)
    found = np.array(list(every_choice(net, points)))
    whole = max(point.whole for point in points)
    for share, ratio in ((0.85, 1.0), (0.6, 1.0), (0.7, 0.8), (0.45, 1.0)):
        limit = int(share * whole)
        fits = (found[:, :-2] <= limit).all(axis=1) & (found[:, -2] <= ratio * net.before.macs)
        budgets = {} if ratio == 1.0 else {"macs": ratio}
        asked = {point: Budget(number=limit, words=str(limit)) for point in points}

        def planned(budgets: dict[str, float] = budgets, asked: dict[PeakPoint, Budget] = asked):  # noqa: ANN202
            return select_plan_and_rounding(
                lambda _: net, net.structure, budgets=budgets, multiple_of=1, points=asked
            )[0]

        if not fits.any():
            with pytest.raises(BudgetError, match="activation_bytes="):
                planned()
            continue
        plan = planned()
        step = plan.steps[-1]
        assert all(point.bytes_left(step.settings, step.groups, step.dropped) <= limit for point in points)
        assert plan.keep_ratio("macs") <= ratio
        best = float(found[fits][:, -1].min())
        assert best * (1 - 1e-9) <= plan.damage <= best * 1.05 + 1e-12
        assert plan.damage * (1 - plan.gap) <= best * (1 + 1e-9) + 1e-12
    for index, point in enumerate(points):
        assert reachable_floor(net, point) * PEAK == pytest.approx(found[:, index].min())


@pytest.mark.parametrize("seed", range(2))
def test_a_place_in_a_dropped_block_holds_nothing(seed: int) -> None:
    net = NETS["blocks"](seed)
    block = net.block_damages[0].block
    inside = next(name for name in net.structure.layers if is_inside(name, (block,)))
    point = PeakPoint(module=inside, is_inside=True, peak=PEAK, whole=PEAK)
    plan, _ = select_plan_and_rounding(
        lambda _: net, net.structure, budgets={}, multiple_of=1, points={point: Budget(ratio=0.5)}
    )
    assert any(is_inside(inside, (name,)) for name in plan.dropped)
    assert plan.damage == min(each.damage for each in net.block_damages if is_inside(inside, (each.block,)))
