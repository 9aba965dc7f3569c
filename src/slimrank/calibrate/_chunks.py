# SPDX-License-Identifier: Apache-2.0
"""Moments of many layers, a few at a time: as many as fit into memory together."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from slimrank.calibrate._feed import Feed
from slimrank.calibrate._moments import collect_moments
from slimrank.cost import moment_bytes
from slimrank.linalg import Moments
from slimrank.records import LayerSpec

Collecting = Callable[[], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some of the things that are measured, and the moments that they need.

    Attributes:
        indices: of the things, in the order in which they were given.
        moments: by layer name; layers that were never called are left out. Whoever is done with one may take
            it out, to free its memory; all are gone when the next chunk is asked for.
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
) -> Iterator[Chunk]:
    """Moments of the inputs of layers, in as few passes over the fit samples as memory allows.

    Where the chunks are cut changes no moment: rows are drawn per layer.

    Args:
        model: a private copy in eval mode.
        feed: the samples.
        needs: what is measured, by an index of the caller's: the layers it needs, by their index in the
            study. A layer may serve several.
        seed: of the rows drawn.
        max_bytes: moments held at once; a thing that needs more alone has a chunk of its own.
        collecting: opened around each pass; gives a function that is told the samples of every micro-batch
            done.

    Yields:
        Everything in ``needs`` once, in the same order. Where a chunk needs no layer, no pass is made.
    """
    for indices in _chunks(needs, max_bytes):
        layers = {layer: spec for index in indices for layer, spec in needs[index].items()}
        moments: dict[str, Moments] = {}
        if layers:
            with collecting() as advance:
                in_order = dict(sorted(layers.items()))
                moments |= collect_moments(model, feed, in_order, seed=seed, advance=advance)
        yield Chunk(indices=indices, moments=moments)
        # The caller's loop still holds the chunk while the next pass runs: two would not fit.
        moments.clear()


def _chunks(needs: Mapping[int, Mapping[int, LayerSpec]], max_bytes: int) -> Iterator[tuple[int, ...]]:
    """Indices whose moments fit into memory together; at least one."""
    chunk: list[int] = []
    held: dict[int, int] = {}
    for index, layers in needs.items():
        added = {layer: moment_bytes(spec) for layer, spec in layers.items()}
        if chunk and sum((held | added).values()) > max_bytes:
            yield tuple(chunk)
            chunk, held = [], {}
        chunk.append(index)
        held |= added
    if chunk:
        yield tuple(chunk)
