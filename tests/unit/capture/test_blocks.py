# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: which modules are some, what they cost, and dropping them."""

import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from slimrank import UnknownNameError
from slimrank.capture import count_cost
from slimrank.capture import find_blocks as find_in
from slimrank.forward import as_batch, take_samples
from slimrank.records import BlockSpec
from slimrank.surgery import drop_blocks

_X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()


def find_blocks(model: nn.Module, x: Tensor) -> Mapping[str, BlockSpec]:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return find_in(model, as_batch(x), layers)


class _Residual(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.join = join
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.body(x), x)


def _net(*joins: Callable[[Tensor, Tensor], Tensor]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *[_Residual(join) for join in joins], nn.Conv2d(8, 8, 3, padding=1)
    )


def _plain(y: Tensor, x: Tensor) -> Tensor:
    return x + y


def _in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return torch.relu_(y)


def _through_views(y: Tensor, x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    flat = flat + y.flatten(2).transpose(1, 2)
    flat = flat + 0.5 * flat.tanh()
    return flat.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("join", [_plain, _in_place, _through_views])
def test_sums_with_the_input_are_found(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = _net(join, _plain).eval()
    blocks = find_blocks(model, _X[:1])
    assert list(blocks) == ["1", "2"]
    conv = 8 * 8 * 9
    assert blocks["1"].macs == 64 * conv
    assert blocks["1"].params == conv + 8 + 2 * 8
    assert blocks["1"].bytes == 4 * blocks["1"].params


@pytest.mark.parametrize(
    "join",
    [
        lambda y, _x: y,
        lambda y, x: x * y.sigmoid(),
        lambda y, x: (x + y).tanh(),
        lambda y, x: y + x.mean((2, 3), keepdim=True),
        lambda y, x: x.mul(2) + y,
        lambda y, x: x + x + 0 * y,
        lambda y, x: (x + y)[..., :4],
        lambda y, x: torch.add(y, x, alpha=2),
        lambda y, x: (x + y).mul_(2),
        lambda y, x: (x + y).bfloat16(),
    ],
)
def test_other_modules_are_not(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = _net(_plain, join, _plain)[:3].eval()
    assert list(find_blocks(model, _X)) == ["1"]


class _Around(nn.Module):
    """A model that makes something of its middle part."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = _Residual(_plain)
        self.last = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self.middle, self.first(x)))


class _TwoInputs(_Residual):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale if scale != 1.0 else super().forward(x)


@pytest.mark.parametrize(
    ("use", "is_found"),
    [
        (lambda middle, x: middle(x), True),
        (lambda middle, x: middle(middle(x)), False),
        (lambda middle, x: middle(x=x), True),
        (lambda middle, x: middle(x) if middle.body else x, False),
        (lambda middle, x: middle(x) * (1 if not middle.training else middle.body[1].eps), False),
    ],
)
def test_only_what_the_model_runs_without(use: Callable[[nn.Module, Tensor], Tensor], is_found: bool) -> None:
    model = _Around(use).eval()
    assert list(find_blocks(model, _X)) == (["middle"] if is_found else [])


def test_blocks_that_share_anything_stay() -> None:
    model = _net(_plain, _plain, _plain).eval()
    model[2].body[0].weight = model[1].body[0].weight
    assert list(find_blocks(model, _X)) == ["3"]
    twice = _net(_plain, _plain).eval()
    twice.append(twice[1])
    assert list(find_blocks(twice, _X)) == ["2"]


def test_the_innermost_blocks_are_taken_and_most_of_a_net_is_none() -> None:
    stage = nn.Sequential(_Residual(_plain), _Residual(_in_place))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), stage).eval()
    assert list(find_blocks(model, _X)) == ["1.0", "1.1"]
    large = nn.Sequential(nn.Conv2d(3, 8, 1), _Residual(_plain)).eval()
    assert find_blocks(large, _X) == {}


def test_dropping_costs_what_the_block_says() -> None:
    model = _net(_plain, _in_place).eval()
    sample = take_samples(as_batch(_X), [0])
    blocks = find_blocks(model, _X[:1])
    before = count_cost(model, sample)
    drop_blocks(model, ["2"], blocks)
    after = count_cost(model, sample)
    block = blocks["2"]
    lost = (before.macs - after.macs, before.params - after.params, before.bytes - after.bytes)
    assert lost == (block.macs, block.params, block.bytes)


def test_dropped_blocks_become_identities() -> None:
    model = _net(_plain, _plain)
    model[2].eval()
    drop_blocks(model, ["1.body", "1", "2"], {})
    assert isinstance(model[1], nn.Identity)
    assert (model[1].training, model[2].training) == (True, False)


@pytest.mark.parametrize(
    ("name", "match"), [("1.bodi", "did you mean '1.body'"), ("", "no block '' to drop; known are '0', '1'")]
)
def test_blocks_that_do_not_exist_are_refused(name: str, match: str) -> None:
    model = _net(_plain)
    with pytest.raises(UnknownNameError, match=match):
        drop_blocks(model, ["1", name], {})
    assert isinstance(model[1], _Residual)


class _Timed(nn.Module):
    """A block of several arguments, whose last layer joins its branch to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.time, self.down = nn.Linear(8, 16), nn.Linear(8, 16), _Join()
        self.kind = "timed"

    def forward(self, x: Tensor, t: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        h = self.up(x) if t is None else self.up(x) + self.time(t)
        return self.down(h.relu() if mask is None else h.relu() * mask, x)


class _Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        # What is added comes from another argument: without it the branch would run for nothing.
        return self.dense(h) + x


class _WithScores(_Timed):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, None]:
        y = super().forward(x, t)
        return y, y.softmax(-1), None


class _Streams(_Timed):
    """Two streams that come out in the other order."""

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return t + self.time(t)[..., :8] * x, super().forward(x, t)


class _ByHand(nn.Module):
    """Whatever a function makes of four blocks."""

    def __init__(
        self, kind: Callable[[], nn.Module], use: Callable[[nn.Module, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.use = use
        self.blocks = nn.ModuleList(kind() for _ in range(3))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        for block in self.blocks:
            h = self.use(block, h, x)
        return self.last(h)


@pytest.mark.parametrize(
    ("kind", "use", "passes"),
    [
        (_Timed, lambda block, h, x: block(h, x), 0),
        (_Timed, lambda block, h, x: block(h, t=x), 0),
        (_Timed, lambda block, h, x: block(t=x, x=h), "x"),
        (_Timed, lambda block, h, _x: block(h, mask=torch.ones(16)), 0),
        (_Timed, lambda block, h, _x: block(h, None), 0),
        (_Timed, lambda block, h, _x: block(h), None),
        (_Timed, lambda block, h, x: block(h, x) if block.kind == "timed" else h, 0),
        (_WithScores, lambda block, h, x: block(h, x)[0], (0, None, None)),
        (_Streams, lambda block, h, x: sum(block(h, x)), (1, 0)),
    ],
)
def test_blocks_of_several_arguments_and_results(kind: type, use: Callable, passes: object) -> None:
    model, x = _ByHand(kind, use).eval(), _X.flatten(1)[:, :8]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    blocks = find_in(model, as_batch(x), layers)
    assert {name: block.passes for name, block in blocks.items()} == {f"blocks.{i}": passes for i in range(3)}
    whole = copy.deepcopy(model)
    drop_blocks(model, ["blocks.1"], blocks)
    with torch.no_grad():
        whole.blocks = nn.ModuleList([whole.blocks[0], whole.blocks[2]])
        if kind is not _Streams:
            assert torch.equal(model(x), whole(x))
        assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert "Bypass" in repr(model) or passes is None


def _scaled_by_scores(block: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    y, scores, _ = block(h, x)
    return y * scores.mean()


def test_results_that_the_model_asks_for_keep_a_block() -> None:
    model = _ByHand(_WithScores, _scaled_by_scores).eval()
    assert find_in(model, as_batch(_X.flatten(1)[:, :8]), [f"blocks.{i}.up" for i in range(3)]) == {}


class _Cache(list):
    """Filled by each block; the model asks the first entry."""


def test_the_first_block_stays_where_blocks_fill_a_cache() -> None:
    cache = _Cache()

    class Filling(_Timed):
        def forward(self, x: Tensor, cache: object) -> Tensor:
            return super().forward(x)

    model = _ByHand(Filling, lambda block, h, _x: block(h, SimpleNamespace(entries=cache))).eval()
    blocks = find_in(model, as_batch(_X.flatten(1)[:, :8]), [f"blocks.{i}.up" for i in range(3)])
    assert list(blocks) == ["blocks.1", "blocks.2"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_torchs_transformer_layers_are_blocks(norm_first: bool, batch_first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"batch_first": batch_first, "norm_first": norm_first}
            is_nested = batch_first and not norm_first
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 2, 32, **options), 3, enable_nested_tensor=is_nested
            )
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, **options), 3)
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            memory = self.encoder(x, src_key_padding_mask=padding)
            return self.last(self.decoder(x, memory, memory_key_padding_mask=padding))

    model = Net().eval()
    x = torch.linspace(-1, 1, 2 * 4 * 16).sin().reshape(2, 4, 16)
    if not batch_first:
        x = x.transpose(0, 1)
    padding = torch.tensor([[False, False, False, True], [False, False, True, True]])
    blocks = find_in(
        model, as_batch((x, padding)), [name for name, _ in model.named_modules() if "linear" in name]
    )
    assert list(blocks) == [f"{part}.layers.{i}" for part in ("encoder", "decoder") for i in range(3)]
    drop_blocks(model, ["encoder.layers.0", "decoder.layers.0"], blocks)
    with torch.no_grad():
        assert model(x, padding).isfinite().all()
