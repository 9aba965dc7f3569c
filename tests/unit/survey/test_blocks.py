# SPDX-License-Identifier: Apache-2.0
"""The samples that damages of blocks are measured on."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from seams import blocks_to_drop, damages_in_turn
from slimrank.calibrate import Feed, open_feed


class Loader:
    """Batches of numbered samples, and how often they were read."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.batches = torch.arange(sum(sizes), dtype=torch.float32)[:, None].split(list(sizes))
        self.passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return iter(self.batches)


def feed_of(loader: Loader, *, can_split: bool = True) -> Feed:
    return open_feed(
        loader, None, nn.Linear(1, 1), can_split=can_split, output_elements=4, holdout=0.2, seed=0
    )


def numbers(feed: Feed, indices: Sequence[int]) -> list[int]:
    return [int(x) for batch in feed.stream(indices) for x in batch.args[0][:, 0]]  # type: ignore[index]


@pytest.mark.parametrize("n_fit", [5, 16, 40, 1000])
def test_some_samples_stay_on_their_side(n_fit: int) -> None:
    loader = Loader([30, 7, 13, 30])
    whole = feed_of(loader)
    loader.passes = 0
    part = part_of(whole, n_fit)
    fit, held_out = numbers(part, part.fit), numbers(part, part.held_out)
    assert loader.passes == 1
    assert len(fit) == min(n_fit, 64)
    assert len(held_out) == max(1, round(len(fit) / 4))
    assert set(fit) <= set(whole.fit)
    assert set(held_out) <= set(whole.held_out)
    assert fit == sorted(fit)


def test_some_batches_that_cannot_be_cut() -> None:
    whole = feed_of(Loader([3] * 20), can_split=False)
    part = part_of(whole, 8)
    assert (len(part.fit), len(part.held_out)) == (8, 2)
    assert [batch.is_whole for batch in part.stream(part.fit)] == [True] * 8
    assert {number // 3 for number in numbers(part, part.held_out)} <= set(whole.held_out)


def test_the_only_sample_serves_both() -> None:
    part = part_of(feed_of(Loader([1])), 8)
    assert (part.fit, part.held_out) == ((0,), (0,))


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
