# SPDX-License-Identifier: Apache-2.0
"""How many samples are held alive at each depth, and which batches these are."""

from collections.abc import Sequence
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor, nn

import seams
from seams import BatchLives, choose_lives
from slimrank.calibrate import Feed, open_feed

# Bytes of one sample that many of which fill what may be alive.
ALL = 1_000_000


def feed(n_samples: int, *, batch: int = 16, can_split: bool = True) -> Feed:
    samples = torch.arange(n_samples, dtype=torch.float32)[:, None]
    return open_feed(
        list(samples.split(batch)), None, nn.Linear(1, 1), can_split=can_split, output_elements=4,
        holdout=0.2, seed=0,
    )  # fmt: skip


def lives_of(
    monkeypatch: pytest.MonkeyPatch, source: Feed, limits: Sequence[int]
) -> tuple[BatchLives, list[str], list[str]]:
    """Of layers that so many samples may be alive at; the layers, and what is told."""
    seams.limit_alive(monkeypatch, n_bytes=ALL)
    layers = [f"layer{index}" for index in range(len(limits))]
    lives, notes = choose_lives(
        source, layers, {name: ALL // limit for name, limit in zip(layers, limits, strict=True)}
    )
    return lives, layers, [note.text for note in notes]


def samples(lives: BatchLives, name: str) -> tuple[list[int], list[int]]:
    """Those that a layer is fitted to, and the held-out ones."""
    live = lives.at[name]
    tensors = [batch.args[0] for batch in live.batches]
    numbers = [[int(number) for number in tensor] for tensor in tensors if isinstance(tensor, Tensor)]
    n_fit = live.n_fit_batches
    fit, held_out = (list(chain(*part)) for part in (numbers[:n_fit], numbers[n_fit:]))
    assert live.n_fit_samples == len(fit)
    assert live.n_samples == len(fit) + len(held_out)
    return fit, held_out


def test_all_samples_live_where_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feed(100)
    lives, (first, last), told = lives_of(monkeypatch, source, [100, 200])
    assert samples(lives, first) == samples(lives, last) == (list(source.fit), list(source.held_out))
    assert told == []


def test_what_is_given_up_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feed(200)
    lives, layers, (told,) = lives_of(monkeypatch, source, [250, 100, 250, 50, 100])
    fit, held_out = zip(*(samples(lives, name) for name in layers), strict=True)
    assert [len(part) for part in fit] == [160, 80, 80, 40, 40]
    assert [len(part) for part in held_out] == [40, 20, 20, 10, 10]
    for parts in (fit, held_out):
        assert all({*later} <= {*earlier} for earlier, later in pairwise(parts))
    assert not {*fit[0]} & {*held_out[0]}
    # What lives longest comes first among what is fitted to, and among the rest: one order for all layers.
    order = {batch: place for place, batch in enumerate(lives.all.batches)}
    places = [[order[batch] for batch in lives.at[name].batches] for name in layers]
    assert all(part == sorted(part) for part in places)
    assert told.startswith("layers were fitted to 160, later 40, of 160 samples")


def test_few_numbers_of_samples_and_never_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [180, 179, 160, 101, 100, 99, 60, 58]
    lives, layers, _ = lives_of(monkeypatch, feed(200), limits)
    counts = [lives.at[name].n_samples for name in layers]
    assert counts == [160, 160, 160, 99, 99, 99, 58, 58]


def test_a_fit_to_too_few_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lives, (name,), (told,) = lives_of(monkeypatch, feed(200), [3])
    assert lives.at[name].n_samples == 32
    assert told.startswith("layers were fitted to 26 of 160 samples")


def test_batches_that_cannot_be_cut_are_given_up_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lives, (first, last), _ = lives_of(monkeypatch, feed(50, batch=1, can_split=False), [60, 40])
    assert [lives.at[name].n_samples for name in (first, last)] == [50, 40]
    assert all(batch.is_whole for batch in lives.all.batches)


def test_without_layers_all_samples_start(monkeypatch: pytest.MonkeyPatch) -> None:
    lives, _, told = lives_of(monkeypatch, feed(50), [])
    assert lives.all.n_samples == 50
    assert told == []
