# SPDX-License-Identifier: Apache-2.0
"""Which blocks are measured together, and what their damages become."""

from collections.abc import Mapping

import pytest

from seams import blocks_to_drop, damages_in_turn

WORTH = dict.fromkeys("abc", 1.0)


def measured(
    worth: Mapping[str, float], costs: Mapping[str, float], limit: float = 1.0
) -> dict[tuple[str, ...], float]:
    """What is measured of blocks whose costs are known, "ab" for a and b together."""
    found: dict[tuple[str, ...], float] = {}
    for dropped in blocks_to_drop("abc", worth, found, limit):
        found[dropped] = costs["".join(dropped)]
    assert ["".join(dropped) for dropped in found] == list(costs)
    return found


def damages(worth: Mapping[str, float], found: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    return {one.block: one.damage for one in damages_in_turn("abc", worth, found)}


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
        for dropped in blocks_to_drop("abc", WORTH, again, 1.0):
            assert dropped not in known
            again[dropped] = whole[dropped]
        assert again == whole
