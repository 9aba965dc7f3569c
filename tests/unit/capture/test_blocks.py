# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: which modules are some, what they cost, and dropping them."""

from collections.abc import Callable, Mapping

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
        (lambda middle, x: middle(x=x), False),
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
    drop_blocks(model, ["2"])
    after = count_cost(model, sample)
    block = blocks["2"]
    lost = (before.macs - after.macs, before.params - after.params, before.bytes - after.bytes)
    assert lost == (block.macs, block.params, block.bytes)


def test_dropped_blocks_become_identities() -> None:
    model = _net(_plain, _plain)
    model[2].eval()
    drop_blocks(model, ["1.body", "1", "2"])
    assert isinstance(model[1], nn.Identity)
    assert (model[1].training, model[2].training) == (True, False)


@pytest.mark.parametrize(
    ("name", "match"), [("1.bodi", "did you mean '1.body'"), ("", "no block '' to drop; known are '0', '1'")]
)
def test_blocks_that_do_not_exist_are_refused(name: str, match: str) -> None:
    model = _net(_plain)
    with pytest.raises(UnknownNameError, match=match):
        drop_blocks(model, ["1", name])
    assert isinstance(model[1], _Residual)
