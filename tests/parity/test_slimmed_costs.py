# SPDX-License-Identifier: Apache-2.0
"""Costs of slimmed models against small nets that are built narrow, and counted by torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slimrank.cost import layer_cost, model_cost, slimmed_spec
from slimrank.records import (
    AxisUnits,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    GroupSpec,
    LayerKind,
    LayerSpec,
    ProductSpec,
    Role,
    Setting,
    TensorSpec,
)

KINDS: Mapping[type[nn.Module], LayerKind] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.ConvTranspose2d: "other",
}


def counted(model: nn.Module, x: Tensor) -> Cost:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    parameters = list(model.parameters())
    return Cost(
        macs=counter.get_total_flops() // 2,
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


def axis(group: str, dim: int, units: Sequence[int], role: Role = "output") -> AxisUnits:
    return AxisUnits(group=group, dim=dim, role=role, units=tuple(units))


def tensor(
    model: nn.Module, name: str, positions: int, *axes: AxisUnits, is_parameter: bool = True
) -> TensorSpec:
    value = model.get_parameter(name) if is_parameter else model.get_buffer(name)
    return TensorSpec(
        name=name,
        shape=tuple(value.shape),
        itemsize=value.element_size(),
        is_parameter=is_parameter,
        positions=positions,
        axes=axes,
    )


def layers_of(model: nn.Module, x: Tensor) -> dict[str, LayerSpec]:
    """Geometry of every layer, from hooks written here."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    watched = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, args, out: seen.update({name: (args[0], out)})

    handles = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return {
        name: LayerSpec(
            name=name,
            kind=KINDS[type(watched[name])],
            class_name=type(watched[name]).__name__,
            weight_shape=tuple(watched[name].get_parameter("weight").shape),
            has_bias=watched[name].bias is not None,
            dtype="float32",
            itemsize=4,
            groups=getattr(watched[name], "groups", 1),
            calls=(Call(input_shape=tuple(inside.shape), output_shape=tuple(out.shape)),),
            macs=counted(watched[name], inside).macs,
            params=sum(p.numel() for p in watched[name].parameters()),
        )
        for name, (inside, out) in seen.items()
    }


class Branch(nn.Module):
    def __init__(self, w0: int, w1: int, biased: Collection[str]) -> None:
        super().__init__()
        self.a = nn.Conv2d(w0, w1, 3, padding=1, bias="branch.a" in biased)
        self.norm = nn.BatchNorm2d(w1)
        self.dw = nn.Conv2d(w1, w1, 3, padding=1, groups=w1, bias=False)
        self.b = nn.Conv2d(w1, w0, 1, bias="branch.b" in biased)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.dw(self.norm(self.a(x)).relu()))


class ConvNet(nn.Module):
    """Residual branch with a depthwise convolution, a transposed one, flattened into a Linear."""

    def __init__(
        self, stem: int = 6, a: int = 8, up: int = 4, biased: Collection[str] = ("branch.a", "up", "fc")
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.branch: nn.Module = Branch(stem, a, biased)
        self.up = nn.ConvTranspose2d(stem, up, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(4 * up, 10, bias="fc" in biased)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.up(self.branch(self.norm(self.stem(x)).relu()))).flatten(1))


CONV_X = torch.zeros(1, 3, 8, 8)


def conv_channels(model: ConvNet) -> ChannelMap:
    stem, a, up = range(6), range(8), range(4)
    tensors = (
        tensor(model, "stem.weight", 64, axis("stem", 0, stem)),
        *(tensor(model, f"norm.{leaf}", 0, axis("stem", 0, stem)) for leaf in ("weight", "bias")),
        tensor(model, "norm.running_mean", 0, axis("stem", 0, stem), is_parameter=False),
        tensor(model, "branch.a.weight", 64, axis("a", 0, a), axis("stem", 1, stem, "input")),
        tensor(model, "branch.a.bias", 0, axis("a", 0, a)),
        *(tensor(model, f"branch.norm.{leaf}", 0, axis("a", 0, a)) for leaf in ("weight", "bias")),
        tensor(model, "branch.dw.weight", 64, axis("a", 0, a)),
        tensor(model, "branch.b.weight", 64, axis("stem", 0, stem), axis("a", 1, a, "input")),
        tensor(model, "up.weight", 64, axis("stem", 0, stem, "input"), axis("up", 1, up)),
        tensor(model, "up.bias", 0, axis("up", 0, up)),
        tensor(model, "fc.weight", 1, axis("up", 1, [i // 4 for i in range(16)], "input")),
    )
    inside = counted(model.branch, torch.zeros(1, 6, 8, 8))
    return ChannelMap(
        groups={
            "stem": group("stem", 6, ["stem", "branch.b"], ["branch.a", "up"]),
            "a": group("a", 8, ["branch.a", "branch.dw"], ["branch.b"]),
            "up": group("up", 4, ["up"], ["fc"]),
        },
        tensors={one.name: one for one in tensors},
        blocks={
            "branch": BlockSpec(name="branch", macs=inside.macs, params=inside.params, bytes=inside.bytes)
        },
    )


def group(name: str, units: int, producers: Sequence[str], consumers: Sequence[str]) -> GroupSpec:
    return GroupSpec(
        name=name, units=units, unit_width=1, producers=tuple(producers), consumers=tuple(consumers)
    )


@dataclass(frozen=True)
class Asked:
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    pairs: Mapping[str, Setting] = field(default_factory=dict)


V_H = Setting(method="spatial_svd", form="v_h", rank=3)
KXK = Setting(method="weight_svd", form="kxk_1x1", rank=2)
LINEAR = Setting(method="weight_svd", form="linear", rank=3)

CONV_CASES = {
    "nothing": Asked(),
    "one group": Asked({"a": (0, 3, 5)}),
    "one unit": Asked({"up": (2,)}),
    "a residual stream": Asked({"stem": (1, 2, 4, 5)}),
    "all groups": Asked({"stem": (0, 1), "a": (0, 1, 2, 3, 4, 5, 6), "up": (1, 3)}),
    "all units of a group": Asked({"a": tuple(range(8))}),
    "a pair alone": Asked(pairs={"branch.a": V_H, "fc": LINEAR}),
    "pairs in slimmed groups": Asked(
        {"stem": (0, 1, 5), "a": (0, 2, 4, 7), "up": (0, 3)}, pairs={"branch.a": V_H, "fc": LINEAR}
    ),
    "a pair that makes and one that reads": Asked({"a": (1, 2, 3)}, pairs={"stem": KXK, "branch.b": KXK}),
    "a block": Asked(dropped=("branch",)),
    "a block whose channels are slimmed outside too": Asked({"stem": (0, 1, 2)}, dropped=("branch",)),
    "everything": Asked(
        {"stem": (0, 1, 2), "up": (0, 1, 2)}, dropped=("branch",), pairs={"stem": V_H, "fc": LINEAR}
    ),
}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", CONV_CASES)
def test_a_slimmed_convolution_net_costs_what_torch_counts(name: str, has_bias: bool) -> None:
    asked = CONV_CASES[name]
    model = ConvNet()
    channels, layers = conv_channels(model), layers_of(model, CONV_X)
    found = model_cost(
        counted(model, CONV_X),
        layers,
        channels,
        settings=asked.pairs,
        kept=asked.kept,
        dropped=asked.dropped,
        has_bias=has_bias,
    )
    widths = {key: len(units) for key, units in asked.kept.items()}
    narrow = ConvNet(**widths, biased=_biased(channels, layers, asked, has_bias))
    for block in asked.dropped:
        setattr(narrow, block, nn.Identity())
    _put_pairs(narrow, layers, asked, has_bias)
    assert found == counted(narrow, CONV_X)


def _biased(channels: ChannelMap, layers: Mapping[str, LayerSpec], asked: Asked, has_bias: bool) -> set[str]:
    """Layers that have a bias of their own, or get one when they are fitted to fewer channels."""
    own = {name for name, spec in layers.items() if spec.has_bias}
    slimmed = [one for one in channels.groups.values() if len(asked.kept.get(one.name, ())) % one.units]
    return own | {name for one in slimmed for name in one.consumers if has_bias}


def _put_pairs(narrow: nn.Module, layers: Mapping[str, LayerSpec], asked: Asked, has_bias: bool) -> None:
    for name, setting in asked.pairs.items():
        old = narrow.get_submodule(name)
        bias, rank = has_bias or layers[name].has_bias, setting.rank
        if isinstance(old, nn.Linear):
            pair = nn.Sequential(
                nn.Linear(old.in_features, rank, bias=False), nn.Linear(rank, old.out_features, bias=bias)
            )
        else:
            assert isinstance(old, nn.Conv2d)
            size, pad = old.kernel_size[0], old.padding[0]
            first = ((size, 1), (pad, 0)) if setting.form == "v_h" else ((size, size), (pad, pad))
            second = ((1, size), (0, pad)) if setting.form == "v_h" else ((1, 1), (0, 0))
            pair = nn.Sequential(
                nn.Conv2d(old.in_channels, rank, first[0], padding=first[1], bias=False),
                nn.Conv2d(rank, old.out_channels, second[0], padding=second[1], bias=bias),
            )
        narrow.set_submodule(name, pair)


class Attention(nn.Module):
    """Heads whose queries and keys have a width of their own, then a gated network."""

    def __init__(
        self, heads: int = 4, qk: int = 6, neurons: int = 20, biased: Collection[str] = ("q", "k", "v")
    ) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = (nn.Linear(16, heads * qk, bias=True) for _ in range(2))
        self.v = nn.Linear(16, heads * 4)
        self.proj = nn.Linear(heads * 4, 16, bias="proj" in biased)
        self.gate, self.rise = (nn.Linear(16, neurons, bias=False) for _ in range(2))
        self.down = nn.Linear(neurons, 16, bias="down" in biased)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            # (N, heads, T, width)
            one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.gate(x).sigmoid() * self.rise(x))


ATTENTION_X = torch.zeros(1, 5, 16)


def attention_channels(model: Attention) -> ChannelMap:
    head_of_qk, width_of_qk = [i // 6 for i in range(24)], [i % 6 for i in range(24)]
    head_of_v = [i // 4 for i in range(16)]
    tensors = [
        tensor(model, "v.weight", 5, axis("v", 0, head_of_v)),
        tensor(model, "v.bias", 0, axis("v", 0, head_of_v)),
        tensor(model, "proj.weight", 5, axis("v", 1, head_of_v, "input")),
        tensor(model, "gate.weight", 5, axis("gate", 0, range(20))),
        tensor(model, "rise.weight", 5, axis("gate", 0, range(20))),
        tensor(model, "down.weight", 5, axis("gate", 1, range(20), "input")),
    ]
    for name, positions in (("weight", 5), ("bias", 0)):
        for layer in "qk":
            axes = axis("v", 0, head_of_qk), axis("q", 0, width_of_qk)
            tensors.append(tensor(model, f"{layer}.{name}", positions, *axes))
    return ChannelMap(
        groups={
            "q": GroupSpec(
                name="q", units=6, unit_width=4, producers=("q", "k"), consumers=(), is_inner=True
            ),
            "v": group("v", 4, ["q", "k", "v"], ["proj"]),
            "gate": group("gate", 20, ["gate", "rise"], ["down"]),
        },
        tensors={one.name: one for one in tensors},
        products=(
            ProductSpec(module="", macs=4 * 5 * 5 * 6, groups=("v", "q")),
            ProductSpec(module="", macs=4 * 5 * 5 * 4, groups=("v",)),
        ),
    )


ATTENTION_CASES = {
    "heads": Asked({"v": (0, 2, 3)}),
    "width of queries and keys": Asked({"q": (1, 2)}),
    "neurons": Asked({"gate": tuple(range(0, 20, 3))}),
    "all": Asked({"v": (1,), "q": (0, 1, 2, 3, 5), "gate": tuple(range(13))}),
    "all, with pairs": Asked(
        {"v": (1, 2), "q": (0, 4), "gate": tuple(range(13))},
        pairs={"q": LINEAR, "proj": LINEAR, "gate": LINEAR},
    ),
}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_a_slimmed_attention_costs_what_torch_counts(name: str, has_bias: bool) -> None:
    asked = ATTENTION_CASES[name]
    model = Attention()
    channels, layers = attention_channels(model), layers_of(model, ATTENTION_X)
    found = model_cost(
        counted(model, ATTENTION_X),
        layers,
        channels,
        settings=asked.pairs,
        kept=asked.kept,
        dropped=(),
        has_bias=has_bias,
    )
    widths = {"v": "heads", "q": "qk", "gate": "neurons"}
    sizes = {widths[key]: len(units) for key, units in asked.kept.items()}
    narrow = Attention(**sizes, biased=tuple(_biased(channels, layers, asked, has_bias)))
    _put_pairs(narrow, layers, asked, has_bias)
    assert found == counted(narrow, ATTENTION_X)


@pytest.mark.parametrize("name", CONV_CASES)
def test_slimmed_layers_cost_what_torch_counts(name: str) -> None:
    asked = CONV_CASES[name]
    model = ConvNet()
    channels, layers = conv_channels(model), layers_of(model, CONV_X)
    narrow = ConvNet(**{key: len(units) for key, units in asked.kept.items()})
    expected = layers_of(narrow, CONV_X)
    for layer, spec in layers.items():
        slimmed, narrowed = slimmed_spec(spec, channels, asked.kept), expected[layer]
        # What stands where in the shapes of an unknown kind is unknown too.
        assert slimmed == (replace(narrowed, calls=spec.calls) if spec.kind == "other" else narrowed)
        assert layer_cost(slimmed) == layer_cost(narrowed)


def test_a_grouped_convolution_loses_whole_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1))
    x = torch.zeros(1, 3, 6, 6)
    of_8, of_12 = [i // 2 for i in range(8)], [i // 3 for i in range(12)]
    tensors = (
        tensor(model, "0.weight", 36, axis("0", 0, of_8)),
        tensor(model, "0.bias", 0, axis("0", 0, of_8)),
        tensor(model, "1.weight", 16, axis("0", 0, of_12)),
        tensor(model, "1.bias", 0, axis("0", 0, of_12)),
        tensor(model, "2.weight", 16, axis("0", 1, of_12, "input")),
    )
    channels = ChannelMap(
        groups={"0": group("0", 4, ["0", "1"], ["2"])}, tensors={one.name: one for one in tensors}
    )
    layers = layers_of(model, x)
    narrow = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 5, 1))
    assert [slimmed_spec(spec, channels, {"0": (0, 3)}) for spec in layers.values()] == list(
        layers_of(narrow, x).values()
    )
    found = model_cost(
        counted(model, x), layers, channels, settings={}, kept={"0": (0, 3)}, dropped=(), has_bias=True
    )
    assert found == counted(narrow, x)
