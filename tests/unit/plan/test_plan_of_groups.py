# SPDX-License-Identifier: Apache-2.0
"""Plans that slim groups of channels and drop blocks."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slimrank import OptionError, PlanError, RankError, UnknownNameError
from slimrank.cost import layer_cost, model_cost, pair_cost, slimmed_spec
from slimrank.plan import Plan, SettingLike, plan_on, step_of, structure_of
from slimrank.records import (
    AxisUnits,
    BlockDamage,
    BlockSpec,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    ProductSpec,
    Role,
    Setting,
    TensorSpec,
)
from specs import Source, conv2d


def axis(group: str, dim: int, units: int, role: Role) -> AxisUnits:
    return AxisUnits(group=group, dim=dim, role=role, units=tuple(range(units)))


def weight(spec: LayerSpec, rows: str | None, columns: str | None) -> TensorSpec:
    axes = [] if rows is None else [axis(rows, 0, spec.weight_shape[0], "output")]
    if columns is not None:
        axes.append(axis(columns, 1, spec.weight_shape[1], "input"))
    return TensorSpec(
        name=f"{spec.name}.weight",
        shape=spec.weight_shape,
        itemsize=4,
        is_parameter=True,
        positions=16,
        axes=tuple(axes),
    )


def group(name: str, units: int, *consumers: str, producers: Sequence[str] = ()) -> GroupSpec:
    return GroupSpec(
        name=name,
        units=units,
        unit_width=1,
        producers=tuple(producers) or (name,),
        consumers=consumers,
        sizes=((name, "width"),),
    )


METHODS = ("weight_svd", "spatial_svd", "channel_pruning")
SPECS = (
    conv2d("first", 32, 16, size=4, methods=METHODS),
    conv2d("mid.a", 24, 32, size=4, methods=METHODS),
    conv2d("mid.b", 32, 24, size=4, methods=METHODS),
    conv2d("last", 8, 32, size=4, methods=METHODS),
)
FIRST, MID_A, MID_B, LAST = SPECS
CHANNELS = ChannelMap(
    groups={
        "first": group("first", 32, "mid.a", "last", producers=("first", "mid.b")),
        "mid.a": group("mid.a", 24, "mid.b"),
        "two": group("two", 4, producers=("mid.a", "mid.b")),
        "last": replace(group("last", 8), reason="it is an output of the model", sizes=()),
    },
    tensors={
        one.name: one
        for one in (
            weight(FIRST, "first", None),
            weight(MID_A, "mid.a", "first"),
            weight(MID_B, "first", "mid.a"),
            weight(LAST, None, "first"),
        )
    },
    products=(ProductSpec(module="mid", macs=4000, groups=("two",)),),
    blocks={
        "mid": BlockSpec(name="mid", macs=100_000, params=13_824, bytes=55_296),
        "mid.b": BlockSpec(name="mid.b", macs=50_000, params=6912, bytes=27_648),
    },
)


def curve(name: str, units: int, kept: Sequence[int]) -> GroupCurve:
    damage = np.linspace(1, 0.1, len(kept))
    # The odd units go first.
    order = (*range(1, units, 2), *range(0, units, 2))
    return GroupCurve(group=name, order=order, kept=np.array(kept), error=damage, damage=damage)


def svd_curve(spec: LayerSpec) -> Curve:
    ranks = np.arange(1, 40)
    damage = np.linspace(2, 0, 39)
    return Curve(
        layer=spec.name,
        method="spatial_svd",
        form="v_h",
        ranks=ranks,
        macs=ranks,
        params=ranks,
        bytes=ranks,
        error=damage,
        damage=damage,
    )


BEFORE = sum((layer_cost(spec) for spec in SPECS), Cost(macs=4000 + 123_456, params=1000, bytes=4000))
STUDY = Source(
    structure_of(SPECS, CHANNELS),
    BEFORE,
    curves=[svd_curve(spec) for spec in SPECS],
    group_curves=[curve("first", 32, range(1, 32)), curve("mid.a", 24, (4, 8, 12))],
    block_damages=[BlockDamage(block="mid", damage=0.5)],
    methods=METHODS,
)
PLAN = Plan.manual(
    STUDY,
    {
        "first": [("channel_pruning", 0.5), ("spatial_svd", {"rank": 4, "form": "v_h"})],
        "mid.a": ("channel_pruning", {"keep": 8}),
        "last": ("spatial_svd", {"rank": 3, "form": "v_h"}),
    },
)


def kept(name: str, asked: SettingLike, multiple_of: int | Mapping[str, int] = 1) -> tuple[int, ...]:
    return Plan.manual(STUDY, {name: asked}, multiple_of=multiple_of).groups[name]


def test_fingerprints_know_no_channels() -> None:
    assert structure_of(SPECS).sha256 == STUDY.structure.sha256
    assert structure_of(SPECS).channels == ChannelMap()


def test_a_step_has_settings_groups_and_blocks_in_execution_order() -> None:
    rank = Setting(method="spatial_svd", form="v_h", rank=2)
    groups = {"mid.a": (0, 1), "first": (3, 30)}
    step = step_of(STUDY.structure, {"last": rank, "first": rank}, groups)
    assert list(step.layers) == ["first", "last"]
    assert list(step.groups.items()) == [("first", (3, 30)), ("mid.a", (0, 1))]
    assert step_of(STUDY.structure, {}, {"mid.a": range(24)}, ["mid.b"]).groups == {}
    assert step_of(STUDY.structure, {}, dropped=["mid.b", "mid.b"]).dropped == ("mid.b",)


def test_after_is_the_cost_of_the_slimmed_model_with_pairs() -> None:
    assert PLAN.after == model_cost(
        BEFORE,
        STUDY.structure.layers,
        CHANNELS,
        settings=PLAN.settings,
        kept=PLAN.groups,
        dropped=(),
        has_bias=True,
    )
    first = slimmed_spec(FIRST, CHANNELS, PLAN.groups)
    assert first.weight_shape == (16, 16, 3, 3)
    # 32 x 16 x 9 before; the pair has a bias, mid.a and mid.b get one.
    params = BEFORE.params - layer_cost(FIRST).params - layer_cost(LAST).params
    params += pair_cost(first, "v_h", 4, has_bias=True).params
    params += pair_cost(slimmed_spec(LAST, CHANNELS, PLAN.groups), "v_h", 3, has_bias=True).params
    params -= 9 * (24 * 32 - 8 * 16) * 2 - 8 - 16
    assert PLAN.after.params == params


def test_groups_and_blocks_of_the_last_step_count() -> None:
    assert (len(PLAN.groups["first"]), PLAN.dropped) == (16, ())
    second = replace(STUDY, previous=PLAN)
    plan = Plan.manual(second, {"mid.b": "drop"})
    assert (plan.groups, plan.dropped, len(plan.steps)) == ({}, ("mid.b",), 2)
    assert plan.start == PLAN.after
    assert plan.after.macs == PLAN.after.macs - 50_000
    first = plan.up_to(1)
    assert (first.groups, first.dropped, first.after) == (PLAN.groups, (), PLAN.after)
    empty = Plan(steps=(), before=BEFORE, has_bias=True)
    assert (empty.groups, empty.dropped) == ({}, ())


def test_damage_is_the_sum_over_layers_groups_and_blocks() -> None:
    damages = [one.damage for one in STUDY.group_curves]
    svd = svd_curve(FIRST).damage
    assert PLAN.damage == pytest.approx(svd[3] + svd[2] + damages[0][15] + damages[1][1])
    assert Plan.manual(STUDY, {"mid": "drop"}).damage == 0.5


def test_damage_is_none_where_one_is_unknown() -> None:
    def damage(asked: Mapping[str, SettingLike], study: Source = STUDY) -> float | None:
        return Plan.manual(study, asked).damage

    # No block damage, a width that the curve does not offer, units in another order, no curve.
    assert damage({"mid.b": "drop"}) is None
    assert damage({"mid.a": ("channel_pruning", {"keep": 9})}) is None
    assert damage({"first": ("channel_pruning", {"channels_kept": [1, 2]})}) is None
    assert damage({"first": ("channel_pruning", {"channels_kept": [28, 30]})}) == pytest.approx(0.97)
    named: dict[str, SettingLike] = {"first": ("channel_pruning", {"channels_kept": [28, 30]})}
    assert damage(named, replace(STUDY, group_curves=())) is None


def test_plan_on_takes_groups_and_blocks() -> None:
    groups = {"mid.a": STUDY.group_curves[1].channels_kept(4)}
    plan = plan_on(STUDY, {}, select="optimal", groups=groups, budgets={"macs": 0.9})
    assert (plan.groups, plan.damage, plan.select) == (groups, 1.0, "optimal")
    with pytest.raises(PlanError, match=r"all of group 'mid.a' is inside dropped blocks"):
        plan_on(STUDY, {}, select="optimal", groups=groups, dropped=["mid"])


def test_the_ratio_of_a_group_is_of_its_units_in_the_order_of_the_curve() -> None:
    assert kept("mid.a", ("channel_pruning", 0.5)) == tuple(range(0, 24, 2))
    assert kept("mid.a", ("channel_pruning", {"ratio": 0.55})) == (*range(0, 22, 2), 21, 22, 23)
    assert kept("mid.a", ("channel_pruning", {"channels_kept": [0, 3, 5]})) == (0, 3, 5)
    assert kept("first", ("channel_pruning", 0.001)) == (30,)


@pytest.mark.parametrize("count", range(1, 24))
def test_the_ratio_of_a_width_gives_that_width_back(count: int) -> None:
    assert len(kept("mid.a", ("channel_pruning", count / 24))) == count


@pytest.mark.parametrize(
    ("how", "multiple_of", "count"),
    [
        (0.5, 8, 16),
        ({"keep": 9}, 8, 16),
        ({"keep": 16}, 8, 16),
        (0.95, 10, 20),  # 30 is more than there are
        (0.5, {"mid*": 5, "*": 8}, 15),
        ({"channels_kept": [0, 4]}, 2, 2),
    ],
)
def test_widths_round_up_to_true_multiples(
    how: float | dict[str, int], multiple_of: int | Mapping[str, int], count: int
) -> None:
    assert len(kept("mid.a", ("channel_pruning", how), multiple_of)) == count


@pytest.mark.parametrize("how", [1.0, {"keep": 24}, {"channels_kept": list(range(24))}])
def test_a_group_that_keeps_all_is_left_alone(how: float | dict[str, int]) -> None:
    assert Plan.manual(STUDY, {"mid.a": ("channel_pruning", how)}).groups == {}


def test_a_producer_names_its_group_and_none_leaves_alone() -> None:
    lone = replace(CHANNELS, groups={**CHANNELS.groups, "two": group("two", 4)})
    study = replace(STUDY, structure=structure_of(SPECS, lone))
    plan = Plan.manual(study, {"mid.b": ("channel_pruning", 0.5), "mid": None, "two": None, "last": None})
    assert list(plan.groups) == ["first"]


def test_a_pair_in_a_slimmed_layer_keeps_a_share_of_the_whole_one() -> None:
    asked: dict[str, SettingLike] = {"last": ("spatial_svd", {"ratio": 0.3, "form": "v_h"})}
    whole = Plan.manual(STUDY, asked).settings["last"].rank
    plan = Plan.manual(STUDY, {**asked, "first": ("channel_pruning", 0.5)})
    rank, slimmed = plan.settings["last"].rank, slimmed_spec(LAST, CHANNELS, plan.groups)
    assert rank > whole
    macs = [pair_cost(slimmed, "v_h", one, has_bias=True).macs for one in (rank, rank + 1)]
    assert macs[0] <= 0.3 * layer_cost(LAST).macs < macs[1]
    assert macs[0] < layer_cost(slimmed).macs


def test_a_pair_that_costs_more_than_the_slimmed_layer_is_refused() -> None:
    groups: dict[str, SettingLike] = {"first": ("channel_pruning", 0.25)}
    message = r"'last': spatial_svd ratio 0.3 is of the layer before slimming, .* give at most (0\.\d+)"
    with pytest.raises(RankError, match=message) as caught:
        Plan.manual(STUDY, {**groups, "last": ("spatial_svd", 0.3)})
    most = float(str(caught.value).partition("give at most ")[2].split()[0])
    # 11 would do, at a ratio that has no four decimals.
    assert Plan.manual(STUDY, {**groups, "last": ("spatial_svd", most)}).settings["last"].rank == 10
    with pytest.raises(RankError, match="the pair would cost more MACs than the slimmed layer"):
        Plan.manual(STUDY, {**groups, "last": ("spatial_svd", {"rank": 20})})
    with pytest.raises(RankError, match="the slimmed layer has no such rank"):
        Plan.manual(STUDY, {**groups, "last": ("spatial_svd", {"rank": 25})})
    with pytest.raises(RankError, match="costs more MACs than the slimmed layer at every rank"):
        Plan.manual(
            STUDY,
            {
                "first": ("channel_pruning", {"keep": 1}),
                "last": ("weight_svd", {"rank": 1, "form": "1x1_kxk"}),
            },
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"firs": ("channel_pruning", 0.5)}, r"layer 'firs': the model has none; did you mean 'first'"),
        ({"firs": None}, "layer 'firs': the model has none; did you mean 'first'"),
        ({"mi": "drop"}, r"block 'mi': the model has none that can be dropped; did you mean 'mid'"),
        ({"first": "drop"}, "block 'first': the model has none that can be dropped; known are 'mid'"),
    ],
)
def test_unknown_names(asked: Mapping[str, SettingLike], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Plan.manual(STUDY, asked)


def test_pruning_that_was_not_measured() -> None:
    study = replace(STUDY, methods=("weight_svd",))
    with pytest.raises(
        UnknownNameError, match="method 'channel_pruning' is not there; known are 'weight_svd'"
    ):
        Plan.manual(study, {"first": ("channel_pruning", 0.5)})


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        (
            "mid.b",
            ("channel_pruning", 0.5),
            "it makes channels of 2 groups; name one of them: 'first', 'two'",
        ),
        ("last", ("channel_pruning", 0.5), "does not apply, nothing can go .it is an output of the model"),
        (
            "mid",
            ("channel_pruning", 0.5),
            "block 'mid': channel_pruning does not apply; give \"drop\" to take",
        ),
        ("mid", "dorp", "block 'mid': the setting is 'dorp'; give \"drop\" to take the block out"),
        ("mid", ("weight_svd", 0.5), r"block 'mid': the setting is \('weight_svd', 0.5\); give \"drop\""),
        ("mid.b", "dorp", r"layer 'mid.b': .* \(method, ratio\), e.g. .* its channels, or \"drop\" to take"),
        ("two", 0.5, r"group 'two': the setting is 0.5; give \(\"channel_pruning\", 0.5\) for its channels"),
        ("first", ("channel_pruning", 1), "ratio 1 is no fraction of the group's units; give e.g. 0.5"),
        (
            "first",
            ("channel_pruning", {"kep": 3}),
            r"'kep' is no key of channel_pruning; did you mean 'keep'",
        ),
        ("first", ("channel_pruning", {"keep": 3, "ratio": 0.5}), "give one of"),
        ("first", ("channel_pruning", {}), "give one of"),
        ("first", ("channel_pruning", {"keep": 2.5}), "keep 2.5 is no whole number"),
        ("first", ("channel_pruning", {"keep": True}), "keep True is no whole number"),
        ("first", ("channel_pruning", {"channels_kept": 3}), "channels_kept 3 is no list of whole numbers"),
        ("first", ("channel_pruning", {"channels_kept": [0.5]}), "is no list of whole numbers"),
        ("first", ("channel_pruning", {"channels_kept": []}), "no unit is kept; keep at least one"),
        ("first", ("channel_pruning", {"channels_kept": [32]}), r"unit 32 is outside 0\.\.31"),
        ("first", ("channel_pruning", {"channels_kept": [1, 1]}), "unit 1 stands twice"),
        ("first", ("channel_pruning", {"channels_kept": [2, 1]}), "unit 1 stands after 2; sort"),
        ("two", ("channel_pruning", 0.5), "group 'two': no curve says in which order its units go"),
        ("first", [("weight_svd", 0.5), ("spatial_svd", 0.5)], "two settings split it into a pair"),
        ("first", [("channel_pruning", 0.5), ("channel_pruning", 0.4)], "group 'first' gets a second width"),
        ("first", "dropp", "the setting is 'dropp'"),
        ("first", [], "the setting is"),
    ],
)
def test_wrong_kinds(name: str, asked: SettingLike, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Plan.manual(STUDY, {name: asked})


def test_names_of_which_nothing_can_go() -> None:
    alone = replace(FIRST, name="alone", methods=(), reason="no method applies")
    stuck = replace(CHANNELS.groups["last"], name="last#2")
    channels = replace(CHANNELS, groups={**CHANNELS.groups, "last#2": stuck})
    study = replace(STUDY, structure=structure_of((*SPECS, alone), channels))
    with pytest.raises(
        OptionError, match=r"layer 'alone': channel_pruning .* it makes no channels of a group"
    ):
        Plan.manual(study, {"alone": ("channel_pruning", 0.5)})
    with pytest.raises(OptionError, match=r"layer 'alone': the setting is 0.5; give None, since nothing"):
        Plan.manual(study, {"alone": 0.5})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match=r"group 'last#2': the setting is \(.*; give None, since nothing"):
        Plan.manual(study, {"last#2": ("weight_svd", 0.5)})


@pytest.mark.parametrize(
    ("how", "multiple_of", "message"),
    [
        (0.0, 1, r"group 'mid.a': ratio 0.0 is outside \(0, 1\]; give the share of the group's units"),
        ({"keep": 0}, 1, r"keep 0 is outside 1..24"),
        ({"keep": 25}, 1, r"keep 25 is outside 1..24"),
        (0.5, 25, "it has 24 units, and no number of them is a multiple of 25"),
        ({"channels_kept": [0, 1, 2]}, 2, "channels_kept holds 3 units, no multiple of 2"),
    ],
)
def test_widths_out_of_reach(how: float | dict[str, int], multiple_of: int, message: str) -> None:
    with pytest.raises(RankError, match=message):
        kept("mid.a", ("channel_pruning", how), multiple_of)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"mid": "drop", "mid.b": ("spatial_svd", 0.5)},
            "plan: layer 'mid.b' is inside the dropped block 'mid'",
        ),
        ({"mid": "drop", "mid.b": "drop"}, "block 'mid.b' is inside the dropped block 'mid'"),
        ({"mid": "drop", "mid.a": ("channel_pruning", 0.5)}, "all of group 'mid.a' is inside dropped blocks"),
    ],
)
def test_what_is_inside_a_dropped_block_is_refused(asked: Mapping[str, SettingLike], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.manual(STUDY, asked)


def test_a_group_that_reaches_out_of_a_dropped_block_is_slimmed() -> None:
    plan = Plan.manual(STUDY, {"mid": "drop", "first": ("channel_pruning", 0.5)})
    lost = 9 * 16 * 16 + 9 * 8 * 16
    assert plan.after.params == BEFORE.params - 13_824 - lost + 8


def test_step_of_checks_what_it_is_given() -> None:
    with pytest.raises(
        PlanError, match=r"plan.groups: 'firs' is no group of the structure; did you mean 'first'"
    ):
        step_of(STUDY.structure, {}, {"firs": (0,)})
    with pytest.raises(PlanError, match=r"nothing of it can go .it is an output of the model.; delete"):
        step_of(STUDY.structure, {}, {"last": (0,)})
    with pytest.raises(PlanError, match=r"plan.groups\['first'\]: no unit is kept"):
        step_of(STUDY.structure, {}, {"first": ()})
    with pytest.raises(PlanError, match=r"plan.dropped: 'mit' is no block that can be dropped"):
        step_of(STUDY.structure, {}, dropped=["mit"])
    rank = Setting(method="spatial_svd", form="v_h", rank=13)
    with pytest.raises(RankError, match=r"plan.layers\['last'\]: rank 13 is outside 1..12 of the slimmed"):
        step_of(STUDY.structure, {"last": rank}, {"first": range(4)})
    with pytest.raises(RankError, match="rank 12 costs at least what the slimmed layer does"):
        step_of(STUDY.structure, {"last": replace(rank, rank=12)}, {"first": range(4)})


def test_replace_sets_groups_and_blocks() -> None:
    named = PLAN.replace("first", ("channel_pruning", {"channels_kept": [0, 1, 2, 3]}))
    assert (named.groups["first"], named.settings) == ((0, 1, 2, 3), PLAN.settings)
    assert (named.select, named.damage) == ("manual", None)
    assert list(PLAN.replace("first", ("channel_pruning", 1.0)).groups) == ["mid.a"]
    assert PLAN.replace("first", ("spatial_svd", {"rank": 2})).groups == PLAN.groups
    both = PLAN.replace(
        "first", [("channel_pruning", {"channels_kept": [0, 9]}), ("weight_svd", {"rank": 1})]
    )
    assert (both.groups["first"], both.settings["first"].rank) == ((0, 9), 1)


def test_replace_by_none_leaves_alone_all_that_has_the_name() -> None:
    bare = PLAN.replace("first", None)
    assert (list(bare.settings), list(bare.groups)) == (["last"], ["mid.a"])
    dropped = PLAN.replace("mid", "drop")
    assert dropped.replace("mid", None).dropped == ()
    with pytest.raises(UnknownNameError, match="layer 'secnd': the model has none"):
        PLAN.replace("secnd", None)


def test_replace_by_drop_takes_what_is_inside() -> None:
    inner = PLAN.replace("mid.a", ("spatial_svd", {"rank": 2})).replace("mid.b", "drop")
    plan = inner.replace("mid", "drop")
    assert (plan.dropped, list(plan.settings), list(plan.groups)) == (("mid",), ["first", "last"], ["first"])
    with pytest.raises(PlanError, match=r"layer 'mid.b' is inside the dropped block 'mid'"):
        plan.replace("mid.b", ("spatial_svd", {"rank": 2}))


def test_replace_knows_no_order_and_checks_the_pairs() -> None:
    for how in (0.4, {"keep": 13}):
        advice = f"Plan.manual(study, {{'first': ('channel_pruning', {how!r})}}).groups['first'] lists them"
        with pytest.raises(OptionError, match="a plan knows no order .*" + re.escape(advice)):
            PLAN.replace("first", ("channel_pruning", how))
        kept = Plan.manual(STUDY, {"first": ("channel_pruning", how)}).groups["first"]
        named = PLAN.replace("first", ("channel_pruning", {"channels_kept": kept}))
        assert len(named.groups["first"]) == 13
    with pytest.raises(RankError, match=r"layers\['first'\]: rank 4 is outside 1..3 of the slimmed layer"):
        PLAN.replace("first", ("channel_pruning", {"channels_kept": [0]}))


def test_repr_counts_groups_where_there_are_any() -> None:
    assert repr(PLAN).startswith("Plan(manual: 2 of 4 layers, 2 of 3 groups, macs 0.")
    assert repr(PLAN.replace("mid", "drop")).startswith(
        "Plan(manual: 2 of 4 layers, 1 of 3 groups, 1 of 2 blocks dropped, macs"
    )
    frozen = replace(CHANNELS, groups={"last": CHANNELS.groups["last"]}, tensors={}, products=())
    bare = Plan.manual(replace(STUDY, structure=structure_of(SPECS, frozen)), {})
    assert repr(bare) == "Plan(manual: 0 of 4 layers, macs 1.0000, params 1.0000, bytes 1.0000)"


def test_diff_tells_groups_and_blocks() -> None:
    other = PLAN.replace("mid", "drop").replace("last", None)
    lines = PLAN.diff(other).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "last", "mid.a", "mid", "macs", "params", "bytes"]
    share = (2 * 9 * 16 * 8 * 32) / (2 * 9 * 16 * 24 * 32)
    assert f"channel_pruning keeps 8 of 24 ({share:.3f} macs)" in lines[2]
    assert lines[2].endswith("left alone")
    assert lines[3].split() == ["mid", "left", "alone", "dropped"]
    assert "spatial_svd v_h rank 3 (" in lines[1]


def test_diff_tells_other_units_and_several_steps() -> None:
    units = ("channel_pruning", {"channels_kept": list(range(8))})
    assert PLAN.diff(PLAN.replace("mid.a", units)).splitlines()[1].endswith("macs) (other units)")
    again = Plan.manual(replace(STUDY, previous=PLAN), {"mid.a": units})
    told = PLAN.diff(again).splitlines()[-4]
    assert "keeps 8 of 24 (0.333 macs), then channel_pruning keeps 8 of 24 (0.333 macs)" in told
    idle = plan_on(replace(STUDY, previous=PLAN), {}, select="manual")
    assert PLAN.diff(idle).startswith("no difference")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


FULL = replace(
    Plan.manual(
        STUDY,
        {
            "first": [("channel_pruning", 0.5), ("spatial_svd", {"rank": 4, "form": "v_h"})],
            "last": ("spatial_svd", {"rank": 2, "form": "v_h"}),
            "mid": "drop",
        },
        multiple_of={"f*": 2, "*": 1},
    ),
    select="optimal",
    gap=0.1,
    budgets={"macs": 0.5},
)


@pytest.mark.parametrize("plan", [PLAN, FULL])
def test_load_gives_back_what_was_saved(path: Path, plan: Plan) -> None:
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded == plan
    channels = loaded.steps[0].structure.channels
    assert [list(channels.groups), list(channels.tensors)] == [list(CHANNELS.groups), list(CHANNELS.tensors)]
    assert list(loaded.groups) == list(plan.groups)
    assert loaded.after == plan.after


def test_files_without_channels_are_as_they_were(path: Path) -> None:
    plain = plan_on(replace(STUDY, structure=structure_of(SPECS)), {}, select="manual")
    plain.save(path)
    step = json.loads(path.read_text())["steps"][0]
    assert sorted(step) == ["groups", "layers", "structure"]
    assert sorted(step["structure"]) == ["layers", "order", "sha256"]


def test_channels_are_short_in_the_file(path: Path) -> None:
    FULL.save(path)
    text = path.read_text()
    assert '{"dim": 1, "group": "first", "role": "input", "units": [[0, 32, 1, 1]]}' in text
    assert '"dropped": ["mid"]' in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_edited_widths_are_counted_anew(path: Path) -> None:
    FULL.save(path)
    text = path.read_text()
    wide = json.dumps(list(range(0, 32, 2)))
    assert wide in text
    path.write_text(text.replace(wide, "[0, 2, 4]"))
    loaded = Plan.load(path)
    assert loaded.groups["first"] == (0, 2, 4)
    # Three are no multiple of two.
    assert (loaded.select, loaded.damage, loaded.budgets, loaded.multiple_of) == ("manual", None, {}, 1)


def test_other_units_of_the_same_number_are_an_edit_too(path: Path) -> None:
    FULL.save(path)
    text = path.read_text()
    path.write_text(text.replace(KEPT, json.dumps([1, *range(2, 32, 2)])))
    loaded = Plan.load(path)
    assert loaded.after == FULL.after
    assert (loaded.select, loaded.damage, loaded.budgets) == ("manual", None, {})


KEPT = json.dumps(list(range(0, 32, 2)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'"first": {KEPT}', f'"firs": {KEPT}', r"steps\[0\].groups: 'firs' is no group .* mean 'first'"),
        (f'"first": {KEPT}', '"last": [0]', r"groups\['last'\]: nothing of it can go .it is an output"),
        (KEPT, "[]", r"groups\['first'\]: no unit is kept"),
        (KEPT, "[1, 0]", "unit 0 stands after 1"),
        (KEPT, "[1, 1]", "unit 1 stands twice"),
        (KEPT, "[1, 32]", r"unit 32 is outside 0\.\.31"),
        (KEPT, "[-1, 3]", r"unit -1 is outside 0\.\.31"),
        (KEPT, "[1, 2.5]", r"groups\['first'\]\[1\]: 2.5 is no whole number"),
        (KEPT, "3", "3 is no list"),
        ('"dropped": ["mid"]', '"dropped": ["mit"]', r"steps\[0\].dropped: 'mit' is no block .* mean 'mid'"),
        ('"dropped": ["mid"]', '"dropped": ["mid", "mid"]', "dropped: 'mid' stands twice"),
        ('"dropped": ["mid"]', '"dropped": ["mid", "mid.b"]', "block 'mid.b' is inside the dropped block"),
        ('"dropped": ["mid"]', '"dropped": "mid"', "is no list"),
        ('"last": [{"form"', '"mid.b": [{"form"', r"steps\[0\]: layer 'mid.b' is inside the dropped block"),
        ('"dim": 1, "group": "first"', '"dim": 4, "group": "first"', r"dim 4 is outside 0\.\.3"),
        ('"dim": 1, "group": "first"', '"dim": 1, "group": "firs"', "'firs' is no group"),
        ('"role": "input"', '"role": "inptu"', "unknown role 'inptu'; did you mean 'input'"),
        ("[[0, 32, 1, 1]]", "[[0, 31, 1, 1]]", "31 units for a dimension of 32 indices"),
        ("[[0, 32, 1, 1]]", "[[1, 32, 1, 1]]", r"unit 32 is outside -1\.\.31 of group 'first'"),
        ("[[0, 32, 1, 1]]", "[[0, 32, 1]]", r"\[0, 32, 1\] is no pattern; write \[start, count"),
        ("[[0, 32, 1, 1]]", "[[0, 32, 0, 1]]", "is no pattern"),
        ("[[0, 32, 1, 1]]", '["all"]', '"all" is no whole number'),
        ('[["first", "width"]]', '[["first"]]', r"\['first'\] is no pair; write \[module, attribute\]"),
        ('"consumers": ["mid.b"]', '"consumers": ["mid.c"]', "'mid.c' is no layer of the structure"),
        ('"units": 24', '"units": 0', "0 units; a group has at least one"),
        ('"name": "mid.a"', '"name": "first"', r"channels.groups: 'first' stands twice"),
        ('"name": "mid.b.weight"', '"name": "mid.a.weight"', "tensors: 'mid.a.weight' stands twice"),
        ('"name": "mid.b", "params"', '"name": "mid", "params"', "blocks: 'mid' stands twice"),
        ('"groups": ["two"]', '"groups": ["tow"]', r"products\[0\].groups\[0\]: 'tow' is no group"),
        ('"unit_width"', '"unit_wdth"', "unknown key 'unit_wdth'"),
    ],
)
def test_load_refuses(path: Path, old: str, new: str, message: str) -> None:
    FULL.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def test_load_checks_ranks_against_the_slimmed_layer(path: Path) -> None:
    FULL.save(path)
    text = path.read_text()
    path.write_text(text.replace(KEPT, "[0]"))
    with pytest.raises(
        RankError, match=r"layers\['first'\]\[0\]: rank 4 is outside 1..3 of the slimmed layer"
    ):
        Plan.load(path)
    path.write_text(text.replace(KEPT, "[0, 1]").replace('"rank": 4', '"rank": 6'))
    with pytest.raises(RankError, match="rank 6 costs at least what the slimmed layer does"):
        Plan.load(path)


def test_a_group_that_keeps_all_in_a_file_is_left_alone(path: Path) -> None:
    FULL.save(path)
    path.write_text(path.read_text().replace(KEPT, json.dumps(list(range(32)))))
    assert Plan.load(path).groups == {}
