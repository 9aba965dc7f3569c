# SPDX-License-Identifier: Apache-2.0
"""Maps without what the caller wants left alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from slimrank.channels import without_layers
from slimrank.records import BlockSpec, ChannelMap, ProductSpec


@pytest.fixture
def channels(map_of: Callable[..., ChannelMap], group_of: Callable[..., object]) -> ChannelMap:
    """Three layers in a row, the last two in blocks of the names "1" and "2"."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    )
    read = map_of(
        model,
        [
            group_of("0", 6, producers=("0",), consumers=("1.0",), sizes=(("", "width"),)),
            group_of("1.0", 5, producers=("1.0",), consumers=("2.0",)),
        ],
        {
            "0.weight": [("0", 0, "output", range(6))],
            "0.bias": [("0", 0, "output", range(6))],
            "1.0.weight": [("0", 1, "input", range(6)), ("1.0", 0, "output", range(5))],
            "1.0.bias": [("1.0", 0, "output", range(5))],
            "2.0.weight": [("1.0", 1, "input", range(5))],
        },
    )
    return replace(
        read,
        products=(
            ProductSpec(module="", macs=8, groups=("0", "1.0")),
            ProductSpec(module="1", macs=4, groups=("0",)),
        ),
        blocks={name: BlockSpec(name=name, macs=1, params=1, bytes=4) for name in ("1", "2")},
        norms={"2.0": "2.1"},
    )


def test_nothing_skipped_changes_nothing(channels: ChannelMap) -> None:
    assert without_layers(channels, ()) == channels
    assert without_layers(channels, ["elsewhere", "2"]) == channels


def test_a_layer_that_only_reads_a_group_freezes_it(channels: ChannelMap) -> None:
    found = without_layers(channels, ["2.0"])
    assert found.groups["1.0"].reason == "the caller skips 2.0, which is part of it"
    assert found.groups["0"] == channels.groups["0"]
    assert set(found.tensors) == {"0.weight", "0.bias", "1.0.weight"}
    assert [axis.group for axis in found.tensors["1.0.weight"].axes] == ["0"]
    assert found.products == (
        ProductSpec(module="", macs=8, groups=("0",)),
        ProductSpec(module="1", macs=4, groups=("0",)),
    )
    assert list(found.blocks) == ["1"]


def test_a_layer_between_two_groups_freezes_both(channels: ChannelMap) -> None:
    found = without_layers(channels, ["1.0"])
    assert all("skips 1.0" in (group.reason or "") for group in found.groups.values())
    assert found.groups["0"].sizes == ()
    assert found.tensors == {}
    assert found.products == ()
    assert list(found.blocks) == ["2"]


def test_once_more_is_the_same(channels: ChannelMap) -> None:
    found = without_layers(channels, ["0"])
    assert without_layers(found, ["0"]) == found
    assert without_layers(found, ["0", "2.0"]).groups["0"] == found.groups["0"]


def test_a_block_of_like_name_is_not_around_it(channels: ChannelMap) -> None:
    other = replace(channels, blocks={"2.": channels.blocks["2"], "20": channels.blocks["2"]})
    assert list(without_layers(other, ["2.0"]).blocks) == ["2.", "20"]
