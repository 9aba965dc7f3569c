# SPDX-License-Identifier: Apache-2.0
"""The samples that damages of blocks are measured on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from seams import BlockTrial, block_trials, damages_in_turn, some_samples_of
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


def _tried(worth: Mapping[str, float], costs: Mapping[str, float], limit: float) -> dict[BlockTrial, float]:
    """What is tried of blocks whose costs are known: "a" as it is, "a*" and "ab*" with fits behind them."""
    tried: dict[BlockTrial, float] = {}
    for trial in block_trials("abc", worth, tried, limit):
        tried[trial] = costs["".join(trial.dropped) + "*" * trial.is_fitted]
    return tried


def _names(tried: Iterable[BlockTrial]) -> list[str]:
    return ["".join(trial.dropped) + "*" * trial.is_fitted for trial in tried]


WORTH = dict.fromkeys("abc", 1.0)
AS_THEY_ARE = dict.fromkeys("abc", 2.0)


def test_blocks_are_dropped_alone_and_then_the_cheapest_together() -> None:
    costs = {**AS_THEY_ARE, "a*": 0.3, "b*": 0.1, "c*": 0.2, "bc*": 0.4, "bca*": 0.45}
    tried = _tried(WORTH, costs, 1.0)
    assert _names(tried) == list(costs)
    found = {one.block: one.damage for one in damages_in_turn("abc", WORTH, tried)}
    # a adds less to the others than it costs alone.
    assert found == {"b": 0.1, "c": pytest.approx(0.3), "a": 0.3}


def test_once_everything_is_lost_the_rest_costs_as_much_as_the_last() -> None:
    costs = {**AS_THEY_ARE, "a*": 0.3, "b*": 0.1, "c*": 0.2, "bc*": 1.4}
    tried = _tried(WORTH, costs, 1.0)
    assert _names(tried) == list(costs)
    found = {one.block: one.damage for one in damages_in_turn("abc", WORTH, tried)}
    assert found == {"b": 0.1, "c": pytest.approx(1.3), "a": pytest.approx(1.3)}


def test_a_block_that_no_plan_would_drop_costs_what_it_costs_without_fits() -> None:
    tried = _tried({**WORTH, "a": 0.01}, {**AS_THEY_ARE, "b*": 0.1, "c*": 0.2, "bc*": 0.5}, 1.0)
    found = {one.block: one.damage for one in damages_in_turn("abc", {**WORTH, "a": 0.01}, tried)}
    assert found == {"b": 0.1, "c": pytest.approx(0.4), "a": 2.0}


def test_a_block_that_costs_more_than_it_is_worth_is_not_dropped_with_others() -> None:
    tried = _tried({**WORTH, "a": 0.2}, {**AS_THEY_ARE, "a*": 0.3, "b*": 0.1, "c*": 0.2, "bc*": 0.6}, 1.0)
    found = {one.block: one.damage for one in damages_in_turn("abc", {**WORTH, "a": 0.2}, tried)}
    assert found == {"b": 0.1, "c": pytest.approx(0.5), "a": pytest.approx(0.5)}


def test_what_was_tried_is_not_tried_again() -> None:
    costs = {**AS_THEY_ARE, "a*": 0.3, "b*": 0.1, "c*": 0.2, "bc*": 0.4, "bca*": 0.45}
    tried = _tried(WORTH, costs, 1.0)
    for count in range(len(tried) + 1):
        known = dict(list(tried.items())[:count])
        again = dict(known)
        for trial in block_trials("abc", WORTH, again, 1.0):
            assert trial not in known
            again[trial] = tried[trial]
        assert again == tried
