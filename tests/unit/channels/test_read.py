# SPDX-License-Identifier: Apache-2.0
"""Groups of small nets: how many units, who makes and reads them, and why something may not go."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from slimrank.capture import count_cost, describe_layers
from slimrank.channels import read_groups
from slimrank.forward import as_batch
from slimrank.records import Call, ChannelMap, GroupSpec, LayerSpec
from slimrank.surgery import quiet_copy


def called_layers(model: nn.Module, *inputs: Tensor) -> list[LayerSpec]:
    """What ``capture`` tells of layers, as far as groups need it: kinds, order and number of calls."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    model(*inputs)
    for handle in handles:
        handle.remove()
    once = Call(input_shape=(), output_shape=())
    specs = {spec.name: replace(spec, calls=(once,) * calls[spec.name]) for spec in describe_layers(model)}
    return [specs[name] for name in dict.fromkeys([*(n for n in calls if n in specs), *specs])]


def groups_of(model: nn.Module, *inputs: Tensor) -> ChannelMap:
    model = quiet_copy(model)
    batch = as_batch(inputs)
    return read_groups(model, batch, called_layers(model, *inputs))


def live(found: ChannelMap) -> Mapping[str, int]:
    return {name: group.units for name, group in found.groups.items() if group.reason is None}


def frozen(found: ChannelMap) -> Mapping[str, str]:
    return {name: group.reason for name, group in found.groups.items() if group.reason is not None}


def axes(found: ChannelMap, tensor: str) -> list[tuple[str, int, str, tuple[int, ...]]]:
    return [(axis.group, axis.dim, axis.role, axis.units) for axis in found.tensors[tensor].axes]


class Wrapped(nn.Module):
    """Modules by name and a function of them and the input."""

    def __init__(self, function: Callable[..., object], **modules: object) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


IMAGE = torch.randn(1, 3, 8, 8)
TOKENS = torch.randn(1, 5, 8)


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5), nn.Linear(5, 2)),
    )


def test_a_chain_of_convolutions() -> None:
    found = groups_of(vgg(), IMAGE)
    assert live(found) == {"0": 4, "4": 6, "7": 5}
    assert frozen(found) == {"8": "model output"}
    assert found.groups["4"] == GroupSpec(name="4", units=6, unit_width=1, producers=("4",), consumers=("7",))
    # Flattened, a channel stands for all of its places.
    assert axes(found, "7.weight") == [
        ("7", 0, "output", tuple(range(5))),
        ("4", 1, "input", tuple(i for i in range(6) for _ in range(16))),
    ]
    assert [axes(found, f"1.{name}") for name in ("weight", "bias", "running_mean", "running_var")] == (
        [[("0", 0, "output", (0, 1, 2, 3))]] * 4
    )
    assert "1.num_batches_tracked" not in found.tensors


def test_positions_are_the_macs_of_a_number() -> None:
    found = groups_of(vgg(), IMAGE)
    positions = {name: spec.positions for name, spec in found.tensors.items() if name.endswith("weight")}
    assert positions == {"0.weight": 64, "1.weight": 0, "4.weight": 16, "7.weight": 1, "8.weight": 1}
    assert found.tensors["0.bias"].positions == 0
    assert not found.tensors["1.running_mean"].is_parameter
    assert found.tensors["4.weight"].itemsize == 4


def test_a_batch_counts_as_it_is() -> None:
    found = groups_of(vgg(), torch.randn(3, 3, 8, 8))
    assert live(found) == {"0": 4, "4": 6, "7": 5}
    assert found.tensors["4.weight"].positions == 3 * 16


class Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.b, self.nb = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.nb(self.b(functional.relu(self.na(self.a(x)))))
        y += self.short(x)
        return functional.relu(y)


def test_a_residual_sum_couples_all_that_is_added() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        Residual(4, 4, 1),
        Residual(4, 6, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": 4, "1.a": 4, "2.a": 6, "2.b": 6}
    assert found.groups["0"].producers == ("0", "1.b")
    assert found.groups["0"].consumers == ("1.a", "2.a", "2.short")
    assert found.groups["2.b"].producers == ("2.b", "2.short")


def test_a_depthwise_convolution_couples_both_sides() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6()),
        *(nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2)),
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": 6, "5": 4}
    assert found.groups["0"].producers == ("0", "2")
    assert found.groups["0"].consumers == ("5",)
    assert axes(found, "2.weight") == [("0", 0, "output", (0, 1, 2, 3, 4, 5))]
    assert found.tensors["2.weight"].positions == 36


def test_a_grouped_convolution_goes_by_groups_and_inside_of_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1))
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": 2, "0#2": 4, "1": 6}
    assert axes(found, "0.weight") == [
        ("0", 0, "output", (0, 0, 0, 0, 1, 1, 1, 1)),
        ("0#2", 0, "output", (0, 1, 2, 3, 0, 1, 2, 3)),
    ]
    assert axes(found, "1.weight") == [
        ("0", 0, "output", (0,) * 6 + (1,) * 6),
        ("1", 0, "output", (0, 1, 2, 3, 4, 5) * 2),
        ("0#2", 1, "input", (0, 1, 2, 3)),
    ]
    # What loses whole groups computes the others as before.
    assert found.groups["0"].consumers == ("2",)
    assert found.groups["0#2"].consumers == ("1",)


def test_a_transposed_convolution_reads_its_first_dimension() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2), nn.Conv2d(6, 2, 1))
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": 4, "1": 6}
    assert axes(found, "1.weight") == [
        ("0", 0, "input", (0, 1, 2, 3)),
        ("1", 1, "output", (0, 1, 2, 3, 4, 5)),
    ]
    assert found.tensors["1.weight"].positions == 64


def test_a_grouped_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.Conv2d(6, 2, 1))
    assert live(groups_of(net, IMAGE)) == {"0": 2, "0#2": 4, "1": 3}


@pytest.mark.parametrize(("n_groups", "units"), [(8, 8), (4, 4)])
def test_a_group_norm_goes_by_whole_groups(n_groups: int, units: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(n_groups, 8), nn.Conv2d(8, 2, 1))
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": units}
    assert found.groups["0"].unit_width == 8 // units


@pytest.mark.parametrize(
    ("norm", "operation"),
    [
        (nn.GroupNorm(1, 8), "aten.native_group_norm in '1'"),
        (nn.LayerNorm([8, 8, 8]), "aten.native_layer_norm in '1'"),
    ],
)
def test_a_norm_over_all_channels_freezes_them(norm: nn.Module, operation: str) -> None:
    found = groups_of(nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 2, 1)), IMAGE)
    assert live(found) == {}
    assert frozen(found) == {"0": operation, "2": "model output"}


def test_an_instance_norm_lets_channels_go() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 2, 1))
    found = groups_of(net, torch.randn(2, 3, 8, 8))
    assert live(found) == {"0": 8}
    assert axes(found, "1.weight") == [("0", 0, "output", tuple(range(8)))]


def test_the_reason_names_operation_and_line() -> None:
    net = Wrapped(lambda self, x: self.b(self.a(x).softmax(-1)), a=nn.Linear(8, 6), b=nn.Linear(6, 2))
    reason = frozen(groups_of(net, TOKENS))["a"]
    assert reason.startswith("aten._softmax at test_read.py:")
    assert reason.endswith("`net = Wrapped(lambda self, x: self.b(self.a(x).softmax(-1...`")


def test_squeeze_and_excite() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        gate = functional.adaptive_avg_pool2d(y, 1)
        return self.b(y * self.up(functional.relu(self.down(gate))).sigmoid())

    net = Wrapped(
        forward, a=nn.Conv2d(3, 8, 3), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), b=nn.Conv2d(8, 2, 1)
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"a": 8, "down": 4}
    assert found.groups["a"].producers == ("a", "up")
    assert found.groups["a"].consumers == ("down", "b")


def test_concatenated_layers_stay_apart() -> None:
    net = Wrapped(
        lambda self, x: self.c(self.n(torch.cat([self.a(x), self.b(x)], 1))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 6, 1),
        n=nn.BatchNorm2d(10),
        c=nn.Conv2d(10, 2, 1),
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"a": 4, "b": 6}
    assert axes(found, "n.weight") == [
        ("a", 0, "output", (0, 1, 2, 3) + (-1,) * 6),
        ("b", 0, "output", (-1,) * 4 + (0, 1, 2, 3, 4, 5)),
    ]
    assert [role for _, dim, role, _ in axes(found, "c.weight") if dim == 1] == ["input", "input"]


def test_inputs_beside_channels_never_go() -> None:
    net = Wrapped(
        lambda self, x: self.b(torch.cat([self.a(x), x], 1)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(7, 2, 1)
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"a": 4}
    assert axes(found, "b.weight") == [("a", 1, "input", (0, 1, 2, 3, -1, -1, -1))]


class Attention(nn.Module):
    """One layer for queries, keys and values; heads and width from the tensor."""

    def __init__(self, width: int, heads: int, *, plain: bool = False) -> None:
        super().__init__()
        self.heads, self.plain = heads, plain
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.plain:
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.n1, self.n2, self.attention = nn.LayerNorm(8), nn.LayerNorm(8), attention
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.position
        x = x + self.attention(self.n1(x))
        return self.head((x + self.down(functional.gelu(self.up(self.n2(x))))).mean(1))


@pytest.mark.parametrize("plain", [False, True])
def test_attention_with_one_layer_for_all_three(plain: bool) -> None:
    found = groups_of(Encoder(Attention(8, 4, plain=plain)), TOKENS)
    assert live(found) == {"attention.qkv": 4, "attention.qkv#2": 2, "up": 16}
    heads, width = found.groups["attention.qkv"], found.groups["attention.qkv#2"]
    assert (heads.is_inner, width.is_inner) == (False, True)
    assert heads.consumers == width.consumers == ("attention.out",)
    assert heads.unit_width == 6
    assert frozen(found)["enter"].startswith("aten.native_layer_norm at test_read.py:")
    assert found.groups["enter"].producers == ("enter", "attention.out", "down")
    # Both products have 4 heads x 5 x 5 places x width 2.
    assert [(p.module, p.macs, p.groups) for p in found.products] == [
        ("attention", 2 * 4 * 25 * 2, ("attention.qkv", "attention.qkv#2"))
    ]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_of_torch(batch: int, need_weights: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            # The weights, a mean over the heads, are thrown away.
            return self.inner(x, x, x, need_weights=need_weights)[0]

    found = groups_of(Encoder(Own()), torch.randn(batch, 5, 8))
    assert live(found) == {"attention.inner": 4, "attention.inner#2": 2, "up": 16}
    assert [axis[:3] for axis in axes(found, "attention.inner.in_proj_weight")] == [
        ("attention.inner", 0, "output"),
        ("attention.inner#2", 0, "output"),
    ]
    assert found.tensors["attention.inner.in_proj_weight"].positions == 5 * batch
    assert found.tensors["attention.inner.out_proj.weight"].positions == 5 * batch


def test_cross_attention_of_torch_counts_what_is_cut_out_of_one_weight() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x[:, :2], x[:, :2], need_weights=False)[0]

    found = groups_of(Encoder(Own()), TOKENS)
    assert live(found)["attention.inner"] == 2
    assert found.tensors["attention.inner.in_proj_weight"].positions == 0
    macs = {p.module: p.macs for p in found.products}
    # Queries of 5 places, keys and values of 2; then both products of 2 heads x 5 x 2 x 4.
    assert macs == {"attention.inner": 5 * 64 + 2 * 128 + 2 * 2 * 5 * 2 * 4}


def test_attention_weights_that_are_used_freeze_the_heads() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, weights = self.inner(x, x, x)
            return y * weights.sum(-1, keepdim=True)

    assert live(groups_of(Encoder(Own()), TOKENS)) == {"attention.inner": 2, "up": 16}


def test_rotation_by_complex_numbers_goes_by_pairs() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.register_buffer("turn", torch.polar(torch.ones(5, 2), torch.rand(5, 2)))

        def rotated(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.turn).flatten(-2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            y = functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
            return self.out(y.transpose(1, 2).flatten(2))

    found = groups_of(Encoder(Own()), TOKENS)
    assert live(found) == {"attention.q": 2, "attention.q#2": 2, "attention.v": 4, "up": 16}
    assert axes(found, "attention.turn") == [("attention.q#2", 1, "output", (0, 1))]


class Grouped(nn.Module):
    """Grouped queries: four heads of queries, two of keys and values; rotated by halves."""

    def __init__(self, *, repeat: str) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.repeat = nn.Linear(16, 8), repeat
        self.register_buffer("frequency", torch.tensor([1.0, 0.1]))

    def rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None] * self.frequency
        angle = torch.cat([angle, angle], -1)
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.rotated(q), self.rotated(k)
        if self.repeat == "expand":
            k, v = (t[:, :, None].expand(n, 2, 2, length, 4).reshape(n, 4, length, 4) for t in (k, v))
        elif self.repeat == "interleave":
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.repeat == "kernel")
        return self.out(y.transpose(1, 2).reshape(n, length, -1))


@pytest.mark.parametrize("repeat", ["expand", "interleave", "kernel"])
def test_grouped_queries_go_with_their_keys(repeat: str) -> None:
    found = groups_of(Encoder(Grouped(repeat=repeat)), TOKENS)
    # Key/value heads; pairs of rotated places; width of the values.
    assert live(found) == {"attention.q": 2, "attention.q#2": 2, "attention.v": 4, "up": 16}
    assert found.groups["attention.q"].producers == ("attention.q", "attention.k", "attention.v")
    assert found.groups["attention.q"].unit_width == 8
    assert found.groups["attention.q#2"].is_inner
    assert axes(found, "attention.frequency") == [("attention.q#2", 0, "output", (0, 1))]
    assert axes(found, "attention.k.weight") == [
        ("attention.q", 0, "output", (0, 0, 0, 0, 1, 1, 1, 1)),
        ("attention.q#2", 0, "output", (0, 1, 0, 1, 0, 1, 0, 1)),
    ]


def test_pieces_of_different_sizes_are_different_groups() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = self.enter(x).split([6, 10], -1)
        return self.a(a) + self.b(b)

    net = Wrapped(forward, enter=nn.Linear(8, 16), a=nn.Linear(6, 2), b=nn.Linear(10, 2))
    found = groups_of(net, TOKENS)
    assert live(found) == {"enter": 6, "enter#2": 10}
    assert axes(found, "enter.bias")[1] == ("enter#2", 0, "output", (-1,) * 6 + tuple(range(10)))


def test_channels_of_which_one_is_cut_out_go_together() -> None:
    net = Wrapped(lambda self, x: self.b(y := self.a(x)) * y[..., :1], a=nn.Linear(8, 6), b=nn.Linear(6, 2))
    found = groups_of(net, TOKENS)
    assert frozen(found)["a"] == "all its channels go together as one"
    assert found.groups["a"].units == 1


def test_tied_weights_that_make_and_read_the_same_channels_stay() -> None:
    net = Wrapped(
        lambda self, ids: functional.linear(self.table(ids), self.table.weight), table=nn.Embedding(11, 6)
    )
    found = groups_of(net, torch.arange(4)[None])
    assert frozen(found) == {"table": "table.weight makes these channels and reads them (tied)"}


def test_an_embedding_makes_channels() -> None:
    net = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 4), nn.Linear(4, 2))
    found = groups_of(net, torch.arange(4)[None])
    assert live(found) == {"0": 6, "1": 4}
    assert axes(found, "0.weight") == [("0", 1, "output", (0, 1, 2, 3, 4, 5))]


class Gated(nn.LSTM):
    """A recurrent layer that computes something of its own."""

    def forward(self, x: Tensor, hx: object = None) -> object:
        return super().forward(x * x.mean(-1, keepdim=True), hx)


def test_recurrent_layers_with_a_forward_of_their_own_are_left_alone() -> None:
    net = Wrapped(
        lambda self, x: self.b(self.rnn(self.a(x))[0]),
        a=nn.Linear(8, 6),
        rnn=Gated(6, 4, batch_first=True),
        b=nn.Linear(4, 2),
    )
    found = groups_of(net, TOKENS)
    assert live(found) == {}
    assert list(found.groups) == ["a", "rnn", "b"]
    assert frozen(found)["rnn"] == "rnn is recurrent (Gated)"


def test_parametrised_weights() -> None:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 1)), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"0": 6, "2": 4}
    assert set(found.tensors) >= {f"0.parametrizations.weight.original{i}" for i in (0, 1)}
    # The product is counted once, with the tensor that has all of its numbers.
    assert [found.tensors[f"0.parametrizations.weight.original{i}"].positions for i in (0, 1)] == [0, 64]


def test_a_consumer_whose_weight_is_normalised_over_its_inputs_freezes_them() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), parametrizations.weight_norm(nn.Conv2d(6, 4, 1)), nn.Conv2d(4, 2, 1)
    )
    found = groups_of(net, IMAGE)
    assert live(found) == {"1": 4}
    assert "norm" in frozen(found)["0"]


@pytest.mark.parametrize("by_kernel", [False, True])
def test_standardised_weights(by_kernel: bool) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight.flatten(1)
            if by_kernel:
                weight = functional.batch_norm(weight[None], None, None, training=True)
            else:
                weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
            return functional.conv2d(x, weight.view_as(self.weight), self.bias)

    found = groups_of(nn.Sequential(Standardised(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)), IMAGE)
    assert live(found) == {"0": 6, "1": 4}
    assert found.tensors["0.weight"].positions == 36
    found = groups_of(nn.Sequential(nn.Conv2d(3, 6, 1), Standardised(6, 4, 3), nn.Conv2d(4, 2, 1)), IMAGE)
    assert live(found) == {"1": 4}


def test_a_layer_that_runs_once_for_every_channel_freezes_them() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.b(self.per_channel(self.a(x).flatten(2)).mean(-1))

    net = Wrapped(forward, a=nn.Conv2d(3, 6, 1), per_channel=nn.Linear(64, 4), b=nn.Linear(6, 2))
    found = groups_of(net, IMAGE)
    assert live(found) == {}
    assert frozen(found)["a"].startswith("its size is a number of rows of per_channel: aten.")


def test_a_product_of_channels_with_themselves_is_frozen() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b((y.transpose(1, 2) @ y).diagonal(0, 1, 2))

    net = Wrapped(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 2))
    assert live(groups_of(net, TOKENS)) == {}


def test_an_operation_without_rule_freezes_by_name() -> None:
    net = Wrapped(
        lambda self, x: self.b(torch.linalg.matrix_exp(self.a(x) @ self.a(x).mT)[..., :6]),
        a=nn.Linear(8, 6),
        b=nn.Linear(5, 2),
    )
    assert live(groups_of(net, TOKENS)) == {"a": 6}
    net = Wrapped(
        lambda self, x: self.b(torch.fft.rfft(self.a(x)).abs()), a=nn.Linear(8, 6), b=nn.Linear(4, 2)
    )
    assert frozen(groups_of(net, TOKENS))["a"].startswith("aten._fft_r2c at test_read.py:")


def test_outputs_by_name_are_frozen() -> None:
    net = Wrapped(
        lambda self, x: {"features": (y := self.a(x)), "logits": self.b(y)},
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 2),
    )
    assert frozen(groups_of(net, TOKENS)) == {"a": "model output features", "b": "model output logits"}


def test_a_shared_layer_counts_every_call_and_can_be_fitted_anew() -> None:
    net = Wrapped(
        lambda self, x: self.b(self.a(x)) + self.b(self.a(x.flip(1)).tanh()),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 2),
    )
    found = groups_of(net, TOKENS)
    assert live(found) == {"a": 6}
    assert found.groups["a"].consumers == ("b",)
    assert found.tensors["a.weight"].positions == 10


def test_what_the_tensors_tell_adds_up_to_the_macs_of_the_model() -> None:
    model, batch = quiet_copy(Encoder(Attention(8, 4))), as_batch(TOKENS)
    found = read_groups(model, batch, called_layers(model, TOKENS))
    told = sum(prod(spec.shape) * spec.positions for spec in found.tensors.values())
    told += sum(item.macs for item in found.products)
    untouched = {"enter": 5 * 64, "head": 16}
    assert told + sum(untouched.values()) == count_cost(model, batch).macs


def test_inference_mode_changes_nothing() -> None:
    with torch.inference_mode():
        found = groups_of(Encoder(Attention(8, 4)), TOKENS)
    assert live(found) == {"attention.qkv": 4, "attention.qkv#2": 2, "up": 16}


def test_the_model_is_left_as_it_was() -> None:
    model = quiet_copy(vgg())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups_of(model, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
