# SPDX-License-Identifier: Apache-2.0
"""A few samples of a feed."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from slimrank.calibrate import Feed, open_feed, part_of


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
