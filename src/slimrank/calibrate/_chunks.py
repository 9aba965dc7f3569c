# SPDX-License-Identifier: Apache-2.0
"""Moments of many layers, a few at a time: as many as fit into memory together."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from slimrank.calibrate._feed import Feed
from slimrank.calibrate._moments import collect_moments, states_name
from slimrank.cost import moment_bytes
from slimrank.linalg import Moments
from slimrank.records import LayerSpec

# Opened around each pass over the samples; gives a function to call with numbers of samples that are done.
Collecting = Callable[[], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some of the layers or groups that are measured, and the moments that they need.

    Attributes:
        indices: keys of ``needs`` that this chunk serves, in the order in which they were given.
        moments: by layer name; layers that were never called are left out. Whoever no longer needs those of a
            layer may take them out, to free their memory; all are gone when the next chunk is asked for.
    """

    indices: tuple[int, ...]
    moments: dict[str, Moments]


def moment_chunks(
    model: nn.Module,
    feed: Feed,
    needs: Mapping[int, Mapping[int, LayerSpec]],
    *,
    seed: int,
    max_bytes: int,
    collecting: Collecting,
    known: Mapping[str, Moments] | None = None,
) -> Iterator[Chunk]:
    """Moments of the inputs of layers, in as few passes over the fit samples as memory allows.

    Where the chunks are cut changes no moment: rows are drawn per layer.

    Args:
        model: a private copy in eval mode.
        feed: the samples.
        needs: for each layer or group that is measured, by an index that the caller chose: the layers whose
            moments it needs, by their index in the study. Several may need the same layer.
        seed: of the rows drawn.
        max_bytes: memory of the moments held at once; what needs more than that gets a chunk for itself.
        collecting: opened around each pass; gives a function to call with the number of samples of every
            micro-batch that is done.
        known: moments that were gathered before, by layer name: these layers need no pass.

    Yields:
        Everything in ``needs`` once, in the same order. Where a chunk needs no layer, no pass is made.
    """
    known = known or {}
    for indices in _chunks(_without(needs, known), max_bytes):
        layers = {number: spec for index in indices for number, spec in needs[index].items()}
        names = {spec.name for spec in layers.values()}
        moments = {name: known[name] for name in known if name in names or states_name(name) in names}
        layers = {number: spec for number, spec in layers.items() if spec.name not in known}
        if layers:
            with collecting() as advance:
                by_index = dict(sorted(layers.items()))
                moments |= collect_moments(model, feed, by_index, seed=seed, advance=advance)
        yield Chunk(indices=indices, moments=moments)
        # The caller's loop still holds the chunk while the next pass runs: two would not fit.
        moments.clear()


def count_passes(needs: Mapping[int, Mapping[int, LayerSpec]], max_bytes: int) -> int:
    """Passes over the samples that ``moment_chunks`` makes where nothing was gathered before."""
    chunks = _chunks(needs, max_bytes)
    return sum(1 for indices in chunks if any(needs[index] for index in indices))


def fit_together(layers: Iterable[LayerSpec], max_bytes: int) -> bool:
    """Whether the moments of these layers can be held at once."""
    return sum(moment_bytes(spec) for spec in layers) <= max_bytes


def _without(
    needs: Mapping[int, Mapping[int, LayerSpec]], known: Collection[str]
) -> dict[int, dict[int, LayerSpec]]:
    """What is left to gather."""
    return {
        index: {number: spec for number, spec in layers.items() if spec.name not in known}
        for index, layers in needs.items()
    }


def _chunks(needs: Mapping[int, Mapping[int, LayerSpec]], max_bytes: int) -> Iterator[tuple[int, ...]]:
    """Indices whose moments fit into memory together; at least one."""
    chunk: list[int] = []
    bytes_of: dict[int, int] = {}
    for index, layers in needs.items():
        bytes_needed = {number: moment_bytes(spec) for number, spec in layers.items()}
        # Joined by layer: what the chunk needs already is not counted twice.
        if chunk and sum((bytes_of | bytes_needed).values()) > max_bytes:
            yield tuple(chunk)
            chunk, bytes_of = [], {}
        chunk.append(index)
        bytes_of |= bytes_needed
    if chunk:
        yield tuple(chunk)
