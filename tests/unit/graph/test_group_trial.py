# SPDX-License-Identifier: Apache-2.0
"""Trial slimming by hand-written maps: sizes that are found, and what freezes a group."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimrank.graph import as_batch, slim, try_groups
from slimrank.records import ChannelMap, ProductSpec

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
    assert "test_group_trial.py:" in reason
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


def test_heads_of_torchs_attention_stay_and_say_so(map_of: Callable, group_of: Callable) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x, need_weights=False)[0]

    model = Net()
    heads = [index // 2 for index in range(8)]
    axes = {
        "attn.in_proj_weight": [("attn", 0, "output", heads * 3)],
        "attn.in_proj_bias": [("attn", 0, "output", heads * 3)],
        "attn.out_proj.weight": [("attn", 1, "input", heads)],
    }
    tried = try_groups(model, as_batch(_X), map_of(model, [group_of("attn", 4, unit_width=2)], axes))
    assert str(tried.groups["attn"].reason).startswith(
        "nn.MultiheadAttention takes the width of a head from its embed_dim: "
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, map_of: Callable, group_of: Callable) -> None:
    model = _Block().to(dtype)
    tried = try_groups(model, as_batch(_X.to(dtype)), _blocks_map(model, [""], map_of, group_of))
    assert all(group.reason is None for group in tried.groups.values())
