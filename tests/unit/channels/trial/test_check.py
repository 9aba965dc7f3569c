# SPDX-License-Identifier: Apache-2.0
"""Groups that cannot go from a model though its map says so: each found, the others left in peace."""

import re
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from slimrank.channels import slim_failures
from slimrank.forward import Batch, as_batch
from slimrank.records import ChannelMap

_BATCHES = [as_batch(torch.linspace(-1, 1, n * 6).reshape(n, 6).sin()) for n in (3, 1)]
Between = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two hidden widths, something done to each."""

    def __init__(self, first: Between, second: Between) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = first, second
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.second(self.b(self.first(self.a(x)))))


@pytest.fixture
def channels(map_of: Callable[..., ChannelMap], group_of: Callable[..., object]) -> ChannelMap:
    return map_of(
        Net(torch.relu, torch.relu),
        [group_of("a", 8, producers=("a",)), group_of("b", 10, producers=("b",))],
        {
            "a.weight": [("a", 0, "output", range(8))],
            "a.bias": [("a", 0, "output", range(8))],
            "b.weight": [("a", 1, "input", range(8)), ("b", 0, "output", range(10))],
            "b.bias": [("b", 0, "output", range(10))],
            "c.weight": [("b", 1, "input", range(10))],
        },
    )


_KEPT = {"a": (0, 3, 4), "b": (1, 2, 5, 9)}


def failures(
    first: Between, second: Between, channels: ChannelMap, batches: list[Batch] = _BATCHES
) -> Mapping[str, str]:
    model = Net(first, second).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = slim_failures(model, channels, _KEPT, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    return found


def test_sound_groups_pass(channels: ChannelMap) -> None:
    assert failures(torch.relu, torch.tanh, channels) == {}


@pytest.mark.parametrize(
    ("between", "told"),
    [
        (
            lambda x: x.reshape(-1, 10),
            r"^RuntimeError: shape '\[-1, 10\]' is invalid .* at test_check",
        ),
        (lambda x: x * x.shape[1], r"slimmed and masked model differ by \S+ in the output$"),
        (lambda x: x.softmax(1), r"slimmed and masked model differ by"),
        (lambda x: x / (x.shape[1] - 4), r"the output holds nan or inf at other places"),
    ],
    ids=["hard-wired", "reads its width", "looks across channels", "divides by zero"],
)
def test_one_that_fails_leaves_the_other(between: Between, told: str, channels: ChannelMap) -> None:
    found = failures(torch.relu, between, channels)
    assert list(found) == ["b"]
    assert re.search(told, found["b"]), found["b"]
    assert "\n" not in found["b"]


def test_both_may_fail(channels: ChannelMap) -> None:
    found = failures(lambda x: x.reshape(-1, 8), lambda x: x.reshape(-1, 10), channels)
    assert list(found) == ["a", "b"]


def test_other_shapes_are_told(channels: ChannelMap) -> None:
    class Tells(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            hidden = self.b(self.a(x).relu()).relu()
            return self.c(hidden), hidden

    found = slim_failures(Tells(torch.relu, torch.relu).eval(), channels, _KEPT, _BATCHES)
    assert found == {"b": "output '1' is (3, 4), and (3, 10) in the masked model"}


def test_every_batch_is_looked_at(channels: ChannelMap) -> None:
    def odd(x: Tensor) -> Tensor:
        return x.reshape(1, 10) if len(x) == 1 else x

    assert failures(torch.relu, odd, channels, _BATCHES[:1]) == {}
    assert list(failures(torch.relu, odd, channels)) == ["b"]


def test_nothing_to_do_and_nothing_to_see(channels: ChannelMap) -> None:
    model = Net(torch.relu, torch.relu).eval()
    assert slim_failures(model, channels, {}, _BATCHES) == {}
    assert slim_failures(model, channels, _KEPT, []) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_have_other_tolerances(dtype: torch.dtype, channels: ChannelMap) -> None:
    model = Net(torch.relu, torch.tanh).to(dtype).eval()
    batches = [as_batch(batch.args[0].to(dtype)) for batch in _BATCHES]
    assert slim_failures(model, channels, _KEPT, batches) == {}


def test_what_is_not_finite_before_may_stay_so(channels: ChannelMap) -> None:
    assert failures(torch.relu, lambda x: x + float("inf"), channels) == {}
