# SPDX-License-Identifier: Apache-2.0
"""What "auto" makes ranks and widths multiples of, and what a plan tells of it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seams import multiples_text, rank_multiple, rounding_steps, width_multiple
from slimrank import OptionError, PlanError, RankError
from slimrank.cost import layer_cost, max_rank, pair_costs
from slimrank.plan import MultipleOf, Plan, multiple_for, structure_of
from slimrank.records import (
    AxisUnits,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    Setting,
    TensorSpec,
)
from slimrank.report import render_plan
from slimrank.select import select_plan
from specs import Source, conv2d, linear, other

ALL = ("weight_svd", "spatial_svd", "channel_pruning")


@pytest.mark.parametrize(
    ("spec", "multiple"),
    [
        # The highest rank that saves MACs is that of the spatial pair, k * C_in * C_out / (C_in + C_out).
        (conv2d("a", 8, 8, size=8), 1),
        (conv2d("a", 16, 16, size=8), 4),
        (conv2d("a", 20, 20, size=8), 4),
        (conv2d("a", 24, 24, size=8), 8),
        (conv2d("a", 64, 64, size=8), 8),
        (conv2d("a", 80, 80, size=8), 8),
        (conv2d("a", 96, 96, size=8), 16),
        (linear("a", 30, 30), 1),
        (linear("a", 32, 32), 4),
        (linear("a", 62, 62), 4),
        (linear("a", 64, 64), 8),
        (linear("a", 256, 256), 16),
        (linear("a", 4096, 10), 1),
        # Expansions are narrow on one side, which limits the rank.
        (conv2d("a", 96, 16, 1, size=8), 1),
        (replace(conv2d("a", 512, 512, size=8), methods=("channel_pruning",)), 1),
        (other("a", "LayerNorm", (64,)), 1),
    ],
)
def test_ranks_go_by_the_highest_that_saves(spec: LayerSpec, multiple: int) -> None:
    assert rank_multiple(spec) == multiple


def test_a_layer_that_is_never_called_goes_by_its_full_rank() -> None:
    assert rank_multiple(replace(linear("a", 32, 64), calls=())) == 8


@pytest.mark.parametrize(
    ("units", "unit_width", "multiple"),
    [
        (15, 1, 1),
        (16, 1, 4),
        (31, 1, 4),
        (32, 1, 8),
        (127, 1, 8),
        (128, 1, 16),
        # Heads of 64 go whole, and are multiples of everything.
        (2, 64, 1),
        (4, 64, 8),
        (8, 64, 16),
        # Four heads of 12: steps of two would leave two choices.
        (4, 12, 4),
        (12, 12, 8),
        (12, 5, 1),
    ],
)
def test_widths_go_by_the_outputs_of_the_first_producer(units: int, unit_width: int, multiple: int) -> None:
    group = GroupSpec(name="g", units=units, unit_width=unit_width, producers=("g",), consumers=())
    assert width_multiple(group) == multiple


def expansion() -> Source:
    """``up`` makes 96 channels from 16: its group is wide, and its ranks are few; ``down`` reads them."""
    up, down = conv2d("up", 96, 16, 1, size=8, methods=ALL), conv2d("down", 128, 96, size=8, methods=ALL)
    group = GroupSpec(name="up", units=96, unit_width=1, producers=("up",), consumers=("down",))
    tensors = {
        f"{spec.name}.weight": TensorSpec(
            name=f"{spec.name}.weight",
            shape=spec.weight_shape,
            itemsize=4,
            is_parameter=True,
            positions=64,
            axes=(AxisUnits(group="up", dim=dim, role=role, units=tuple(range(96))),),  # type: ignore[arg-type]
        )
        for spec, dim, role in ((up, 0, "output"), (down, 1, "input"))
    }
    kept = np.arange(1, 96)
    damage = (1 - kept / 96) ** 2
    channels = ChannelMap(groups={"up": group}, tensors=tensors, products=(), blocks={})
    return Source(
        structure=structure_of([up, down], channels),
        before=layer_cost(up) + layer_cost(down),
        curves=(curve(up, "weight_svd", "kxk_1x1"), curve(down, "spatial_svd", "v_h")),
        group_curves=(
            GroupCurve(group="up", order=tuple(range(96)), kept=kept, error=damage, damage=damage),
        ),
        has_bias=False,
        methods=ALL,
    )


def curve(spec: LayerSpec, method: str, form: str) -> Curve:
    ranks = np.arange(1, max_rank(spec, form) + 1)  # type: ignore[arg-type]
    macs, params = pair_costs(spec, form, ranks, has_bias=False)  # type: ignore[arg-type]
    damage = np.linspace(1, 0, len(ranks))
    return Curve(
        layer=spec.name,
        method=method,  # type: ignore[arg-type]
        form=form,  # type: ignore[arg-type]
        ranks=ranks,
        macs=macs,
        params=params,
        bytes=4 * params,
        error=damage,
        damage=damage,
    )


NET = expansion()


def test_a_layer_and_its_group_have_numbers_of_their_own() -> None:
    rule = rounding_steps("auto", NET.structure)[0]
    assert (rule.ranks, rule.widths) == ({"up": 1, "down": 16}, {"up": 8})


def test_numbers_are_lowered_step_by_step() -> None:
    steps = rounding_steps("auto", NET.structure)
    assert [step.ranks for step in steps] == [{"up": 1, "down": number} for number in (16, 8, 4, 1)]
    assert [step.widths for step in steps] == [{"up": number} for number in (8, 8, 4, 1)]
    assert len(rounding_steps(8, NET.structure)) == 1


def test_globs_may_be_auto_and_given_numbers_stay() -> None:
    multiple_of: MultipleOf = {"down": 6, "*": "auto"}
    steps = rounding_steps(multiple_of, NET.structure)
    assert {step.ranks["down"] for step in steps} == {6}  # type: ignore[index]
    assert [step.widths["up"] for step in steps] == [8, 4, 1]  # type: ignore[index]
    assert rounding_steps({"down": "auto"}, NET.structure)[0].widths == {"up": 1}


@pytest.mark.parametrize(
    ("multiple_of", "message"),
    [
        ("atuo", r"multiple_of is 'atuo'; give .* e\.g\. 8, or \"auto\"; did you mean 'auto'\?"),
        ("8", r"multiple_of is '8'; give a whole number of at least 1"),
        ({"up": "auot"}, r"multiple_of\['up'\] is 'auot'; .*did you mean 'auto'"),
        ({"up": None}, r"multiple_of\['up'\] is None; give a whole number"),
        (np.array([8, 8]), r"multiple_of is array\(\[8, 8\]\); give a whole number"),
    ],
)
def test_what_is_neither_number_nor_auto_is_refused(multiple_of: MultipleOf, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        select_plan(NET, budgets={"macs": 0.5}, multiple_of=multiple_of)
    with pytest.raises(OptionError, match=message):
        Plan.manual(NET, {}, multiple_of=multiple_of)


def test_a_name_with_brackets_is_found() -> None:
    assert multiple_for({"a[0]": 8}, "a[0]") == 8
    assert multiple_for({"a[0]": 8}, "a0") == 8
    assert multiple_for({"a[0]": 8}, "a1") == 1


def test_a_plan_tells_what_was_used() -> None:
    plan = select_plan(NET, budgets={"macs": 0.5}, methods=ALL[2:], multiple_of="auto")
    assert plan.settings == {}
    assert len(plan.groups["up"]) % 8 == 0
    # The number of the width, which is what the plan chose; that of the rank is 1.
    assert plan.multiple_of == {"up": 8, "down": 16}
    assert plan.relaxed == ()
    assert multiples_text(plan) == "ranks and widths are multiples of 8 (auto)"
    assert "ranks and widths are multiples of 8 (auto)" in render_plan(plan)


def test_one_number_stands_for_all_that_have_it() -> None:
    spec = conv2d("a", 64, 64, size=8)
    net = Source(structure_of([spec]), layer_cost(spec), (curve(spec, "spatial_svd", "v_h"),))
    assert select_plan(net, budgets={"macs": 0.5}, multiple_of="auto").multiple_of == 8
    assert select_plan(net, budgets={"macs": 0.5}, multiple_of={"a": "auto"}).multiple_of == 8


def test_a_budget_out_of_reach_lowers_the_numbers_and_names_the_layers() -> None:
    spec = conv2d("a", 64, 64, size=8)
    net = Source(structure_of([spec]), layer_cost(spec), (curve(spec, "spatial_svd", "v_h"),))
    # Rank 8 of 96 costs 0.0833.
    plans = {
        macs: select_plan(net, budgets={"macs": macs}, multiple_of="auto")
        for macs in (0.17, 0.15, 0.05, 0.011)
    }
    found = {macs: (plan.settings["a"].rank, plan.multiple_of, plan.relaxed) for macs, plan in plans.items()}
    assert found[0.17] == (16, 8, ())
    # What is left above the smallest model is less than twice what the multiples add to it.
    assert found[0.15] == (12, 4, ("a",))
    assert found[0.05] == (4, 1, ("a",))
    assert found[0.011] == (1, 1, ("a",))
    assert multiples_text(plans[0.15]) == (
        "ranks and widths are multiples of 4 (auto); lower than the rule for 'a'"
    )
    assert multiples_text(plans[0.011]) == (
        "ranks and widths are any number (auto); lower than the rule for 'a'"
    )


def test_numbers_of_several_sizes_are_counted() -> None:
    settings = {"up": Setting(method="weight_svd", form="kxk_1x1", rank=5)}
    plan = Plan.manual(
        NET,
        {
            "up": [("weight_svd", {"rank": 5}), ("channel_pruning", {"keep": 48})],
            "down": ("spatial_svd", {"rank": 32}),
        },
        multiple_of="auto",
    )
    assert plan.settings["up"] == settings["up"]
    assert plan.multiple_of == {"up": 1, "down": 16}
    assert multiples_text(plan) == (
        "ranks and widths are multiples of 16 (1), any number (2), by the size of each layer (auto)"
    )
    assert multiples_text(replace(plan, multiple_of=1, relaxed=None)) == ""
    assert multiples_text(replace(plan, multiple_of=8, relaxed=None)) == "ranks and widths are multiples of 8"


def test_hand_made_plans_round_up_where_auto_is_asked_for() -> None:
    down: dict[str, int] = {}
    for ratio in (0.3, 0.5):
        plan = Plan.manual(NET, {"down": ("spatial_svd", ratio)}, multiple_of="auto")
        down[str(ratio)] = plan.settings["down"].rank
        assert plan.relaxed == ()
    assert all(rank % 16 == 0 for rank in down.values())
    assert Plan.manual(NET, {"down": ("spatial_svd", {"rank": 33})}).settings["down"].rank == 33
    assert len(Plan.manual(NET, {"up": ("channel_pruning", 0.51)}, multiple_of="auto").groups["up"]) == 56


def test_hand_made_plans_take_lower_numbers_where_a_layer_has_no_multiple() -> None:
    # Ranks up to 164 save MACs; 160 is the last multiple of 16.
    plan = Plan.manual(NET, {"down": ("spatial_svd", {"rank": 162})}, multiple_of="auto")
    assert (plan.settings["down"].rank, plan.relaxed) == (164, ("down",))
    units = Plan.manual(NET, {"up": ("channel_pruning", {"channels_kept": [0, 1, 2]})}, multiple_of="auto")
    assert (units.groups["up"], units.relaxed) == ((0, 1, 2), ("up",))
    with pytest.raises(RankError, match="rank 170 is outside"):
        Plan.manual(NET, {"down": ("spatial_svd", {"rank": 170})}, multiple_of="auto")


def test_what_is_set_by_hand_in_a_plan_of_auto_is_taken_as_it_stands() -> None:
    plan = select_plan(NET, budgets={"macs": 0.5}, methods=ALL[:2], multiple_of="auto")
    assert plan.relaxed == ()
    edited = plan.replace("down", ("spatial_svd", {"rank": 34}))
    assert edited.settings["down"].rank == 34
    assert edited.relaxed == ("down",)
    assert multiple_for(edited.multiple_of, "down") == 2
    back = edited.replace("down", ("spatial_svd", {"rank": 32}))
    assert back.relaxed == ()
    narrow = edited.replace("up", ("channel_pruning", {"channels_kept": list(range(40))}))
    assert narrow.relaxed == ("down",)
    given = select_plan(NET, budgets={"macs": 0.5}, methods=ALL[:2], multiple_of=4)
    assert given.replace("down", ("spatial_svd", {"rank": 33})).settings["down"].rank == 36


def test_the_file_keeps_what_was_used(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for macs in (0.6, 0.02):
        plan = select_plan(NET, budgets={"macs": macs}, methods=ALL[:2], multiple_of="auto")
        plan.save(path)
        assert Plan.load(path) == plan
    assert plan.relaxed
    text = path.read_text(encoding="utf-8")
    wrong = re.sub(r'("relaxed": \[\s*)"down"', r'\1"dwon"', text)
    assert wrong != text
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(PlanError, match="relaxed: the model has no 'dwon'; did you mean 'down'"):
        Plan.load(path)
    select_plan(NET, budgets={"macs": 0.6}, multiple_of=1).save(path)
    assert "relaxed" not in path.read_text(encoding="utf-8")


def test_an_edited_file_forgets_multiples_that_no_longer_hold(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = select_plan(NET, budgets={"macs": 0.5}, methods=ALL[:2], multiple_of="auto")
    plan.save(path)
    rank = plan.settings["down"].rank
    text = path.read_text(encoding="utf-8")
    assert text.count(f'"rank": {rank}') == 1
    path.write_text(text.replace(f'"rank": {rank}', f'"rank": {rank - 16}'), encoding="utf-8")
    assert (Plan.load(path).multiple_of, Plan.load(path).relaxed) == (plan.multiple_of, ())
    path.write_text(text.replace(f'"rank": {rank}', f'"rank": {rank - 1}'), encoding="utf-8")
    assert (Plan.load(path).multiple_of, Plan.load(path).relaxed) == (1, None)


def test_cost_of_a_model_without_choices_is_told_as_one() -> None:
    spec = other("norm", "LayerNorm", (64,), params=128)
    net = Source(structure_of([spec]), Cost(macs=0, params=128, bytes=512))
    plan = select_plan(net, budgets={"params": 1.0}, multiple_of="auto")
    assert (plan.multiple_of, plan.relaxed, multiples_text(plan)) == (1, (), "")
