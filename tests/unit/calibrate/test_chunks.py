# SPDX-License-Identifier: Apache-2.0
"""Moments of many layers in several passes: as many as memory asks for, and the same numbers as in one."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from slimrank.calibrate import Chunk, Feed, collect_moments, moment_chunks, open_feed
from slimrank.capture import describe_layers
from slimrank.cost import moment_bytes
from slimrank.records import Call, LayerSpec


class Chain:
    """Four layers of 4 to 16 columns, samples for them, and how many passes are made."""

    def __init__(self, rng: torch.Generator) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(4, 2))
        self.model.double().eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
        data = [torch.randn(5, 4, dtype=torch.float64, generator=rng) for _ in range(3)]
        self.feed: Feed = open_feed(
            data, None, self.model, can_split=True, output_elements=2, holdout=0.2, seed=0
        )
        call = Call(input_shape=(1,), output_shape=(1,))
        specs = (replace(spec, calls=(call,)) for spec in describe_layers(self.model))
        self.specs: Mapping[int, LayerSpec] = dict(enumerate(spec for spec in specs if spec.kind == "linear"))
        self.passes: list[int] = []

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Callable[[int], None]]:
        sizes: list[int] = []
        yield sizes.append
        self.passes.append(sum(sizes))

    def chunks(self, needs: Mapping[int, Mapping[int, LayerSpec]], max_bytes: int) -> Iterator[Chunk]:
        return moment_chunks(
            self.model, self.feed, needs, seed=0, max_bytes=max_bytes, collecting=self.collecting
        )


@pytest.fixture
def chain(rng: torch.Generator) -> Chain:
    return Chain(rng)


# The moments of the four layers take 128, 512, 2048 and 128 bytes.
@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (1, [(0,), (1,), (2,), (3,)]),
        (639, [(0,), (1,), (2,), (3,)]),
        (640, [(0, 1), (2,), (3,)]),
        (2688, [(0, 1, 2), (3,)]),
        (2816, [(0, 1, 2, 3)]),
    ],
)
def test_chunks_fill_the_memory_and_change_no_moment(
    chain: Chain, max_bytes: int, expected: list[tuple[int, ...]]
) -> None:
    whole = collect_moments(chain.model, chain.feed, chain.specs, seed=0, advance=lambda _n: None)
    needs = {index: {index: spec} for index, spec in chain.specs.items()}
    found = []
    for chunk in chain.chunks(needs, max_bytes):
        found.append(chunk.indices)
        assert chunk.moments.keys() == {chain.specs[index].name for index in chunk.indices}
        for name, moments in chunk.moments.items():
            assert torch.equal(moments.matrix, whole[name].matrix)  # type: ignore[arg-type]
            assert torch.equal(moments.mean, whole[name].mean)
    assert found == expected
    assert chain.passes == [len(chain.feed.fit)] * len(expected)


def test_a_layer_that_serves_several_counts_once(chain: Chain) -> None:
    wide, narrow = {2: chain.specs[2]}, {0: chain.specs[0]}
    (chunk,) = chain.chunks({7: wide, 8: wide | narrow, 9: narrow}, 2176)
    assert chunk.indices == (7, 8, 9)
    assert [found.indices for found in chain.chunks({7: wide, 8: wide | narrow}, 2175)] == [(7,), (8,)]


def test_no_pass_where_nothing_is_needed(chain: Chain) -> None:
    (chunk,) = chain.chunks({0: {}, 1: {}}, 1)
    assert (chunk.indices, chunk.moments) == ((0, 1), {})
    assert list(chain.chunks({}, 1)) == []
    assert chain.passes == []


def test_moments_are_gone_when_the_next_chunk_is_asked_for(chain: Chain) -> None:
    chunks = chain.chunks({index: {index: spec} for index, spec in chain.specs.items()}, 1)
    first = next(chunks)
    assert list(first.moments) == ["0"]
    next(chunks)
    assert first.moments == {}


def test_rows_that_are_kept_take_less_than_their_matrix(chain: Chain) -> None:
    wide = replace(chain.specs[0], weight_shape=(8, 10_000))
    assert moment_bytes(wide) == 4096 * 10_000 * 4
    assert moment_bytes(replace(wide, weight_shape=(8, 100))) == 100 * 100 * 8


def test_moments_of_groups_take_a_block_for_each(chain: Chain) -> None:
    spec = replace(chain.specs[0], kind="conv2d", weight_shape=(64, 4, 3, 3), groups=16)
    assert moment_bytes(spec) == 16 * 36 * 36 * 8
