# SPDX-License-Identifier: Apache-2.0
"""The batches that are held alive in both networks while layers are fitted."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from slimrank.calibrate import Feed, evenly_spaced
from slimrank.cost import SAMPLING, bytes_text
from slimrank.forward import Batch
from slimrank.records import Note

# Fitted to so many samples even where their activations exceed the memory budget: a fit to fewer says little.
_MIN_SAMPLES = 32
# Each forward is a thread in each network, and a thread costs memory. The note below says 64.
_MAX_FORWARDS = 64
# Micro-batches of the study per forward. Without a backward pass a forward may hold more samples, and fewer
# threads need less memory; a larger forward is alive at once with all it holds.
_FORWARDS_PER_MICRO = 4
# Samples of a forward above which micro-batches are left as they are: larger tensors leave the cache.
_ENOUGH_SAMPLES = 128
# Samples are given up in steps of this factor at least, so that forwards stay few and large; in larger ones
# where batches cannot be joined, so that there would be too many all the same.
_STEP, _LARGER_STEPS = 1.15, (1.5, 2.0, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AliveBatches:
    """Batches that reach a layer.

    Attributes:
        batches: one forward each, none of them twice: the first are fitted to, the others are held out.
        n_fit_batches: how many of them are fitted to.
        n_fit_samples: samples in these.
        n_samples: samples in all of them.
    """

    batches: Sequence[Batch]
    n_fit_batches: int
    n_fit_samples: int
    n_samples: int


def forward_size(feed: Feed) -> int:
    """Samples per forward at most, while layers are fitted; 0 where batches cannot be cut."""
    return max(feed.micro_size, min(_FORWARDS_PER_MICRO * feed.micro_size, _ENOUGH_SAMPLES))


def choose_alive(
    feed: Feed, layers: Sequence[str], fitted: Collection[str], paused: Mapping[str, int]
) -> tuple[dict[str, AliveBatches], tuple[Note, ...]]:
    """Chooses how many samples can be held alive at each depth of both networks.

    What is given up does not come back, so a layer has as many as the ones before it, or fewer. The share of
    held-out samples is kept. Which layers are fitted matters to the others only where batches cannot be
    joined.

    Args:
        feed: the samples.
        layers: names in execution order.
        fitted: those of them that batches are asked for.
        paused: bytes of one sample that are alive in both networks at a layer.

    Returns:
        The batches of each fitted layer, in execution order, and what the user should know.
    """
    most = min(feed.n_samples, _MAX_FORWARDS * max(feed.micro_size, 1))
    limits = [max(_MIN_SAMPLES, SAMPLING.live_activations // max(paused.get(name, 0), 1)) for name in layers]
    for step in (_STEP, *_LARGER_STEPS):
        counts = dict(zip(layers, _in_steps(limits, most, step), strict=True))
        alive = _batches_of(feed, counts, fitted)
        if max((len(found.batches) for found in alive.values()), default=0) <= _MAX_FORWARDS:
            break
    n_fit = [found.n_fit_samples for found in alive.values()]
    notes = (_note_of_fewer(n_fit, len(feed.fit)),) if n_fit and n_fit[-1] < len(feed.fit) else ()
    return alive, notes


def _in_steps(limits: Sequence[int], most: int, step: float) -> list[int]:
    """Samples at each layer: no more than at the one before, and few different numbers."""
    fewest_so_far = [min(limit, most) for limit in accumulate(limits, min)]
    levels: list[int] = []
    for count in sorted({*fewest_so_far}):
        if not levels or count >= step * levels[-1]:
            levels.append(count)
    return [levels[bisect_right(levels, count) - 1] for count in fewest_so_far]


def _batches_of(feed: Feed, counts: Mapping[str, int], fitted: Collection[str]) -> dict[str, AliveBatches]:
    """Batches of so many samples at each layer, for those that are fitted."""
    levels = sorted({*counts.values()})
    n_fit = [max(1, round(level * len(feed.fit) / feed.n_samples)) for level in levels]
    n_held_out = [max(1, level - n) for level, n in zip(levels, n_fit, strict=True)]
    # What no fitted layer needs is not read.
    n_levels = bisect_right(levels, max((counts[name] for name in counts if name in fitted), default=0))
    parts = [*_shells(feed.fit, n_fit)[:n_levels], *_shells(feed.held_out, n_held_out)[:n_levels]]
    batches: list[list[Batch]] = [[] for _ in parts]
    if parts:
        for part, batch in replace(feed, micro_size=forward_size(feed)).stream_parts(parts):
            # A single sample serves both fit and hold-out, as two batches.
            batches[part].append(replace(batch))
    by_level = {
        level: _joined(batches[: index + 1], batches[n_levels : n_levels + index + 1])
        for index, level in enumerate(levels[:n_levels])
    }
    return {name: by_level[count] for name, count in counts.items() if name in fitted}


def _shells(indices: Sequence[int], counts: Sequence[int]) -> list[Sequence[int]]:
    """The fewest of the indices, then what comes to them with each further count."""
    chosen = [evenly_spaced(indices, count) for count in counts[-1:]]
    for count in reversed(counts[:-1]):
        chosen.insert(0, _from_the_middle(chosen[0], count))
    more = [sorted({*following} - {*fewer}) for fewer, following in pairwise(chosen)]
    return [*chosen[:1], *more]


def _from_the_middle(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """At most ``count`` of the indices, each from the middle of as many.

    Unlike ``evenly_spaced`` it does not draw towards the first ones where it is repeated.
    """
    if count >= len(indices):
        return tuple(indices)
    return tuple(indices[(2 * number + 1) * len(indices) // (2 * count)] for number in range(count))


def _joined(fit: Iterable[Sequence[Batch]], held_out: Iterable[Sequence[Batch]]) -> AliveBatches:
    fitted_to = [batch for part in fit for batch in part]
    others = [batch for part in held_out for batch in part]
    n_fit_samples = sum(batch.n_samples for batch in fitted_to)
    return AliveBatches(
        batches=(*fitted_to, *others),
        n_fit_batches=len(fitted_to),
        n_fit_samples=n_fit_samples,
        n_samples=n_fit_samples + sum(batch.n_samples for batch in others),
    )


def _note_of_fewer(n_fit: Sequence[int], n_all: int) -> Note:
    """That layers are fitted to some of the samples."""
    counts = f"{n_fit[0]}" if n_fit[0] == n_fit[-1] else f"{n_fit[0]}, later {n_fit[-1]},"
    return Note(
        where="apply",
        text=f"layers were fitted to {counts} of {n_all} samples, which keeps what is alive at one "
        f"depth below {bytes_text(SAMPLING.live_activations)} (estimated), and forwards below 64",
    )
