# SPDX-License-Identifier: Apache-2.0
"""The samples that damages of blocks are measured on."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from seams import blocks_to_drop, damages_in_turn, some_samples_of
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
    part = some_samples_of(whole, n_fit)
    fit, held_out = numbers(part, part.fit), numbers(part, part.held_out)
    assert loader.passes == 1
    assert len(fit) == min(n_fit, 64)
    assert len(held_out) == max(1, round(len(fit) / 4))
    assert set(fit) <= set(whole.fit)
    assert set(held_out) <= set(whole.held_out)
    assert fit == sorted(fit)


def test_some_batches_that_cannot_be_cut() -> None:
    whole = feed_of(Loader([3] * 20), can_split=False)
    part = some_samples_of(whole, 8)
    assert (len(part.fit), len(part.held_out)) == (8, 2)
    assert [batch.is_whole for batch in part.stream(part.fit)] == [True] * 8
    assert {number // 3 for number in numbers(part, part.held_out)} <= set(whole.held_out)


def test_the_only_sample_serves_both() -> None:
    part = some_samples_of(feed_of(Loader([1])), 8)
    assert (part.fit, part.held_out) == ((0,), (0,))


def test_blocks_are_dropped_alone_and_then_the_cheapest_together() -> None:
    measured: list[float] = []
    values = iter([0.3, 0.1, 0.2, 0.4, 0.45])
    seen = []
    for dropped in blocks_to_drop("abc", measured, 1.0):
        seen.append("".join(dropped))
        measured.append(next(values))
    assert seen == ["a", "b", "c", "bc", "bca"]
    found = {one.block: one.damage for one in damages_in_turn("abc", measured)}
    # a adds less to the others than it costs alone.
    assert found == {"b": 0.1, "c": pytest.approx(0.3), "a": 0.3}


def test_once_everything_is_lost_the_rest_costs_as_much_as_the_last() -> None:
    measured = [0.3, 0.1, 0.2, 1.4]
    assert not list(blocks_to_drop("abc", measured, 1.0))
    found = {one.block: one.damage for one in damages_in_turn("abc", measured)}
    assert found == {"b": 0.1, "c": pytest.approx(1.3), "a": pytest.approx(1.3)}
    assert [one.block for one in damages_in_turn("a", [2.0])] == ["a"]
