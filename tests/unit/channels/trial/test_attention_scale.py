# SPDX-License-Identifier: Apache-2.0
"""Who makes queries, read off the way back; scores that other scores make up for."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seams import AttentionScores, SeenScores, is_made_up_for, read_products, with_queries
from slimrank.forward import as_batch
from slimrank.records import ChannelMap

_X = torch.linspace(-1, 1, 2 * 3 * 4).sin().reshape(2, 3, 4)


class _Net(nn.Module):
    """Two heads of width three; how queries and keys come about is up to the test."""

    def __init__(self, queries: Callable[["_Net", Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k = (nn.Linear(4, 6, bias=bias) for _ in range(2))
        self.low, self.high = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 24).cos().reshape(4, 6))
        self.queries = queries
        for tensor in self.norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.linspace(0.5, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in (self.queries(self, x), self.k(x)))
        return functional.scaled_dot_product_attention(q, k, k)


def _normed(net: _Net, x: Tensor) -> Tensor:
    return net.norm(net.q(x).transpose(1, 2)).transpose(1, 2)


@pytest.fixture
def found(map_of: Callable, group_of: Callable) -> Callable[..., Mapping[str, tuple[int, ...]] | None]:
    """Queries by tensor, of a net in which every tensor with six rows belongs to the width."""

    def read(
        model: nn.Module, units: tuple[int, ...] = (0, 1, 2) * 2
    ) -> Mapping[str, tuple[int, ...]] | None:
        model.eval()
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        axes = {
            name: [("width", tensor.shape.index(6), "output", units)]
            for name, tensor in tensors.items()
            if 6 in tensor.shape
        }
        channels = map_of(model, [group_of("width", 3, is_inner=True)], axes)
        products = read_products(model, as_batch(_X), channels)
        marked = with_queries(channels, "width", products)
        if marked is None:
            return None
        assert with_queries(marked, "width", products) is None
        return _queries(marked)

    return read


def _queries(channels: ChannelMap) -> dict[str, tuple[int, ...]]:
    axes = {tensor.name: axis for tensor in channels.tensors.values() for axis in tensor.axes}
    return {name: axis.queries for name, axis in axes.items() if axis.queries}


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        (lambda net, x: net.q(x), {"q.weight", "q.bias"}),
        (lambda net, x: 3 * net.q(x).flip(1), {"q.weight", "q.bias"}),
        (lambda net, x: net.q(x) + net.high(net.low(x)), {"q.weight", "q.bias", "high.weight"}),
        # A norm divides by what stays what it is; the last affine map alone is linear.
        (_normed, {"norm.weight", "norm.bias"}),
        (lambda net, x: x @ net.matrix, {"matrix"}),
        (lambda net, x: functional.linear(x, net.matrix.T), {"matrix"}),
    ],
    ids=["linear", "after it", "sum", "norm", "matrix", "view of a matrix"],
)
def test_what_queries_are_linear_in(queries: Callable, names: set[str], found: Callable) -> None:
    assert found(_Net(queries)) == dict.fromkeys(names, (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    "queries",
    [
        lambda net, x: net.k(x),
        lambda net, x: net.q(x) + net.k(x),
        lambda net, x: net.q(x).tanh(),
        lambda net, x: net.q(x).detach(),
        lambda _net, x: x.repeat(1, 1, 2)[..., :6],
        lambda net, x: net.q(x) * torch.tensor([0.0, 1, 1, 1, 1, 1]),
    ],
    ids=["keys", "keys within", "not linear", "no way back", "no parameter", "a closed gate"],
)
def test_what_no_factor_mends(queries: Callable, found: Callable) -> None:
    assert found(_Net(queries)) is None


def test_rows_of_no_unit_are_left_alone(found: Callable) -> None:
    queries = found(_Net(lambda net, x: net.q(x), bias=False), (0, -1, 1, 2, -1, -1))
    assert queries == {"q.weight": (0, 2, 3)}


def test_what_comes_through_a_product_does_not_count(found: Callable) -> None:
    class Twice(_Net):
        def forward(self, x: Tensor) -> Tensor:
            mixed = super().forward(x).transpose(1, 2).flatten(2)
            return super().forward(mixed[..., :4])

    assert found(Twice(lambda net, x: net.q(x))) == {"q.weight": tuple(range(6)), "q.bias": tuple(range(6))}


def _scores(query: Tensor, key: Tensor, *, is_shared: bool = False) -> AttentionScores:
    with SeenScores() as scores:
        functional.scaled_dot_product_attention(value=key, key=key, query=query, enable_gqa=is_shared)
        functional.scaled_dot_product_attention(query, key, key, scale=1.0, enable_gqa=is_shared)
    (seen,) = scores.seen
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 4, 20, 6), (8, 20, 6), (2, 3, 4, 20, 6)])
def test_scores_are_compared_head_by_head(
    shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator
) -> None:
    query, key = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    whole = _scores(query.to(dtype), key.to(dtype))
    assert whole.width == 6
    query, key = (torch.cat([part, torch.zeros_like(part)], -1) for part in (query, key))
    # Two units of nothing but zeros, of four, and one head less.
    masked = _scores(query.to(dtype), key.to(dtype))
    query, key = (part[..., :6].movedim(-3, 0)[1:].movedim(0, -3).to(dtype) for part in (query, key))
    assert is_made_up_for(masked, _scores(query * 0.5**0.5, key))
    assert not is_made_up_for(masked, _scores(query, key))
    assert not is_made_up_for(masked, _scores(query * 0.5, key))


def test_heads_of_queries_that_share_keys(rng: torch.Generator) -> None:
    query, key = (torch.randn(2, heads, 3, 6, generator=rng) for heads in (4, 2))
    expected = query[0] @ key[0].repeat_interleave(2, 0).mT / 6**0.5
    torch.testing.assert_close(_scores(query, key, is_shared=True).values, expected.flatten(1))


@pytest.mark.parametrize(
    ("queries", "keys", "heads"), [((3, 6), (3, 6), 1), ((1, 3, 6), (4, 3, 6), 4), ((4, 3, 6), (3, 6), 4)]
)
def test_heads_of_any_shape(
    queries: tuple[int, ...], keys: tuple[int, ...], heads: int, rng: torch.Generator
) -> None:
    query, key = (torch.randn(shape, generator=rng) for shape in (queries, keys))
    expected = (query @ key.mT / 6**0.5).reshape(heads, 9)
    torch.testing.assert_close(_scores(query, key).values, expected)


def test_attention_over_nothing_has_no_scores() -> None:
    with SeenScores() as scores:
        functional.scaled_dot_product_attention(*[torch.zeros(0, 2, 3, 6)] * 3)
    assert not scores.seen


def test_scores_of_other_places_are_not_those_of_before() -> None:
    before, after = (AttentionScores(width, torch.zeros(2, count)) for width, count in ((6, 9), (3, 6)))
    assert not is_made_up_for(before, after)
