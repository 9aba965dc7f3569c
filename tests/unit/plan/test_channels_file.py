# SPDX-License-Identifier: Apache-2.0
"""Queries in a file, and what blocks pass on: short, and left out where there is none."""

import pytest

from seams import channels_from_json, channels_to_json
from slimrank import PlanError
from slimrank.files import Json
from slimrank.records import AxisUnits, BlockSpec, ChannelMap, GroupSpec, Passes, TensorSpec


def _map(*queries: int) -> ChannelMap:
    width = GroupSpec(name="qkv#2", units=4, unit_width=1, producers=("qkv",), consumers=(), is_inner=True)
    units = (*[0, 1, 2, 3] * 6, -1)
    axis = AxisUnits(group="qkv#2", dim=0, role="output", units=units, queries=queries)
    tensor = TensorSpec(
        name="qkv.bias", shape=(25,), itemsize=4, is_parameter=True, positions=0, axes=(axis,)
    )
    return ChannelMap(groups={"qkv#2": width}, tensors={"qkv.bias": tensor})


def _axis(written: dict[str, Json]) -> dict[str, Json]:
    axis = written["tensors"][0]["axes"][0]  # type: ignore[call-overload, index]
    assert isinstance(axis, dict)
    return axis


@pytest.mark.parametrize("queries", [(), tuple(range(8)), (4, 5, 6, 7, 16, 17, 18, 19)])
def test_queries_are_read_back(queries: tuple[int, ...]) -> None:
    channels = _map(*queries)
    written = channels_to_json(channels)
    assert channels_from_json(written, {}, "file") == channels
    assert ("queries" in _axis(written)) == bool(queries)


def test_queries_take_little_room() -> None:
    assert _axis(channels_to_json(_map(*range(8))))["queries"] == [[0, 8, 1, 1]]


@pytest.mark.parametrize("index", [-1, 24, 25])
def test_queries_stand_at_units(index: int) -> None:
    written = channels_to_json(_map(0))
    _axis(written)["queries"] = [0, index]
    with pytest.raises(PlanError, match=r"axes\[0\]: queries stand at indices that hold no unit of 'qkv#2'"):
        channels_from_json(written, {}, "file")


@pytest.mark.parametrize("passes", [None, 0, "hidden", (1, None, (0, "mask"))])
def test_what_blocks_pass_on_is_read_back(passes: Passes) -> None:
    block = BlockSpec(name="mid", macs=8, params=4, bytes=16, passes=passes)
    written = channels_to_json(ChannelMap(blocks={"mid": block}))
    assert channels_from_json(written, {}, "file").blocks == {"mid": block}
    assert ("passes" in written["blocks"][0]) == (passes is not None)  # type: ignore[index, operator]


@pytest.mark.parametrize(
    ("passes", "match"),
    [
        ([0, -1], r"file.blocks\[0\].passes\[1\]: argument -1; give its position, from 0 on, or its name"),
        (0.5, r"file.blocks\[0\].passes"),
    ],
)
def test_arguments_that_cannot_be_are_refused(passes: Json, match: str) -> None:
    written = channels_to_json(ChannelMap(blocks={"mid": BlockSpec(name="mid", macs=8, params=4, bytes=16)}))
    written["blocks"][0]["passes"] = passes  # type: ignore[call-overload, index]
    with pytest.raises(PlanError, match=match):
        channels_from_json(written, {}, "file")
