# SPDX-License-Identifier: Apache-2.0
"""How many samples are held alive at each depth, and which batches these are."""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor, nn

import seams
from seams import choose_alive
from slimrank.calibrate import Feed, open_feed
from slimrank.fitting import AliveBatches

# Bytes of what may be alive.
MOST = 1_000_000


def feed(batches: Sequence[Tensor], *, can_split: bool = True) -> Feed:
    return open_feed(
        batches, None, nn.Linear(1, 1), can_split=can_split, output_elements=4, holdout=0.2, seed=0
    )


def numbered(n_samples: int, batch: int = 16) -> list[Tensor]:
    """(batch, 1) each: the number of the sample."""
    return list(torch.arange(n_samples, dtype=torch.float32)[:, None].split(batch))


def chosen(
    monkeypatch: pytest.MonkeyPatch, source: Feed, limits: Sequence[int], fitted: Sequence[int] | None = None
) -> tuple[dict[str, AliveBatches], list[str]]:
    """Of layers at which so many samples may be alive, all or some of them fitted; and what is told."""
    seams.limit_alive(monkeypatch, n_bytes=MOST)
    layers = [str(index) for index in range(len(limits))]
    paused = {name: MOST // limit for name, limit in zip(layers, limits, strict=True)}
    names = layers if fitted is None else [str(index) for index in fitted]
    alive, notes = choose_alive(source, layers, names, paused)
    return alive, [note.text for note in notes]


def samples(alive: AliveBatches) -> tuple[list[int], list[int]]:
    """Those that a layer is fitted to, and the held-out ones."""
    tensors = [batch.args[0] for batch in alive.batches]
    numbers = [[int(row[0]) for row in tensor] for tensor in tensors if isinstance(tensor, Tensor)]
    n_fit = alive.n_fit_batches
    fit, held_out = (list(chain(*part)) for part in (numbers[:n_fit], numbers[n_fit:]))
    assert alive.n_fit_samples == len(fit)
    assert alive.n_samples == len(fit) + len(held_out)
    return fit, held_out


def sizes(alive: Mapping[str, AliveBatches]) -> list[int]:
    return [found.n_samples for found in alive.values()]


def test_all_samples_live_where_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feed(numbered(100))
    alive, told = chosen(monkeypatch, source, [100, 200])
    assert [samples(found) for found in alive.values()] == [(list(source.fit), list(source.held_out))] * 2
    assert told == []


def test_what_is_given_up_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feed(numbered(200))
    alive, (told,) = chosen(monkeypatch, source, [250, 100, 250, 50, 100])
    fit, held_out = zip(*(samples(found) for found in alive.values()), strict=True)
    assert [len(part) for part in fit] == [160, 80, 80, 40, 40]
    assert [len(part) for part in held_out] == [40, 20, 20, 10, 10]
    for parts in (fit, held_out):
        assert all({*later} <= {*earlier} for earlier, later in pairwise(parts))
    assert not {*fit[0]} & {*held_out[0]}
    # One order for all layers.
    order = {batch: index for index, batch in enumerate(alive["0"].batches)}
    indices = [[order[batch] for batch in found.batches] for found in alive.values()]
    assert all(part == sorted(part) for part in indices)
    assert told.startswith("layers were fitted to 160, later 40, of 160 samples")


def test_few_numbers_of_samples_and_never_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, _ = chosen(monkeypatch, feed(numbered(200)), [180, 179, 160, 101, 100, 99, 60, 58])
    assert sizes(alive) == [160, 160, 160, 99, 99, 99, 58, 58]


def test_samples_stay_evenly_spaced_however_often_some_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, _ = chosen(monkeypatch, feed(numbered(640)), [int(600 / 1.16**level) for level in range(20)])
    fit, _ = samples(alive["19"])
    per_quarter = [sum(number // 160 == quarter for number in fit) for quarter in range(4)]
    assert len(fit) == 28
    assert max(per_quarter) - min(per_quarter) <= 2


def test_a_fit_to_too_few_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, (told,) = chosen(monkeypatch, feed(numbered(200)), [3])
    assert sizes(alive) == [32]
    assert told.startswith("layers were fitted to 26 of 160 samples")


def test_only_what_fitted_layers_need_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere, _ = chosen(monkeypatch, feed(numbered(200)), [200, 100, 50])
    late, (told,) = chosen(monkeypatch, feed(numbered(200)), [200, 100, 50], fitted=[1, 2])
    assert {name: samples(found) for name, found in late.items()} == {
        name: samples(everywhere[name]) for name in "12"
    }
    assert told.startswith("layers were fitted to 80, later 40, of 160 samples")
    assert chosen(monkeypatch, feed(numbered(200)), [200, 100, 50], fitted=[0])[1] == []


def test_without_fitted_layers_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = feed(numbered(50))
    monkeypatch.setattr(Feed, "stream_parts", None)
    assert chosen(monkeypatch, source, [50, 40], fitted=[]) == ({}, [])
    assert chosen(monkeypatch, source, []) == ({}, [])


def test_batches_that_cannot_be_cut_are_given_up_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, _ = chosen(monkeypatch, feed(numbered(50, batch=1), can_split=False), [60, 40])
    assert sizes(alive) == [50, 40]
    assert all(batch.is_whole for batch in alive["0"].batches)


def test_a_single_sample_is_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, _ = chosen(monkeypatch, feed(numbered(1)), [50])
    fitted_to, held_out = alive["0"].batches
    assert fitted_to is not held_out
    assert alive["0"].n_fit_batches == 1


def test_batches_that_cannot_be_joined_are_given_up_in_larger_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Texts of several lengths: 28 batches, of which each set of samples takes a part.
    texts = [torch.zeros(8, 2 + index % 14) for index in range(28)]
    limits = [200, 170, 140, 120, 100, 80, 65, 50]
    alive, _ = chosen(monkeypatch, feed(texts), limits)
    assert len(alive["0"].batches) <= 64
    assert alive["7"].n_samples == 50
    assert len({*sizes(alive)}) < len({*sizes(chosen(monkeypatch, feed(numbered(224)), limits)[0])})
