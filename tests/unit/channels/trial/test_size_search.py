# SPDX-License-Identifier: Apache-2.0
"""Which attributes may be sizes of a group, and the order in which they are tried."""

from collections.abc import Callable

import torch
from torch import nn

from seams import Hint, candidates, hypotheses, idle_norms, scope_of
from slimrank.records import ChannelMap


class _Holder(nn.Module):
    """Modules of the user's own: attributes of torch's are not looked at."""


class _Blocks(nn.ModuleList):
    """Likewise."""


def _block() -> nn.Module:
    block = _Holder()
    block.attn = _Holder()
    block.attn.qkv, block.attn.out = nn.Linear(4, 24), nn.Linear(8, 4)
    block.attn.scaling, block.attn.is_causal = 0.5, True
    block.attn.num_heads, block.attn.width, block.attn.both = 4, 24, 12
    block.attn.shape = (4, 2)
    block.attn.odd = 7
    block.attn.reshape = nn.Unflatten(1, (4, 2))
    block.attn.pool = nn.AvgPool1d(4)
    block.mlp = nn.Linear(4, 4)
    block.mlp.extra = 4
    return block


def _net() -> nn.Module:
    net = _Holder()
    net.blocks = _Blocks([_block(), _block()])
    net.blocks.depth = 4
    net.depth = 4
    outer = _Holder()
    outer.net, outer.heads = net, 4
    return outer


def _map(model: nn.Module, map_of: Callable, group_of: Callable) -> ChannelMap:
    axes, groups = {}, []
    for index in range(2):
        prefix = f"net.blocks.{index}.attn"
        units = [unit for _ in range(3) for unit in (0, 0, 1, 1, 2, 2, 3, 3)]
        axes[f"{prefix}.qkv.weight"] = [(prefix, 0, "output", units)]
        axes[f"{prefix}.out.weight"] = [(prefix, 1, "input", units[:8])]
        groups.append(group_of(prefix, 4, producers=(f"{prefix}.qkv",), consumers=(f"{prefix}.out",)))
    return map_of(model, groups, axes)


def test_numbers_near_the_group_that_fit_it(map_of: Callable, group_of: Callable) -> None:
    model = _net()
    channels = _map(model, map_of, group_of)
    found = candidates(model, channels, channels.groups["net.blocks.1.attn"])
    attn = "net.blocks.1.attn"
    assert {(one.module, one.path, one.kind, one.is_near) for one in found} == {
        (attn, "num_heads", "units", True),
        (attn, "width", "total", True),
        (attn, "both", "part", True),
        (attn, "shape[0]", "units", True),
        (f"{attn}.reshape", "unflattened_size[0]", "units", True),
        ("net.blocks", "depth", "units", False),
    }
    assert [one.path for one in found if one.is_telling] == ["num_heads"]


def test_places_are_found_again_in_the_next_block(map_of: Callable, group_of: Callable) -> None:
    model = _net()
    channels = _map(model, map_of, group_of)
    first, second = (scope_of(channels, group) for group in channels.groups.values())
    assert first.kin == second.kin == ("out", "qkv")
    assert first.holder(model) == "_Holder"
    inside = first.hint("net.blocks.0.attn.reshape", "unflattened_size[0]")
    assert inside == Hint(0, "reshape", "unflattened_size[0]")
    assert second.find(inside) == ("net.blocks.1.attn.reshape", "unflattened_size[0]")
    above = first.hint("net", "depth")
    assert second.find(above) == ("net", "depth")
    assert second.find(first.hint("net.blocks.0.attn", "num_heads")) == ("net.blocks.1.attn", "num_heads")


def test_sets_come_once_and_the_likely_ones_first(map_of: Callable, group_of: Callable) -> None:
    model = _net()
    channels = _map(model, map_of, group_of)
    found = candidates(model, channels, channels.groups["net.blocks.0.attn"])
    sets = [tuple(one.path for one in chosen) for chosen in hypotheses(found, 100)]
    assert sets[0] == ("num_heads",)
    assert sets[1] == ("num_heads", "shape[0]", "unflattened_size[0]")
    assert sets[2] == ("width",)
    assert len(sets) == len({frozenset(one) for one in sets})
    assert list(hypotheses(found, 0)) == []
    assert len(list(hypotheses(found, 3))) == 3


def test_norms_without_tensors_are_told() -> None:
    model = nn.Sequential(
        nn.InstanceNorm2d(5), nn.InstanceNorm2d(5, affine=True), nn.BatchNorm1d(5, affine=False)
    )
    model.append(nn.BatchNorm1d(6, affine=False, track_running_stats=False))
    assert idle_norms(model) == {"0": 5, "3": 6}


def test_parametrised_tensors_belong_to_their_layer(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 4)), nn.Linear(4, 2))
    axes = {
        "0.parametrizations.weight.original1": [("0", 0, "output", range(4))],
        "1.weight": [("0", 1, "input", range(4))],
    }
    channels = map_of(model, [group_of("0", 4)], axes)
    assert scope_of(channels, channels.groups["0"]).owners == ("0", "1")
    assert scope_of(channels, group_of("none", 1)).owners == ()
    assert torch.is_tensor(model[0].weight)
