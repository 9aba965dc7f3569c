# SPDX-License-Identifier: Apache-2.0
"""Which blocks are measured together, and what their damages become."""

from collections.abc import Iterable, Mapping

import pytest

from seams import blocks_alone, blocks_to_drop, damages_in_turn, most_drops
from slimrank.records import BlockSpec

WORTH = dict.fromkeys("abc", 1.0)
MOST = 24


def blocks(names: Iterable[str], macs: int = 100) -> dict[str, BlockSpec]:
    return {name: BlockSpec(name=name, macs=macs, params=10, bytes=40) for name in names}


def measured(
    worth: Mapping[str, float], costs: Mapping[str, float], limit: float = 1.0
) -> dict[tuple[str, ...], float]:
    """What is measured of blocks whose costs are known, "ab" for a and b together."""
    found: dict[tuple[str, ...], float] = {}
    for dropped in blocks_to_drop(blocks("abc"), "abc", worth, found, limit):
        found[dropped] = costs["".join(dropped)]
    assert ["".join(dropped) for dropped in found] == list(costs)
    return found


def test_of_many_blocks_ever_more_are_dropped_at_once_and_all_in_the_end() -> None:
    names = [f"block{i}" for i in range(11)]
    alone = {name: 0.1 * (i + 1) for i, name in enumerate(names)}
    worth = dict.fromkeys(names, 9.0)
    found: dict[tuple[str, ...], float] = {}
    for dropped in blocks_to_drop(blocks(names), names, worth, found, 1e9):
        # Each adds three times what it costs alone.
        found[dropped] = alone[dropped[0]] if len(dropped) == 1 else 3 * sum(map(alone.__getitem__, dropped))
    assert [len(dropped) for dropped in found] == [1] * 11 + [2, 3, 4, 6, 9, 11]
    costs = {one.block: one.damage for one in damages_in_turn(blocks(names), worth, found)}
    # The first was measured alone, so the second takes what both miss.
    assert costs["block0"] == pytest.approx(0.1)
    assert costs["block1"] == pytest.approx(3 * 0.3 - 0.1)
    assert [costs[name] for name in names[2:]] == pytest.approx([3 * alone[name] for name in names[2:]])


def test_blocks_that_cost_nothing_alone_share_alike() -> None:
    names = "abcdef"
    worth = dict.fromkeys(names, 9.0)
    found = {(name,): 0.0 for name in names}
    found |= {tuple(names[:count]): total for count, total in {2: 0.0, 3: 0.0, 4: 0.0, 6: 0.8}.items()}
    costs = {one.block: one.damage for one in damages_in_turn(blocks(names), worth, found)}
    assert costs == pytest.approx({"a": 0, "b": 0, "c": 0, "d": 0, "e": 0.4, "f": 0.4})


def damages(worth: Mapping[str, float], found: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    return {one.block: one.damage for one in damages_in_turn(blocks("abc"), worth, found)}


def test_blocks_are_dropped_alone_and_then_the_cheapest_together() -> None:
    found = measured(WORTH, {"a": 0.3, "b": 0.1, "c": 0.2, "bc": 0.4, "bca": 0.45})
    # a adds less to the others than it costs alone.
    assert damages(WORTH, found) == {"b": 0.1, "c": pytest.approx(0.3), "a": 0.3}


def test_once_everything_is_lost_the_rest_costs_as_much_as_the_last() -> None:
    found = measured(WORTH, {"a": 0.3, "b": 0.1, "c": 0.2, "bc": 1.4})
    assert damages(WORTH, found) == {"b": 0.1, "c": pytest.approx(1.3), "a": pytest.approx(1.3)}


def test_a_block_that_no_plan_would_drop_is_not_dropped_with_others() -> None:
    worth = {**WORTH, "a": 0.2}
    found = measured(worth, {"a": 0.7, "b": 0.1, "c": 0.2, "bc": 0.6})
    assert damages(worth, found) == {"b": 0.1, "c": pytest.approx(0.5), "a": 0.7}
    # It never costs less than the last of those that plans may drop.
    found = measured(worth, {"a": 0.3, "b": 0.1, "c": 0.2, "bc": 0.6})
    assert damages(worth, found)["a"] == pytest.approx(0.5)
    nothing = dict.fromkeys("abc", 0.0)
    found = measured(nothing, {"a": 0.3, "b": 0.1, "c": 0.2})
    assert damages(nothing, found) == {"a": 0.3, "b": 0.1, "c": 0.2}


def test_what_was_measured_is_not_measured_again() -> None:
    whole = measured(WORTH, {"a": 0.3, "b": 0.1, "c": 0.2, "bc": 0.4, "bca": 0.45})
    for count in range(len(whole) + 1):
        known = dict(list(whole.items())[:count])
        again = dict(known)
        for dropped in blocks_to_drop(blocks("abc"), "abc", WORTH, again, 1.0):
            assert dropped not in known
            again[dropped] = whole[dropped]
        assert again == whole


def test_of_very_many_blocks_some_of_each_shape_are_dropped_alone() -> None:
    few = {**blocks(["a", "b"]), **blocks(["x"], macs=7)}
    assert blocks_alone(few, MOST) == ("a", "b", "x")
    # Attention and feed-forward take turns, as in a transformer; one block in front has a shape of its own.
    wide, narrow = blocks([f"wide{i}" for i in range(50)]), blocks([f"narrow{i}" for i in range(50)], macs=7)
    many = blocks(["front"], macs=5) | {
        name: kind[name] for i in range(50) for name, kind in ((f"wide{i}", wide), (f"narrow{i}", narrow))
    }
    alone = blocks_alone(many, MOST)
    assert 24 <= len(alone) <= 27
    assert alone == tuple(name for name in many if name in alone)
    assert {"front", "wide0", "wide49", "narrow0", "narrow49"} <= set(alone)
    # A hundred more take few more measurements: ever more are dropped at once.
    more = many | blocks([f"more{i}" for i in range(100)])
    assert most_drops(more, MOST) - most_drops(many, MOST) <= 4


def test_a_block_that_was_not_dropped_alone_costs_as_much_as_its_costlier_neighbour() -> None:
    names = [f"block{i}" for i in range(60)]
    many = blocks(names)
    found: dict[tuple[str, ...], float] = {}
    # Alone they cost more towards the end; no plan would drop any, so nothing is dropped together.
    for dropped in blocks_to_drop(many, blocks_alone(many, MOST), dict.fromkeys(names, 0.0), found, 1e9):
        found[dropped] = 1.0 + names.index(dropped[0])
    assert tuple(name for (name,) in found) == blocks_alone(many, MOST)
    costs = [one.damage for one in damages_in_turn(many, dict.fromkeys(names, 0.0), found)]
    for index, (name, cost) in enumerate(zip(names, costs, strict=True)):
        assert cost == found.get((name,), cost)
        # Never less than the truth, and never more than the next one measured.
        assert index + 1 <= cost <= min(found[other,] for (other,) in found if names.index(other) >= index)


def test_blocks_that_were_not_dropped_alone_are_dropped_with_others() -> None:
    names = [f"block{i}" for i in range(60)]
    many, worth = blocks(names), dict.fromkeys(names, 9.0)
    found: dict[tuple[str, ...], float] = {}
    for dropped in blocks_to_drop(many, blocks_alone(many, MOST), worth, found, 1e9):
        found[dropped] = 0.5 * len(dropped)
    assert max(len(dropped) for dropped in found) == 60
    costs = [one.damage for one in damages_in_turn(many, worth, found)]
    assert costs == pytest.approx([0.5] * 60)
