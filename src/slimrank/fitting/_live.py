# SPDX-License-Identifier: Apache-2.0
"""The batches that are held alive in both networks while layers are fitted."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from slimrank.calibrate import Feed, evenly_spaced
from slimrank.cost import SAMPLING, bytes_text
from slimrank.forward import Batch
from slimrank.records import Note

# Fitted to so many samples even where their activations exceed the memory budget: a fit to fewer says little.
_MIN_LIVE_SAMPLES = 32
# Each forward is a thread in each network, and a thread costs memory. The note below says 64.
_MAX_FORWARDS = 64
# Micro-batches of the study per forward. Without a backward pass a forward may hold more samples, and fewer
# threads need less memory; a larger forward is alive at once with all it holds.
_FORWARDS_PER_MICRO = 4
# Samples of a forward above which micro-batches are left as they are: larger tensors leave the cache.
_ENOUGH_SAMPLES = 128
# Samples are given up in steps of this factor at least, so that forwards stay few and large.
_STEP = 1.15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveBatches:
    """Batches that reach a layer.

    Attributes:
        batches: one forward each: the first are fitted to, the others are held out.
        n_fit_batches: how many of them are fitted to.
        n_fit_samples: samples in these.
        n_samples: samples in all of them.
    """

    batches: Sequence[Batch]
    n_fit_batches: int
    n_fit_samples: int
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLives:
    """How far each batch is run.

    Attributes:
        all: those that start.
        at: those that reach a layer, by its name.
    """

    all: LiveBatches
    at: Mapping[str, LiveBatches]


def forward_size(feed: Feed) -> int:
    """Samples per forward at most, while layers are fitted; 0 where batches cannot be cut."""
    return max(feed.micro_size, min(_FORWARDS_PER_MICRO * feed.micro_size, _ENOUGH_SAMPLES))


def choose_lives(
    feed: Feed, layers: Sequence[str], paused: Mapping[str, int]
) -> tuple[BatchLives, tuple[Note, ...]]:
    """Chooses how many samples can be held alive at each depth of both networks.

    What is given up does not come back, so a layer has as many as the ones before it, or fewer. The share of
    held-out samples is kept.

    Args:
        feed: the samples.
        layers: names in execution order, whether they are fitted or not.
        paused: bytes of one sample that are alive in both networks at a layer.

    Returns:
        The batches, and what the user should know.
    """
    most = min(feed.n_samples, _MAX_FORWARDS * max(feed.micro_size, 1))
    limits = [
        max(_MIN_LIVE_SAMPLES, SAMPLING.live_activations // max(paused.get(name, 0), 1)) for name in layers
    ]
    counts = dict(zip(layers, _in_steps(limits, most), strict=True))
    # The fewest are a part of those at the layers before, and so on.
    levels = sorted({*counts.values()} or {most})
    fit_counts = [max(1, round(level * len(feed.fit) / feed.n_samples)) for level in levels]
    held_out_counts = [max(1, level - n_fit) for level, n_fit in zip(levels, fit_counts, strict=True)]
    parts = [*_shells(feed.fit, fit_counts), *_shells(feed.held_out, held_out_counts)]
    batches: list[list[Batch]] = [[] for _ in parts]
    for part, batch in replace(feed, micro_size=forward_size(feed)).stream_parts(parts):
        batches[part].append(batch)
    n_levels = len(levels)
    live = {
        level: _joined(batches[: index + 1], batches[n_levels : n_levels + index + 1])
        for index, level in enumerate(levels)
    }
    lives = BatchLives(all=live[levels[-1]], at={name: live[count] for name, count in counts.items()})
    notes = () if levels[0] == feed.n_samples else (_fewer(fit_counts, len(feed.fit)),)
    return lives, notes


def _in_steps(limits: Sequence[int], most: int) -> list[int]:
    """Samples at each layer: no more than at the one before, and few different numbers."""
    fewest_so_far = [min(limit, most) for limit in accumulate(limits, min)]
    levels: list[int] = []
    for count in sorted({*fewest_so_far}):
        if not levels or count >= _STEP * levels[-1]:
            levels.append(count)
    return [levels[bisect_right(levels, count) - 1] for count in fewest_so_far]


def _shells(indices: Sequence[int], counts: Sequence[int]) -> Iterable[Sequence[int]]:
    """The fewest of the indices, then what comes to them with each further count."""
    chosen = [evenly_spaced(indices, counts[-1])]
    for count in reversed(counts[:-1]):
        chosen.insert(0, evenly_spaced(chosen[0], count))
    yield chosen[0]
    for fewer, more in pairwise(chosen):
        yield sorted({*more} - {*fewer})


def _joined(fit: Sequence[Sequence[Batch]], held_out: Sequence[Sequence[Batch]]) -> LiveBatches:
    fitted_to = [batch for part in fit for batch in part]
    others = [batch for part in held_out for batch in part]
    n_fit_samples = sum(batch.n_samples for batch in fitted_to)
    return LiveBatches(
        batches=(*fitted_to, *others),
        n_fit_batches=len(fitted_to),
        n_fit_samples=n_fit_samples,
        n_samples=n_fit_samples + sum(batch.n_samples for batch in others),
    )


def _fewer(n_fit: Sequence[int], n_all: int) -> Note:
    """That layers are fitted to some of the samples."""
    counts = f"{n_fit[0]}" if len(n_fit) == 1 else f"{n_fit[-1]}, later {n_fit[0]},"
    return Note(
        where="apply",
        text=f"layers were fitted to {counts} of {n_all} samples, which keeps what is alive at one "
        f"depth below {bytes_text(SAMPLING.live_activations)} (estimated), and forwards below 64",
    )
