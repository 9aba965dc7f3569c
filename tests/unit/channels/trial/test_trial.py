# SPDX-License-Identifier: Apache-2.0
"""Trial slimming by hand-written maps: sizes that are found, and what freezes a group."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seams
from slimrank.capture import describe_layers
from slimrank.channels import read_groups, try_groups
from slimrank.forward import as_batch
from slimrank.records import Call, ChannelMap, ProductSpec
from slimrank.surgery import mask, quiet_copy, slim

_X = torch.linspace(-1, 1, 2 * 5 * 8).reshape(2, 5, 8)


class _Block(nn.Module):
    """Attention whose heads are cut by attributes, and a net of two layers."""

    def __init__(self, width: int = 8, heads: int = 4, inner: int = 24) -> None:
        super().__init__()
        self.num_heads = heads
        self.all_width = inner
        self.unrelated = heads
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.proj = nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            layer(x).view(n, length, self.num_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=0.4)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, length, self.all_width))
        return x + self.down(functional.gelu(self.up(x)))


def _block_axes(prefix: str, heads: int = 4, inner: int = 24) -> tuple[dict, dict]:
    units = [index * heads // inner for index in range(inner)]
    h, m = f"{prefix}query", f"{prefix}up"
    axes = {
        f"{prefix}{name}.{kind}": [(h, 0, "output", units)]
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    axes[f"{prefix}proj.weight"] = [(h, 1, "input", units)]
    axes |= {f"{prefix}up.{kind}": [(m, 0, "output", range(16))] for kind in ("weight", "bias")}
    axes[f"{prefix}down.weight"] = [(m, 1, "input", range(16))]
    return axes, {h: (heads, f"{prefix}proj"), m: (16, f"{prefix}down")}


def _blocks_map(
    model: nn.Module, prefixes: Sequence[str], map_of: Callable, group_of: Callable
) -> ChannelMap:
    axes: dict = {}
    groups = []
    for prefix in prefixes:
        own, units = _block_axes(prefix)
        axes |= own
        groups += [
            group_of(name, count, producers=(name,), consumers=(last,))
            for name, (count, last) in units.items()
        ]
    return map_of(model, groups, axes)


def test_a_model_without_sizes_passes_as_it_is(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    axes = {
        "0.weight": [("0", 0, "output", range(16))],
        "0.bias": [("0", 0, "output", range(16))],
        "2.weight": [("0", 1, "input", range(16)), ("2", 0, "output", range(12))],
        "2.bias": [("2", 0, "output", range(12))],
        "4.weight": [("2", 1, "input", range(12))],
    }
    groups = [group_of("0", 16, consumers=("2",)), group_of("2", 12, consumers=("4",))]
    channels = map_of(model, groups, axes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert try_groups(model, as_batch(_X), channels) == channels
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_sizes_are_found_once_and_then_known(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(*[_Block() for _ in range(4)])
    channels = _blocks_map(model, ["0.", "1.", "2.", "3."], map_of, group_of)
    tried = try_groups(model, as_batch(_X), channels)
    for index in range(4):
        assert tried.groups[f"{index}.query"].sizes == (
            (f"{index}", "num_heads"),
            (f"{index}", "all_width"),
        )
        assert tried.groups[f"{index}.up"].sizes == ()
    assert all(group.reason is None for group in tried.groups.values())
    kept = {f"{index}.query": [3] for index in range(4)}
    slim(model, tried, kept)
    assert model(_X).shape == _X.shape
    assert (model[2].num_heads, model[2].all_width, model[2].unrelated) == (1, 6, 4)


class _Fixed(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], last: int = 12) -> None:
        super().__init__()
        self.between = between
        self.first, self.second = nn.Linear(8, 12), nn.Linear(last, 8)
        self.third, self.fourth = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(x)))
        return self.fourth(self.third(x).relu())


def _fixed_map(model: nn.Module, map_of: Callable, group_of: Callable, **fields: object) -> ChannelMap:
    axes = {
        "first.weight": [("first", 0, "output", range(12))],
        "first.bias": [("first", 0, "output", range(12))],
        "second.weight": [("first", 1, "input", range(12))],
        "third.weight": [("third", 0, "output", range(10))],
        "third.bias": [("third", 0, "output", range(10))],
        "fourth.weight": [("third", 1, "input", range(10))],
    }
    groups = [
        group_of("first", 12, consumers=("second",), **fields),
        group_of("third", 10, consumers=("fourth",)),
    ]
    return map_of(model, groups, axes)


def test_a_hard_wired_size_freezes_its_group_alone(map_of: Callable, group_of: Callable) -> None:
    model = _Fixed(lambda y: y.view(2, 5, 12))
    channels = _fixed_map(model, map_of, group_of)
    products = (
        ProductSpec(module="", macs=1, groups=("first",)),
        ProductSpec(module="", macs=2, groups=("first", "third")),
    )
    channels = ChannelMap(groups=channels.groups, tensors=channels.tensors, products=products)
    tried = try_groups(model, as_batch(_X), channels)
    reason = tried.groups["first"].reason
    assert reason is not None
    assert reason.startswith("its size is hard-wired: RuntimeError: shape '[2, 5, 12]' is invalid for input")
    assert "test_trial.py:" in reason
    assert "lambda y: y.view(2, 5, 12)" in reason
    assert tried.groups["third"].reason is None
    assert set(tried.tensors) == {"third.weight", "third.bias", "fourth.weight"}
    assert tried.products == (ProductSpec(module="", macs=2, groups=("third",)),)


def test_code_that_computes_with_a_size_freezes_its_group(map_of: Callable, group_of: Callable) -> None:
    model = _Fixed(lambda y: y * y.shape[-1] ** -0.5)
    tried = try_groups(model, as_batch(_X), _fixed_map(model, map_of, group_of))
    reason = tried.groups["first"].reason
    assert reason is not None
    assert reason.startswith("the code computes with its size: slimmed and masked model differ by ")
    assert reason.endswith(" in the output of second")
    assert tried.groups["third"].reason is None


def test_what_cannot_be_trained_freezes_its_group(map_of: Callable, group_of: Callable) -> None:
    def between(y: Tensor) -> Tensor:
        return y.view(2, 5, 12) if torch.is_grad_enabled() else y

    model = _Fixed(between)
    tried = try_groups(model, as_batch(_X), _fixed_map(model, map_of, group_of))
    assert str(tried.groups["first"].reason).startswith(
        "it cannot be trained once slimmed: RuntimeError: shape"
    )


def test_what_the_original_cannot_do_is_not_asked_for(map_of: Callable, group_of: Callable) -> None:
    def between(y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("for inference only")
        return y

    model = _Fixed(between)
    tried = try_groups(model, as_batch(_X), _fixed_map(model, map_of, group_of))
    assert tried.groups["first"].reason is None


def test_groups_that_must_lose_as_much_are_frozen(map_of: Callable, group_of: Callable) -> None:
    """Slimmed alike they would pass; their widths are chosen apart."""
    # What the halves are multiplied by depends on where they are cut.
    model = _Fixed(lambda y: torch.cat([y.chunk(2, -1)[0] * 2, y.chunk(2, -1)[1]], -1))
    halves = {"a": [*range(6), *[-1] * 6], "b": [*[-1] * 6, *range(6)]}
    axes = {
        f"first.{kind}": [(name, 0, "output", units) for name, units in halves.items()]
        for kind in ("weight", "bias")
    }
    axes["second.weight"] = [(name, 1, "input", units) for name, units in halves.items()]
    groups = [group_of(name, 6, consumers=("second",)) for name in halves]
    tried = try_groups(model, as_batch(_X), map_of(model, groups, axes))
    assert all("computes with its size" in str(group.reason) for group in tried.groups.values())
    assert not tried.tensors


def test_a_single_unit_stays(map_of: Callable, group_of: Callable) -> None:
    model = _Fixed(lambda y: y)
    axes = {
        "first.weight": [("first", 0, "output", [0] * 12)],
        "second.weight": [("first", 1, "input", [0] * 12)],
    }
    tried = try_groups(model, as_batch(_X), map_of(model, [group_of("first", 1)], axes))
    assert tried.groups["first"].reason == "it is a single unit"


def test_frozen_groups_keep_their_reason(map_of: Callable, group_of: Callable) -> None:
    model = _Fixed(lambda y: y)
    channels = _fixed_map(model, map_of, group_of, reason="it is the output")
    tried = try_groups(model, as_batch(_X), channels)
    assert tried.groups["first"].reason == "it is the output"


def test_modules_without_tensors_have_sizes_too(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 12, 1),
        nn.GroupNorm(4, 12, affine=False),
        nn.Unflatten(1, (4, 3)),
        nn.Flatten(1, 2),
        nn.Conv2d(12, 2, 1),
    )
    units = [index // 3 for index in range(12)]
    axes = {
        "0.weight": [("0", 0, "output", units)],
        "0.bias": [("0", 0, "output", units)],
        "4.weight": [("0", 1, "input", units)],
    }
    x = torch.linspace(-1, 1, 2 * 2 * 9).reshape(2, 2, 3, 3).sin()
    tried = try_groups(
        model, as_batch(x), map_of(model, [group_of("0", 4, unit_width=3, consumers=("4",))], axes)
    )
    assert set(tried.groups["0"].sizes) == {("1", "num_groups"), ("2", "unflattened_size[0]")}


def test_instance_norms_that_only_warn_get_their_size(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Conv2d(2, 12, 1), nn.InstanceNorm2d(12), nn.Conv2d(12, 2, 1))
    axes = {
        "0.weight": [("0", 0, "output", range(12))],
        "0.bias": [("0", 0, "output", range(12))],
        "2.weight": [("0", 1, "input", range(12))],
    }
    x = torch.linspace(-1, 1, 2 * 2 * 9).reshape(2, 2, 3, 3).sin()
    tried = try_groups(model, as_batch(x), map_of(model, [group_of("0", 12)], axes))
    assert tried.groups["0"].sizes == (("1", "num_features"),)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bias": False},
        {"kdim": 5, "vdim": 3},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
)
def test_heads_of_torchs_attention_go_and_so_does_their_width(options: dict) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 12)
            self.attn = nn.MultiheadAttention(12, 3, **options)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            key, value = x[..., : self.attn.kdim], x[..., : self.attn.vdim]
            return self.attn(x, key, value, need_weights=False)[0]

    model = Net()
    tried = _tried(model, _X)
    live = {name: group for name, group in tried.groups.items() if group.producers == ("attn",)}
    live = {name: group for name, group in live.items() if group.reason is None}
    assert sorted(group.units for group in live.values())[0] == 3
    _check_exact(model, tried, {name: range(1, group.units) for name, group in live.items()}, _X)


def test_attention_whose_weights_are_asked_for_keeps_its_heads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mixed, weights = self.attn(x, x, x)
            return mixed + weights[..., :1]

    model = Net()
    tried = _tried(model, _X)
    live = {name: group.units for name, group in tried.groups.items() if group.reason is None}
    # The width of all heads may go: the weights stay what they are.
    assert live == {"attn": 2}
    _check_exact(model, tried, {"attn": [1]}, _X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, map_of: Callable, group_of: Callable) -> None:
    model = _Block().to(dtype)
    tried = try_groups(model, as_batch(_X.to(dtype)), _blocks_map(model, [""], map_of, group_of))
    assert all(group.reason is None for group in tried.groups.values())


def test_rounding_that_a_net_blows_up_is_not_a_difference(map_of: Callable, group_of: Callable) -> None:
    class Chaotic(_Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) * 3e4).sin()

    model = Chaotic(lambda y: y)
    torch.manual_seed(0)
    tried = try_groups(model, as_batch(_X), _fixed_map(model, map_of, group_of))
    assert [group.reason for group in tried.groups.values()] == [None, None]


def test_outputs_that_jump_are_compared_exactly(map_of: Callable, group_of: Callable) -> None:
    """A detector's boxes in the order of scores that rounding can swap."""

    class Ordered(_Fixed):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            scores = (y * 1e5).sum(-1).cos()
            return y.flatten(0, 1)[scores.flatten().argsort()]

    model = Ordered(lambda y: y)
    tried = try_groups(model, as_batch(_X), _fixed_map(model, map_of, group_of))
    assert [group.reason for group in tried.groups.values()] == [None, None]


def test_layers_that_run_another_number_of_times_freeze(map_of: Callable, group_of: Callable) -> None:
    class Repeated(_Fixed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            out = self.second(y)
            return out if y.shape[-1] == 12 else self.second(y)

    model = Repeated(lambda y: y)
    axes = {
        "first.weight": [("first", 0, "output", range(12))],
        "first.bias": [("first", 0, "output", range(12))],
    }
    axes["second.weight"] = [("first", 1, "input", range(12))]
    channels = map_of(model, [group_of("first", 12, consumers=("second",))], axes)
    reason = str(try_groups(model, as_batch(_X), channels).groups["first"].reason)
    assert reason == "the code computes with its size: second is called another number of times"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y, _n: y[:1], r"the output is \(1, 5, 8\), and \(2, 5, 8\) in the masked model"),
        (lambda y, _n: (y, y), "the slimmed model returns other outputs"),
        (lambda y, n: y / (n - n), "the output holds nan or inf at other places"),
    ],
)
def test_outputs_of_another_kind_freeze(
    change: Callable, match: str, map_of: Callable, group_of: Callable
) -> None:
    class Changed(_Fixed):
        def forward(self, x: Tensor) -> object:
            y = self.first(x)
            out = self.second(y)
            return out if y.shape[-1] == 12 else change(out, y.shape[-1])

    model = Changed(lambda y: y)
    rows = [("first", 0, "output", range(12))]
    axes = {"first.weight": rows, "first.bias": rows, "second.weight": [("first", 1, "input", range(12))]}
    tried = try_groups(model, as_batch(_X), map_of(model, [group_of("first", 12)], axes))
    with pytest.raises(ValueError, match=match):
        raise ValueError(tried.groups["first"].reason)


def _tried(model: nn.Module, x: Tensor) -> ChannelMap:
    """Groups as they are read and tried; every layer of these nets is called once, in order."""
    batch, once = as_batch(x), (Call(input_shape=(), output_shape=()),)
    layers = [replace(layer, calls=once) for layer in describe_layers(model)]
    return try_groups(model, batch, read_groups(quiet_copy(model), batch, layers))


def _check_exact(model: nn.Module, channels: ChannelMap, kept: dict[str, Sequence[int]], x: Tensor) -> None:
    slimmed, masked = quiet_copy(model), quiet_copy(model)
    slim(slimmed, channels, kept)
    mask(masked, channels, kept)
    torch.testing.assert_close(slimmed(x), masked(x), rtol=1e-4, atol=1e-5)


class _Attention(nn.Module):
    """Queries, keys and values cut by one width; the scale is a number of its own."""

    def __init__(self, heads: int = 4, head_dim: int = 6, kv_heads: int = 4) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = heads
        self.num_key_value_heads = kv_heads
        self.scaling = 0.4
        self.q, self.k = nn.Linear(8, heads * head_dim), nn.Linear(8, kv_heads * head_dim)
        self.v, self.out = nn.Linear(8, kv_heads * head_dim), nn.Linear(heads * head_dim, 8)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_widths_that_the_code_ties_become_one_group() -> None:
    model = nn.Sequential(_Attention(), _Attention())
    tried = _tried(model, _X)
    for index in range(2):
        width = next(group for group in tried.groups.values() if group.sizes == ((f"{index}", "head_dim"),))
        assert width.units == 6
        assert width.is_inner
        assert set(width.producers) == {f"{index}.q", f"{index}.k", f"{index}.v"}
        assert width.consumers == (f"{index}.out",)
    live = {name: group for name, group in tried.groups.items() if group.reason is None}
    assert sorted(group.units for group in live.values()) == [4, 4, 6, 6]
    _check_exact(model, tried, {name: range(1, group.units, 2) for name, group in live.items()}, _X)


class _Classic(nn.Module):
    """Attention of classic vision transformers: the last reshape ties all heads to the width of the input."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.join = 4, 6, join
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2)
        return x + self.proj(self.join(mixed, x))


def _classic(join: Callable[[Tensor, Tensor], Tensor], blocks: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), *[_Classic(join) for _ in range(blocks)], nn.Linear(24, 3))


def test_the_error_that_the_best_sizes_leave_is_told() -> None:
    # Without sizes, the first reshape of the heads would fail. Four blocks: the search is given up after two.
    tried = _tried(_classic(lambda mixed, x: mixed.reshape(x.shape), 4), _X)
    reasons = {name: group.reason for name, group in tried.groups.items() if "qkv" in name}
    assert len(reasons) >= 8
    for name, reason in reasons.items():
        assert reason is not None, name
        assert "`tried = _tried(_classic(lambda mixed, x: mixed.reshape(x.shape), 4), _X)`" in reason, name
        assert reason.endswith("; flatten there, or give -1 for this size"), name


def test_flattening_frees_all_heads() -> None:
    model = _classic(lambda mixed, _x: mixed.flatten(2), 2)
    tried = _tried(model, _X)
    live = {name: group for name, group in tried.groups.items() if group.reason is None}
    assert sorted(group.units for group in live.values()) == [4, 4, 6, 6, 24]
    _check_exact(model, tried, {name: range(1, group.units, 2) for name, group in live.items()}, _X)


def _first_doubled(y: Tensor) -> Tensor:
    return torch.where(torch.arange(y.shape[-1]) < 1, 2 * y, y)


def _last_doubled(y: Tensor) -> Tensor:
    return torch.where(torch.arange(y.shape[-1]) == y.shape[-1] - 1, 2 * y, y)


def _odd_doubled(y: Tensor) -> Tensor:
    return torch.where(torch.arange(y.shape[-1]) % 2 == 1, 2 * y, y)


@pytest.mark.parametrize(
    "between",
    [
        _first_doubled,
        _last_doubled,
        _odd_doubled,
        lambda y: y[..., ::2],
        lambda y: y[..., : y.shape[-1] // 2],
        lambda y: y * torch.linspace(1, 2, y.shape[-1]),
    ],
    ids=["first", "last", "odd ones", "every second", "half", "ramp"],
)
@pytest.mark.parametrize("units", [2, 3, 5, 8, 9])
def test_code_that_looks_at_places_of_channels_freezes_them(between: Callable, units: int) -> None:
    """Or whatever may go leaves the others what they are: which units stay in a trial is no luck."""
    torch.manual_seed(0)
    # What is drawn depends on the name.
    for name in ("body", "q", "up", "fc1"):
        model = nn.Sequential()
        model.add_module(name, nn.Linear(8, units))
        model.add_module("between", _Between(between))
        model.add_module("end", nn.Linear(between(torch.zeros(1, units)).shape[-1], 3))
        tried = _tried(model, _X)
        live = [group for group in tried.groups.values() if group.reason is None]
        choices = (
            [*itertools.combinations(range(group.units), 2), (0,), (group.units - 1,)] for group in live
        )
        for kept in itertools.product(*choices):
            _check_exact(model, tried, {g.name: units for g, units in zip(live, kept, strict=True)}, _X)


class _Between(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = between


class _Encoder(_Attention):
    """Heads and width both written out: queries, keys and values are cut by one line, with two attributes."""

    scale: float | None = 0.4

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            layer(x).view(n, length, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class _EncoderToldNothing(_Encoder):
    scale = None


@pytest.mark.parametrize("kind", [_Encoder, _EncoderToldNothing])
@pytest.mark.parametrize("blocks", [1, 3])
def test_widths_that_one_line_cuts_become_one_group(kind: type[_Encoder], blocks: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[kind() for _ in range(blocks)])
    tried = _tried(model, _X)
    live = {name: group for name, group in tried.groups.items() if group.reason is None}
    sizes = [((f"{i}", size),) for i in range(blocks) for size in ("num_heads", "head_dim")]
    assert [group.sizes for group in live.values()] == sizes
    assert set(_queries(tried)) == {
        f"{i}.q.{leaf}" for i in range(blocks) for leaf in ("weight", "bias") if kind.scale is None
    }
    _check_exact(model, tried, {name: range(1, group.units, 2) for name, group in live.items()}, _X)


class _Grouped(_Attention):
    """Several query heads read one head of keys and values; sizes come from attributes."""

    def __init__(self) -> None:
        super().__init__(heads=8, head_dim=3, kv_heads=2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.num_heads, -1).transpose(1, 2)
        k, v = (layer(x).view(n, length, self.num_key_value_heads, -1) for layer in (self.k, self.v))
        k, v = (part.transpose(1, 2).repeat_interleave(4, dim=1) for part in (k, v))
        mixed = ((q @ k.transpose(2, 3)) * self.scaling).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(n, length, -1))


def test_heads_that_share_keys_go_together() -> None:
    model = nn.Sequential(_Grouped())
    tried = _tried(model, _X)
    heads = next(group for group in tried.groups.values() if group.units == 2 and group.reason is None)
    assert set(heads.sizes) == {("0", "num_heads"), ("0", "num_key_value_heads")}
    _check_exact(model, tried, {heads.name: [1]}, _X)


class _Matrix(nn.Module):
    """A layer that is none of torch's, and keeps its output size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.linspace(-1, 1, inputs * outputs).sin().reshape(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(0, 1) @ self.weight).view(*x.shape[:2], self.nf)


class _Fused(nn.Module):
    """Queries, keys and values by one such layer, split by an attribute that is as large as the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = self.split_size = 24
        self.head_dim = 6
        self.c_attn, self.c_proj = _Matrix(24, 72), _Matrix(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.c_attn(x).split(self.split_size, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=0.4)
        return x + self.c_proj(mixed.transpose(1, 2).flatten(2))


def test_sizes_of_readers_that_only_look_alike_stay() -> None:
    model = nn.Sequential(nn.Linear(8, 24), _Fused(), nn.Linear(24, 8))
    tried = _tried(model, _X)
    heads = next(group for group in tried.groups.values() if group.units == 4)
    assert set(heads.sizes) == {("1", "split_size"), ("1.c_attn", "nf")}
    _check_exact(model, tried, {heads.name: [0, 3]}, _X)


def test_torchs_fused_layers_are_tried_as_well() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=False)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    tried = _tried(model, _X)
    inner = [group for group in tried.groups.values() if group.reason is None]
    assert [group.units for group in inner] == [2, 4, 16] * 2
    _check_exact(model, tried, {group.name: range(1, group.units) for group in inner}, _X)


class _Scaled(_Attention):
    """Attention that takes its scale from the width of a head, in one of several ways."""

    def __init__(self, mix: Callable, *, is_fused: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.mix = mix
        self.scale = self.head_dim**-0.5
        if is_fused:
            del self.q, self.k, self.v
            self.qkv = nn.Linear(8, 72, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(self.mix(self, q, k, v).transpose(1, 2).flatten(2))


def _told_nothing(_net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def _told(net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, scale=net.scale)


def _by_size(_net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (4 * q @ k.mT * q.size(-1) ** -0.5).softmax(-1) @ v


def _by_attribute(net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhqd,nhkd->nhqk", 4 * q, k) / math.sqrt(net.head_dim)
    return torch.einsum("nhqk,nhkd->nhqd", scores.softmax(-1), v)


def _by_number(net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(torch.matmul(4 * q * net.scale, k.transpose(2, 3)).softmax(-1), v)


def _almost_even(net: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _told_nothing(net, q, 1e-9 * k, v)


def _queries(channels: ChannelMap) -> dict[str, tuple[int, ...]]:
    axes = {tensor.name: axis for tensor in channels.tensors.values() for axis in tensor.axes if axis.queries}
    return {name: axis.queries for name, axis in axes.items()}


@pytest.mark.parametrize("mix", [_told_nothing, _by_size, _by_attribute, _almost_even])
@pytest.mark.parametrize("is_fused", [False, True])
def test_queries_make_up_for_a_scale_taken_from_the_width(mix: Callable, is_fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[_Scaled(mix, is_fused=is_fused) for _ in range(2)])
    tried = _tried(model, _X)
    live = {name: group for name, group in tried.groups.items() if group.reason is None}
    assert sorted(group.units for group in live.values()) == [4, 4, 6, 6]
    layer = "qkv" if is_fused else "q"
    # Of queries, keys and values in one layer the first third.
    expected = {f"{i}.{layer}.{kind}": tuple(range(24)) for i in range(2) for kind in ("weight", "bias")}
    assert _queries(tried) == expected
    kept = {name: range(1, group.units, 2) for name, group in live.items()}
    _check_exact(model, tried, kept, _X)
    slimmed = quiet_copy(model)
    slim(slimmed, tried, {f"0.{layer}#2": [0, 2, 5]})
    rows = [i for i in range(24) if i % 6 in (0, 2, 5)]
    weight, before = (net[0].get_submodule(layer).weight.detach() for net in (slimmed, model))
    torch.testing.assert_close(weight[:12], before[rows] * 0.5**0.5)
    if is_fused:
        torch.testing.assert_close(weight[12:24], before[[24 + i for i in rows]])


@pytest.mark.parametrize("mix", [_told, _by_number])
def test_a_scale_that_is_a_number_stays(mix: Callable) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Scaled(mix, is_fused=True))
    tried = _tried(model, _X)
    live = [group for group in tried.groups.values() if group.reason is None]
    assert sorted(group.units for group in live) == [4, 6]
    assert not _queries(tried)
    _check_exact(model, tried, {group.name: range(3) for group in live}, _X)


def test_queries_that_are_keys_as_well_freeze_their_width() -> None:
    model = nn.Sequential(_Scaled(lambda net, q, _k, v: _told_nothing(net, q, q, v), is_fused=True))
    tried = _tried(model, _X)
    reasons = [str(group.reason) for group in tried.groups.values() if group.units == 6]
    told = "the code computes with its size: scaled_dot_product_attention, told no scale, divides by"
    assert any(reason.startswith(told) for reason in reasons)
    assert not _queries(tried)


def test_queries_are_found_once_and_then_known(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trials: list[int] = []
    tried = seams.watch_trials(monkeypatch)
    for blocks in (4, 8):
        tried.clear()
        model = nn.Sequential(*[_Scaled(_told_nothing, is_fused=True) for _ in range(blocks)])
        assert len(_queries(_tried(model, _X))) == 2 * blocks
        trials.append(len(tried))
    assert 0 < trials[1] < 1.5 * trials[0]


def test_layers_that_run_twice_make_queries_both_times() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = _Scaled(_told_nothing, is_fused=True, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    tried = _tried(Twice(), _X)
    assert _queries(tried) == {"block.qkv.weight": tuple(range(24))}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_queries_are_found_in_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Scaled(_told_nothing, is_fused=True)).to(dtype)
    assert set(_queries(_tried(model, _X.to(dtype)))) == {"0.qkv.weight", "0.qkv.bias"}


def test_a_fused_layer_that_computes_something_else_freezes(
    map_of: Callable, group_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    rows = [("0.linear1", 0, "output", range(16))]
    axes = {"0.linear1.weight": rows, "0.linear1.bias": rows}
    axes["0.linear2.weight"] = [("0.linear1", 1, "input", range(16))]
    channels = map_of(model, [group_of("0.linear1", 16, consumers=("0.linear2",))], axes)
    assert try_groups(model, as_batch(_X), channels).groups["0.linear1"].reason is None
    calls = []
    plain = nn.TransformerEncoderLayer.forward

    def forward(self: nn.TransformerEncoderLayer, src: Tensor) -> Tensor:
        is_slim, is_fused = self.linear1.out_features < 16, torch.backends.mha.get_fastpath_enabled()
        calls.append((is_slim, is_fused))
        if is_slim and is_fused and not self.training:
            raise RuntimeError("no such kernel")
        return plain(self, src)

    monkeypatch.setattr(nn.TransformerEncoderLayer, "forward", forward)
    tried = try_groups(model, as_batch(_X), channels)
    assert str(tried.groups["0.linear1"].reason).startswith(
        "its size is hard-wired: RuntimeError: no such kernel"
    )
    assert (True, True) in calls


class _Reshaped(nn.Module):
    """A constant that the code, or a vector of integers, brings to the shape of the channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.depthwise = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Conv2d(16, 5, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 16))
        self.register_buffer("bias", torch.linspace(-1, 1, 16))
        self.register_buffer("wanted", torch.tensor([1, 16, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "reshape":
            x = x + self.bias.reshape(1, 16, 1, 1)
        elif self.how == "index":
            x = x + self.bias[None, :, None, None]
        elif self.how == "expand":
            x = x + self.bias[None, :, None, None].expand(1, 16, 4, 4)
        elif self.how == "both":
            x = x * torch.reshape(2 * self.scale, (1, 16, 1, 1)) + self.bias.view(size=(1, 16, 1, 1))
        else:
            x = x + torch.reshape(self.bias, torch.Size(self.wanted))
        return self.head(self.depthwise(x.relu())).mean((2, 3))


_RESHAPED_X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def _tried_on(model: nn.Module) -> ChannelMap:
    batch = as_batch(_RESHAPED_X)
    return try_groups(model, batch, read_groups(quiet_copy(model), batch, describe_layers(model)))


def _reshaped(model: nn.Module) -> ChannelMap:
    tried = _tried_on(model)
    assert tried.groups["conv"].reason is None
    return tried


@pytest.mark.parametrize("how", ["reshape", "index", "expand", "both", "buffer"])
def test_the_shape_of_a_constant_follows_its_channels(how: str, rng: torch.Generator) -> None:
    model = _Reshaped(how).eval()
    tried = _reshaped(model)
    slimmed, masked, again = quiet_copy(model), quiet_copy(model), quiet_copy(model)
    slim(slimmed, tried, {"conv": (1, 2, 7, 11, 15)})
    mask(masked, tried, {"conv": (1, 2, 7, 11, 15)})
    x = torch.randn(3, 3, 6, 6, generator=rng)
    torch.testing.assert_close(slimmed(x), masked(x))
    # A copy of the slimmed model is one too, and its channels can go once more.
    again = quiet_copy(slimmed)
    slim(again, _reshaped(again), {"conv": (0, 3)})
    assert again.head.in_channels == 2
    assert again(x).shape == (3, 5)
    assert model.bias.shape == (16,)
    assert not model._forward_pre_hooks


def test_the_graph_of_a_traced_model_is_written_anew(rng: torch.Generator) -> None:
    traced = torch.fx.symbolic_trace(_Reshaped("both").eval())
    tried = _reshaped(traced)
    slimmed, masked = quiet_copy(traced), quiet_copy(traced)
    slim(slimmed, tried, {"conv": (1, 2, 7)})
    mask(masked, tried, {"conv": (1, 2, 7)})
    x = torch.randn(3, 3, 6, 6, generator=rng)
    torch.testing.assert_close(quiet_copy(slimmed)(x), masked(x))


def test_sizes_of_activations_stay_hard_wired() -> None:
    class Net(_Reshaped):
        def forward(self, x: Tensor) -> Tensor:
            x = (self.bias.reshape(1, 16, 1, 1) + self.conv(x)).reshape(-1, 16, 4, 4)
            return self.head(self.depthwise(x.relu())).mean((2, 3))

    reason = _tried_on(Net("").eval()).groups["conv"].reason
    assert reason is not None
    assert "hard-wired" in reason


class _Partial(nn.Module):
    """FasterNet's: the first channels are convolved, the others pass through."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.dim, self.rest = width // parts, width - width // parts
        self.conv = nn.Conv2d(self.dim, self.dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.dim, self.rest], dim=1)
        return torch.cat((self.conv(first), rest), 1)


class _Pass(nn.Module):
    """Channels only pass through, by a list of sizes, beside a layer that does not see them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = [width // 4, width - width // 4]
        self.extra = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x.split(self.parts, dim=1)
        return torch.cat((first * self.extra(first.new_ones(1)), rest), 1)


class _Stage(nn.Module):
    def __init__(self, parts: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(_Partial(16, parts), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize(
    "middle",
    [lambda: _Partial(16, 4), lambda: _Partial(16, 2), lambda: _Stage(4), lambda: _Pass(16)],
    ids=["one", "halves", "stage", "list"],
)
def test_sizes_in_modules_that_channels_pass_through(
    middle: Callable, rng: torch.Generator, request: pytest.FixtureRequest
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), middle(), nn.Conv2d(16, 5, 1)).eval()
    tried = _tried_on(model)
    stream = {
        axis.group
        for tensor in tried.tensors.values()
        if tensor.name == "0.weight"
        for axis in tensor.axes
        if axis.role == "output"
    }
    # Equal parts keep the same channels.
    assert len(stream) == (1 if request.node.callspec.id == "halves" else 2)
    assert all(tried.groups[name].reason is None for name in stream)
    assert any(tried.groups[name].sizes for name in stream)
    kept = {name: tuple(range(0, tried.groups[name].units, 2)) for name in stream}
    slimmed, masked = quiet_copy(model), quiet_copy(model)
    slim(slimmed, tried, kept)
    mask(masked, tried, kept)
    x = torch.randn(2, 3, 6, 6, generator=rng)
    torch.testing.assert_close(slimmed(x), masked(x), rtol=1e-4, atol=1e-5)


def test_sizes_that_fit_no_group_are_not_invented() -> None:
    class Fixed(_Pass):
        def forward(self, x: Tensor) -> Tensor:
            # 12 is written into the code, and 4 stands beside it.
            first, rest = x.split([self.parts[0], 12], dim=1)
            return torch.cat((first * self.extra(first.new_ones(1)), rest), 1)

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Fixed(16), nn.Conv2d(16, 5, 1)).eval()
    reasons = [group.reason for group in _tried_on(model).groups.values() if group.producers == ("0",)]
    assert any(reason is not None and "hard-wired" in reason for reason in reasons)
