# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from slimrank import BudgetError, NonFiniteError, OptionError, UnknownNameError
from slimrank.cost import layer_cost, max_rank, pair_costs
from slimrank.plan import structure_of
from slimrank.records import (
    AxisUnits,
    BlockDamage,
    BlockSpec,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    GroupSpec,
    Metric,
    ProductSpec,
    TensorSpec,
)
from slimrank.select import reachable_floor, select_plan
from specs import Source, linear

METHODS = ("weight_svd", "channel_pruning")
SIZES = {"first": (32, 24), "block.up": (64, 32), "block.down": (32, 64), "last": (10, 32)}
MADE = {"first": ("first", "block.down"), "block.up": ("block.up",)}
READ = {"first": ("block.up", "last"), "block.up": ("block.down",)}
UNITS = {"first": 32, "block.up": 16}


def axes(name: str) -> tuple[AxisUnits, ...]:
    """A stream of 32 channels, and 16 units of 4 outputs each inside the block."""
    found = []
    for group, units in UNITS.items():
        for dim, names in ((0, MADE[group]), (1, READ[group])):
            if name in names:
                size = SIZES[name][dim]
                of = tuple(at // (size // units) for at in range(size))
                found.append(AxisUnits(group=group, dim=dim, role="input" if dim else "output", units=of))
    return tuple(found)


def falling(shares: np.ndarray, scale: float, power: int = 2) -> np.ndarray:
    return scale * (1 - shares) ** power


def net(*, weights: Mapping[str, float] | None = None, block: float | None = None) -> Source:
    """Four linear layers, a stream and a block on it; ``weights`` of the damage of layers and groups."""
    scale = weights or {}
    specs, tensors, curves = [], {}, []
    for name, (rows, columns) in SIZES.items():
        spec = linear(name, rows, columns, has_bias=False, methods=METHODS)
        specs.append(spec)
        tensors[f"{name}.weight"] = TensorSpec(
            name=f"{name}.weight",
            shape=(rows, columns),
            itemsize=4,
            is_parameter=True,
            positions=1,
            axes=axes(name),
        )
        full = max_rank(spec, "linear")
        ranks = np.arange(1, full)
        damage = falling(ranks / full, scale.get(name, 1.0), power=6)
        # As in a study that had data: every pair has a bias.
        macs, params = pair_costs(spec, "linear", ranks, has_bias=True)
        curves.append(
            Curve(
                layer=name,
                method="weight_svd",
                form="linear",
                ranks=ranks,
                macs=macs,
                params=params,
                bytes=params * spec.itemsize,
                error=damage,
                damage=damage,
            )
        )
    groups = {
        name: GroupSpec(
            name=name,
            units=units,
            unit_width=4 if name == "block.up" else 1,
            producers=MADE[name],
            consumers=READ[name],
        )
        for name, units in UNITS.items()
    }
    inside = 2 * 64 * 32
    blocks = {"block": BlockSpec(name="block", macs=inside, params=inside, bytes=4 * inside)}
    counts = {name: np.arange(1, units) for name, units in UNITS.items()}
    return Source(
        structure=structure_of(specs, ChannelMap(groups=groups, tensors=tensors, blocks=blocks)),
        before=sum((layer_cost(spec) for spec in specs), Cost(macs=50, params=5, bytes=20)),
        curves=curves,
        group_curves=[
            GroupCurve(
                group=name,
                order=tuple(reversed(range(units))),
                kept=counts[name],
                error=falling(counts[name] / units, 1.0),
                damage=falling(counts[name] / units, scale.get(name, 1.0)),
            )
            for name, units in UNITS.items()
        ],
        block_damages=() if block is None else (BlockDamage(block="block", damage=block),),
        methods=METHODS,
    )


NET = net()


def test_ranks_and_widths_are_chosen_together_and_better_than_either() -> None:
    plan = select_plan(NET, budgets={"macs": 0.4})
    assert plan.damage is not None
    for method in METHODS:
        alone = select_plan(NET, budgets={"macs": 0.4}, methods=(method,))
        assert plan.damage < (alone.damage or 0)
    assert plan.groups
    assert plan.keep_ratio("macs") <= 0.4


def test_the_first_to_go_go_first() -> None:
    plan = select_plan(NET, budgets={"macs": 0.5}, methods=("channel_pruning",))
    assert not plan.settings
    for name, kept in plan.groups.items():
        assert kept == tuple(range(len(kept))), name
        assert len(kept) < UNITS[name]


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_every_rule_keeps_the_budgets_without_ranks(select: str, ratio: float) -> None:
    budgets: dict[Metric, float] = {"macs": ratio, "params": ratio}
    plan = select_plan(NET, budgets=budgets, select=select, methods=("channel_pruning",))  # type: ignore[arg-type]
    assert ratio - 0.1 < plan.keep_ratio("macs") <= ratio
    assert plan.keep_ratio("params") <= ratio
    assert plan.select == select
    assert (plan.gap is None) == (select != "optimal")


def test_uniform_keeps_one_share_of_units() -> None:
    plan = select_plan(NET, budgets={"macs": 0.5}, select="uniform", methods=("channel_pruning",))
    shares = {name: len(kept) / UNITS[name] for name, kept in plan.groups.items()}
    assert set(shares) == set(UNITS)
    assert abs(shares["first"] - shares["block.up"]) < 1 / 16


def test_uniform_leaves_groups_alone_where_there_are_ranks() -> None:
    plan = select_plan(NET, budgets={"macs": 0.6}, select="uniform")
    layers = select_plan(NET, budgets={"macs": 0.6}, select="uniform", methods=("weight_svd",))
    assert plan.settings == layers.settings
    assert not plan.groups


def test_greedy_takes_ranks_and_widths_below_one_threshold() -> None:
    plan = select_plan(NET, budgets={"macs": 0.5}, select="greedy")
    assert plan.settings
    assert plan.groups
    assert plan.keep_ratio("macs") <= 0.5
    assert plan.damage is not None
    assert plan.damage >= (select_plan(NET, budgets={"macs": 0.5}).damage or 0) * (1 - 1e-12)


def test_a_budget_without_effect_changes_nothing() -> None:
    for select in ("optimal", "greedy"):
        plan = select_plan(NET, budgets={"macs": 1.0}, select=select)
        assert not plan.settings
        assert not plan.groups
        assert plan.gap == (0.0 if select == "optimal" else None)


def test_widths_are_multiples_counted_in_outputs() -> None:
    plan = select_plan(NET, budgets={"macs": 0.45}, methods=("channel_pruning",), multiple_of=8)
    assert len(plan.groups.get("first", range(32))) % 8 == 0
    # One unit holds four outputs, so two of them are a multiple of 8.
    plans = [
        select_plan(NET, budgets={"macs": ratio}, methods=METHODS[1:], multiple_of=8)
        for ratio in (0.2, 0.3, 0.4, 0.5, 0.6)
    ]
    kept = [len(one.groups["block.up"]) for one in plans if "block.up" in one.groups]
    assert all(count * 4 % 8 == 0 for count in kept)
    assert any(count % 8 for count in kept)
    plan = select_plan(NET, budgets={"macs": 0.45}, multiple_of={"block.up": 16, "*": 1})
    assert len(plan.groups.get("block.up", range(16))) % 4 == 0


@pytest.mark.parametrize("pattern", ["first", "block.down"])
def test_a_skipped_producer_keeps_the_channels_of_its_group(pattern: str) -> None:
    plan = select_plan(NET, budgets={"macs": 0.7}, skip=(pattern,))
    assert "first" not in plan.groups
    assert pattern not in plan.settings
    assert plan.damage is not None


def test_nothing_of_groups_without_the_method() -> None:
    plan = select_plan(NET, budgets={"macs": 0.6}, methods=("weight_svd",))
    bare = replace(NET, group_curves=())
    same = select_plan(bare, budgets={"macs": 0.6})
    assert not plan.groups
    assert (plan.settings, plan.damage, plan.gap) == (same.settings, same.damage, same.gap)


def test_a_cheap_block_goes_and_what_is_inside_it_is_left_alone() -> None:
    plan = select_plan(net(block=1e-3), budgets={"macs": 0.5})
    assert plan.dropped == ("block",)
    assert not {"block.up", "block.down"} & set(plan.settings)
    assert "block.up" not in plan.groups
    assert plan.damage is not None
    dear = select_plan(net(block=1e3), budgets={"macs": 0.5})
    assert dear.dropped == ()
    assert plan.damage < (dear.damage or 0)


@pytest.mark.parametrize("skip", [("block",), ("block.up",)])
def test_a_block_with_something_skipped_stays(skip: tuple[str, ...]) -> None:
    assert select_plan(net(block=1e-3), budgets={"macs": 0.8}, skip=skip).dropped == ()


def test_blocks_go_with_the_method_alone() -> None:
    plan = select_plan(net(block=1e-3), budgets={"macs": 0.6}, methods=("weight_svd",))
    assert plan.dropped == ()


def test_floor_is_met_and_below_it_is_refused() -> None:
    source = net(block=1.0)
    for metric in ("macs", "params"):
        floor = reachable_floor(source, metric)
        plan = select_plan(source, budgets={metric: floor})
        assert plan.keep_ratio(metric) <= floor
        with pytest.raises(BudgetError, match=r"cannot be met; the smallest reachable is .* Of the"):
            select_plan(source, budgets={metric: floor * 0.9})
    assert reachable_floor(source, "macs") < reachable_floor(NET, "macs")


def with_outside(source: Source) -> Source:
    """The same with products of activations in the block, some of them with a group, and a norm."""
    structure = source.structure
    channels = structure.channels
    norm = TensorSpec(
        name="norm.weight",
        shape=(32,),
        itemsize=4,
        is_parameter=True,
        positions=0,
        axes=(AxisUnits(group="first", dim=0, role="output", units=tuple(range(32))),),
    )
    block = channels.blocks["block"]
    channels = replace(
        channels,
        tensors={**channels.tensors, norm.name: norm},
        products=(ProductSpec(module="block", macs=3200, groups=("block.up",)),),
        blocks={"block": replace(block, macs=block.macs + 4000)},
    )
    return replace(
        source,
        structure=replace(structure, channels=channels),
        before=source.before + Cost(macs=4000, params=32, bytes=128),
    )


@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
@pytest.mark.parametrize("skip", [(), ("block",), ("last",)])
@pytest.mark.parametrize("methods", [METHODS, ("channel_pruning",), ("weight_svd",)])
def test_what_remains_adds_up_to_the_floor(
    metric: Metric, skip: tuple[str, ...], methods: tuple[str, ...]
) -> None:
    source = with_outside(net(block=1.0))
    floor = reachable_floor(source, metric, skip=skip, methods=methods)
    with pytest.raises(BudgetError) as told:
        select_plan(source, budgets={metric: floor * 0.9}, skip=skip, methods=methods)
    shares = [float(share) for share in re.findall(r"(\d+\.\d)% ", str(told.value))]
    # Each is rounded to a tenth of a percent.
    assert sum(shares) == pytest.approx(100 * floor, abs=0.05 * len(shares) + 1e-9)


def test_what_goes_with_the_floor_is_not_said_to_remain() -> None:
    source = with_outside(net(block=1.0))
    dropped = r"% layers \(2\) and groups \(1\) at their smallest, without blocks \(1\)"
    with pytest.raises(BudgetError, match=dropped):
        select_plan(source, budgets={"macs": 0.001})
    # The norm has no layer and is none.
    with pytest.raises(BudgetError, match=r", 2\.6% layers \(4\) and groups \(2\) at their smallest\. "):
        select_plan(source, budgets={"macs": 0.001}, skip=("block",))


def test_the_least_hurt_gives_most() -> None:
    plan = select_plan(net(weights={"first": 100.0}), budgets={"macs": 0.7}, methods=("channel_pruning",))
    assert len(plan.groups["block.up"]) / 16 < len(plan.groups.get("first", range(32))) / 32


@pytest.mark.slow
def test_the_same_answer_every_time() -> None:
    budgets: dict[Metric, float] = {"macs": 0.4, "params": 0.45}
    first, second = (select_plan(net(block=0.5), budgets=budgets) for _ in range(2))
    assert first == second


def test_plans_cannot_hold_what_is_not_finite() -> None:
    curve = NET.group_curves[0]
    broken = replace(curve, damage=np.full_like(curve.damage, np.nan))
    with pytest.raises(NonFiniteError, match="group 'first': its damage is nan or inf"):
        select_plan(replace(NET, group_curves=[broken]), budgets={"macs": 0.5})
    with pytest.raises(NonFiniteError, match="block 'block': its damage is nan or inf"):
        select_plan(net(block=float("inf")), budgets={"macs": 0.5})
    layer = replace(NET.curves[0], damage=np.full_like(NET.curves[0].damage, np.inf))
    with pytest.raises(NonFiniteError, match="layer 'first': the damage of weight_svd linear"):
        select_plan(replace(NET, curves=[layer]), budgets={"macs": 0.5})


def test_names_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="matches no layer"):
        select_plan(NET, budgets={"macs": 0.5}, skip=("nothing",))
    with pytest.raises(OptionError, match="multiple_of"):
        select_plan(NET, budgets={"macs": 0.5}, multiple_of=0)


def test_budgets_that_pull_apart_are_refused_together() -> None:
    floor = reachable_floor(NET, "macs")
    with pytest.raises(BudgetError, match="cannot be met"):
        select_plan(NET, budgets={"macs": floor / 2, "params": 0.9})
