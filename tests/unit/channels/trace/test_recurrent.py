# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers lose inputs and hidden units, and compute what they did with zeros there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from slimrank.capture import count_cost
from slimrank.channels import read_groups, try_groups
from slimrank.cost import model_cost
from slimrank.forward import as_batch
from slimrank.records import ChannelMap, Kept
from slimrank.surgery import copy_model, mask, put_back, slim
from tests.unit.channels.test_read import axes, called_layers, frozen, live

_TOKENS = torch.linspace(-2.0, 2.0, 80).reshape(2, 5, 8).sin()
Function = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """A layer, a recurrent one, a layer."""

    def __init__(self, rnn: nn.Module, function: Function, width: int) -> None:
        super().__init__()
        self.function = function
        self.a, self.rnn, self.b = nn.Linear(8, 6), rnn, nn.Linear(width, 2)
        self.hidden = 10

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def plain(net: Net, x: Tensor) -> object:
    return net.b(net.rnn(net.a(x))[0])


def tried(net: Net) -> ChannelMap:
    net.eval()
    return try_groups(
        net, as_batch(_TOKENS), read_groups(net, as_batch(_TOKENS), called_layers(net, _TOKENS))
    )


def check_exact(net: Net, channels: ChannelMap, kept: Kept) -> None:
    """Slimmed and masked agree, and the slimmed one costs what shapes say."""
    slimmed, masked = copy_model(net), copy_model(net)
    slim(slimmed, channels, kept)
    mask(masked, channels, kept)
    torch.testing.assert_close(slimmed(_TOKENS), masked(_TOKENS))
    layers = {spec.name: spec for spec in called_layers(net, _TOKENS)}
    batch = as_batch(_TOKENS)
    predicted = model_cost(
        count_cost(net, batch), layers, channels, settings={}, kept=kept, dropped=(), has_bias=False
    )
    assert count_cost(slimmed, batch) == predicted


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("n_layers", "bidirectional"), [(1, False), (1, True), (3, False), (2, True)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_inputs_and_hidden_units_go(
    kind: type[nn.RNNBase], n_layers: int, bidirectional: bool, batch_first: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    rnn = kind(6, 10, n_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
    net = Net(rnn, plain, 20 if bidirectional else 10)
    channels = tried(net)
    assert live(channels) == {"a": 6, "rnn": 10}
    kept = {"a": (1, 4, 5), "rnn": (0, 2, 3, 9)}
    check_exact(net, channels, kept)
    slim(net, channels, kept)
    assert (rnn.input_size, rnn.hidden_size) == (3, 4)
    # Built from its sizes, the layer is the same, and its weights are those that it runs with.
    fresh = kind(3, 4, n_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
    fresh.load_state_dict(rnn.state_dict())
    x = torch.ones(2, 5, 3)
    torch.testing.assert_close(fresh(x)[0], rnn(x)[0])


def test_a_unit_is_a_row_of_every_gate_and_a_column_of_what_reads_it() -> None:
    channels = tried(Net(nn.GRU(6, 4, batch_first=True), plain, 4))
    assert axes(channels, "rnn.weight_ih_l0") == [
        ("rnn", 0, "output", (0, 1, 2, 3) * 3),
        ("a", 1, "input", (0, 1, 2, 3, 4, 5)),
    ]
    assert axes(channels, "rnn.weight_hh_l0") == [
        ("rnn", 0, "output", (0, 1, 2, 3) * 3),
        ("rnn", 1, "input", (0, 1, 2, 3)),
    ]
    assert channels.groups["rnn"].consumers == ("b",)
    assert channels.groups["rnn"].unit_width == 1


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_outputs_go_and_cells_stay() -> None:
    rnn = nn.LSTM(6, 10, 2, proj_size=5, batch_first=True)
    net = Net(rnn, plain, 5)
    channels = tried(net)
    assert live(channels) == {"a": 6, "rnn": 5}
    assert frozen(channels)["rnn#2"] == "rnn is recurrent (LSTM), and its outputs are projected"
    check_exact(net, channels, {"a": (0, 5), "rnn": (1, 2, 4)})
    slim(net, channels, {"rnn": (1, 2)})
    assert (rnn.hidden_size, rnn.proj_size) == (10, 2)


def last_state(net: Net, x: Tensor) -> object:
    return net.b(net.rnn(net.a(x))[1][0][-1])


def states_of_right_size(net: Net, x: Tensor) -> object:
    state = x.new_zeros(1, len(x), net.hidden)
    return net.b(net.rnn(net.a(x), (state, state))[0])


def packed(net: Net, x: Tensor) -> object:
    rows = pack_padded_sequence(net.a(x), torch.tensor([5, 3]), batch_first=True)
    return net.b(pad_packed_sequence(net.rnn(rows)[0], batch_first=True)[0])


def twice(net: Net, x: Tensor) -> object:
    x = net.a(x)
    return net.b(net.rnn(x, net.rnn(x)[1])[0])


def step_by_step(net: Net, x: Tensor) -> object:
    state, found = None, []
    for step in net.a(x).unbind(1):
        state = net.rnn(step, state)
        found.append(state[0])
    return net.b(torch.stack(found, 1))


@pytest.mark.parametrize("function", [last_state, states_of_right_size, packed, twice])
def test_ways_to_call_it(function: Function) -> None:
    torch.manual_seed(0)
    net = Net(nn.LSTM(6, 10, batch_first=True), function, 10)
    channels = tried(net)
    assert live(channels) == {"a": 6, "rnn": 10}
    check_exact(net, channels, {"a": (1, 4, 5), "rnn": (0, 2, 3, 9)})


def test_cells() -> None:
    torch.manual_seed(0)
    net = Net(nn.LSTMCell(6, 10), step_by_step, 10)
    channels = tried(net)
    assert live(channels) == {"a": 6, "rnn": 10}
    check_exact(net, channels, {"a": (1, 4, 5), "rnn": (0, 2, 3, 9)})
    slim(net, channels, {"rnn": (1, 2)})
    assert (net.rnn.input_size, net.rnn.hidden_size) == (6, 2)


def states_of_fixed_size(net: Net, x: Tensor) -> object:
    state = x.new_zeros(1, len(x), 10)
    return net.b(net.rnn(net.a(x), state)[0])


def states_from_the_caller(net: Net, x: Tensor) -> object:
    return net.b(net.rnn(net.a(x), torch.cat([x, x], -1)[None, :, 0, :10])[0])


def states_returned(net: Net, x: Tensor) -> object:
    made, state = net.rnn(net.a(x))
    return net.b(made), state


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (states_of_fixed_size, "its size is hard-wired: RuntimeError: Expected hidden size"),
        (states_from_the_caller, "rnn is recurrent (GRU), with what is no channel"),
        (states_returned, "model output 1"),
    ],
)
def test_states_that_fix_the_width(function: Function, reason: str) -> None:
    channels = tried(Net(nn.GRU(6, 10, batch_first=True), function, 10))
    assert live(channels) == {"a": 6}
    assert frozen(channels)["rnn"].startswith(reason)


def test_a_copy_that_is_put_back_runs_with_its_old_weights() -> None:
    net = Net(nn.LSTM(6, 10, batch_first=True), plain, 10)
    channels, before = tried(net), net(_TOKENS)
    with put_back(net):
        slim(net, channels, {"rnn": (1, 2)})
        net(_TOKENS)
    torch.testing.assert_close(net(_TOKENS), before)
