# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from seams import counts_text, damage_at_half, kept_rows, readers_of
from slimrank.plan import Plan
from slimrank.records import BlockDamage, ChannelMap, Cost, GroupCurve, LayerSpec, TensorSpec
from slimrank.report import render_groups, slimmed_text


def _cells(text: str, start: str) -> list[str]:
    """The first line that starts so, split where two blanks or more stand."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_groups_show_who_makes_and_reads_them_and_what_half_costs(
    channels: ChannelMap, group_curves: Sequence[GroupCurve], block_damages: Sequence[BlockDamage]
) -> None:
    text = render_groups(channels, group_curves, block_damages)
    assert _cells(text, "group ") == [
        "group",
        "units",
        "unit width",
        "made by",
        "read by",
        "sizes changed",
        "damage at half",
    ]
    # 30 of 64 units are nearest to half.
    assert _cells(text, "up") == ["up", "64", "1", "up", "down + 1 more", "width + 1 more", "0.250"]
    assert _cells(text, "heads") == ["heads", "4", "8", "heads + 1 more", "-", "attention.num_heads", "-"]
    assert "\n4 groups, 2 can be slimmed; 1 block can be dropped\n" in text
    assert "\nStay whole\n - down, side: an output\n" in text
    assert _cells(text, "extra") == ["extra", "1.00 k", "500", "0.500"]


def test_a_block_shows_its_share_where_the_whole_is_known(channels: ChannelMap) -> None:
    text = render_groups(channels, (), (), before=Cost(macs=5_000, params=1, bytes=4))
    assert _cells(text, "block") == ["block", "MACs", "share", "params", "damage"]
    assert _cells(text, "extra") == ["extra", "1.00 k", "20.0 %", "500", "-"]


def test_groups_are_plain_ascii_and_reasons_wrap(channels: ChannelMap) -> None:
    groups = {
        name: replace(group, reason="aten.native_layer_norm at model.py:31 " * 6)
        for name, group in channels.groups.items()
    }
    text = render_groups(replace(channels, groups=groups, blocks={}), (), (), width=60)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 60
    assert text.startswith("4 groups, 0 can be slimmed\n")
    assert text.endswith("\n")


def test_a_reader_that_cannot_be_fitted_anew_is_named_too(channels: ChannelMap) -> None:
    group = replace(channels.groups["up"], consumers=("side",))
    assert readers_of(channels, group) == ("side", "down")


def test_a_model_without_groups_says_so() -> None:
    assert render_groups(ChannelMap(), (), ()).startswith("No channel groups; a study with the method")


def test_a_group_with_one_producer_and_no_curve_points_has_no_damage(
    group_curves: Sequence[GroupCurve],
) -> None:
    none = replace(group_curves[0], kept=np.array([], dtype=np.int64), damage=np.array([]))
    assert damage_at_half(none) is None
    assert damage_at_half(None) is None


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("up", "64 -> 24 outputs"),
        ("down", "64 -> 24 inputs"),
        ("alone", None),
        ("extra.fc", "gone with extra"),
    ],
)
def test_slimmed_text_tells_both_sides(slim_plan: Plan, layer: str, expected: str | None) -> None:
    step = slim_plan.steps[0]
    assert slimmed_text(step, step.structure.layers[layer]) == expected


def test_slimmed_text_knows_a_transposed_kernel_and_weights_of_other_names(
    slim_plan: Plan, channels: ChannelMap
) -> None:
    step = slim_plan.steps[0]
    tensor = channels.tensors["down.weight"]
    flipped = replace(tensor, shape=(64, 32), axes=(replace(tensor.axes[0], dim=0),))
    named = replace(tensor, name="down.in_proj_weight")

    def told(spec: LayerSpec, **tensors: TensorSpec) -> str | None:
        changed = replace(channels, tensors={one.name: one for one in tensors.values()})
        return slimmed_text(replace(step, structure=replace(step.structure, channels=changed)), spec)

    spec = replace(step.structure.layers["down"], kind="other")
    assert told(replace(spec, weight_shape=(64, 32)), weight=flipped) == "64 -> 24 inputs"
    assert told(replace(spec, weight_shape=()), weight=named) == "2048 -> 768 parameters"


def test_a_plan_counts_layers_groups_and_blocks(slim_plan: Plan) -> None:
    assert counts_text(slim_plan) == "1 of 5 layers, 1 of 2 groups, 1 block compressed"
    step = replace(slim_plan.steps[0], groups={}, dropped=())
    assert counts_text(replace(slim_plan, steps=(step,))) == "1 of 5 layers, 0 of 2 groups compressed"
    bare = replace(step, structure=replace(step.structure, channels=ChannelMap()))
    assert counts_text(replace(slim_plan, steps=(bare,))) == "1 of 5 layers compressed"
    assert counts_text(replace(slim_plan, steps=())) == "0 of 0 layers compressed"
    assert kept_rows(replace(slim_plan, steps=()), None) == []


def test_the_model_itself_has_a_name(
    channels: ChannelMap, group_curves: Sequence[GroupCurve], block_damages: Sequence[BlockDamage]
) -> None:
    up = replace(channels.groups["up"], producers=("", "up"), consumers=("",))
    text = render_groups(
        replace(channels, groups={"up": up}, tensors={}), group_curves, block_damages, before=None
    )
    assert re.search(r"^up +64 +1  \(model\) \+ 1 more  \(model\) ", text, re.MULTILINE)
