# SPDX-License-Identifier: Apache-2.0
"""Slimming by hand-written maps: values, every name of a tensor, sizes, and what is refused."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slimrank import ModelError, OptionError, ShapeError, UnknownNameError
from slimrank.records import ChannelMap
from slimrank.surgery import mask, slim

_H = range(6)
_KEPT = {"fc1": [0, 2, 5]}


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def _mlp_map(model: nn.Module, map_of: Callable, group_of: Callable, **fields: object) -> ChannelMap:
    return map_of(
        model,
        [group_of("fc1", 6, producers=("0",), consumers=("2",), **fields)],
        {
            "0.weight": [("fc1", 0, "output", _H)],
            "0.bias": [("fc1", 0, "output", _H)],
            "2.weight": [("fc1", 1, "input", _H)],
        },
    )


def test_slimmed_model_equals_masked_model(
    map_of: Callable, group_of: Callable, rng: torch.Generator
) -> None:
    slimmed, masked = _mlp(), _mlp()
    masked.load_state_dict(slimmed.state_dict())
    channels = _mlp_map(slimmed, map_of, group_of)
    slim(slimmed, channels, _KEPT)
    mask(masked, channels, _KEPT)
    x = torch.randn(5, 4, generator=rng)
    torch.testing.assert_close(slimmed(x), masked(x))
    assert (slimmed[0].out_features, slimmed[2].in_features) == (3, 3)
    assert masked[0].weight.all()
    assert not masked[2].weight[:, [1, 3, 4]].any()
    assert masked[2].weight[:, [0, 2, 5]].all()


def test_whole_groups_leave_every_tensor_as_it_is(map_of: Callable, group_of: Callable) -> None:
    model = _mlp()
    before = list(model.parameters())
    slim(model, _mlp_map(model, map_of, group_of), {"fc1": range(6)})
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_parameters_keep_what_they_were(map_of: Callable, group_of: Callable) -> None:
    model = _mlp().to(torch.float64)
    model[0].weight.requires_grad_(requires_grad=False)
    model[0].bias.no_decay = True
    slim(model, _mlp_map(model, map_of, group_of), _KEPT)
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert model[0].bias.no_decay
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[2].weight.dtype == torch.float64
    assert model[2].weight.is_contiguous()


def test_inner_groups_are_masked_where_they_are_made(map_of: Callable, group_of: Callable) -> None:
    model = _mlp()
    mask(model, _mlp_map(model, map_of, group_of, is_inner=True), _KEPT)
    assert not model[0].weight[[1, 3, 4]].any()
    assert not model[0].bias[[1, 3, 4]].any()


def test_an_index_goes_with_the_first_of_its_units(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Linear(2, 6))
    channels = map_of(
        model,
        [group_of("heads", 2), group_of("width", 3)],
        {
            "0.weight": [
                ("heads", 0, "output", [0, 0, 0, 1, 1, 1]),
                ("width", 0, "output", [0, 1, 2, 0, 1, 2]),
            ]
        },
    )
    before = model[0].weight.detach().clone()
    slim(model, channels, {"heads": [1], "width": [0, 2]})
    torch.testing.assert_close(model[0].weight.detach(), before[[3, 5]], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_of_queries_is_scaled(dtype: torch.dtype, map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Linear(2, 8)).to(dtype)
    widths = [0, 1, 2, 3] * 2
    plain = map_of(model, [group_of("width", 4)], {"0.weight": [("width", 0, "output", widths)]})
    tensor = plain.tensors["0.weight"]
    queries = replace(tensor, axes=(replace(tensor.axes[0], queries=(0, 1, 2, 3)),))
    before = model[0].weight.detach().clone()
    slim(model, replace(plain, tensors={"0.weight": queries}), {"width": [0, 2, 3]})
    expected = before[[0, 2, 3, 4, 6, 7]].float()
    expected[:3] *= 0.75**0.5
    torch.testing.assert_close(model[0].weight.detach(), expected.to(dtype), rtol=0, atol=0)


def test_indices_of_no_unit_stay(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Linear(2, 4))
    channels = map_of(model, [group_of("half", 2)], {"0.weight": [("half", 0, "output", [-1, -1, 0, 1])]})
    slim(model, channels, {"half": [1]})
    assert model[0].out_features == 3


def test_tied_tensors_stay_tied(map_of: Callable, group_of: Callable) -> None:
    model = nn.ModuleDict({"read": nn.Embedding(5, 6), "write": nn.Linear(6, 5, bias=False)})
    model["write"].weight = model["read"].weight
    channels = map_of(model, [group_of("width", 6)], {"read.weight": [("width", 1, "output", _H)]})
    slim(model, channels, {"width": [0, 5]})
    assert model["write"].weight is model["read"].weight
    assert (model["read"].embedding_dim, model["write"].in_features) == (2, 2)


def test_buffers_are_cut_and_stay_what_they_are(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_buffer("scratch", torch.arange(4.0), persistent=False)
    rows = [("c", 0, "output", range(4))]
    names = ("weight", "bias", "running_mean", "running_var", "scratch")
    channels = map_of(model, [group_of("c", 4)], {f"0.{name}": rows for name in names})
    slim(model, channels, {"c": [1, 2]})
    assert model[0].num_features == 2
    assert model[0].scratch.tolist() == [1.0, 2.0]
    assert "0.scratch" not in model.state_dict()
    model(torch.randn(3, 2, 4, 4))


def test_channels_last_stays(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    channels = map_of(model, [group_of("c", 4)], {"0.weight": [("c", 0, "output", range(4))]})
    slim(model, channels, {"c": [0, 1]})
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions_lose_whole_groups(
    transposed: bool, map_of: Callable, group_of: Callable
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(kind(8, 12, 3, groups=4))
    n_rows = 8 if transposed else 12
    units = [index * 4 // n_rows for index in range(n_rows)]
    axes = {
        "0.weight": [("g", 0, "output", units)],
        "0.bias": [("g", 0, "output", [i // 3 for i in range(12)])],
    }
    slim(model, map_of(model, [group_of("g", 4)], axes), {"g": [1, 2, 3]})
    layer = model[0]
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 6, 9)
    assert layer(torch.randn(1, 6, 5, 5)).shape[1] == 9


def test_depthwise_convolution_follows_its_channels(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Conv1d(6, 6, 3, groups=6))
    rows = [("c", 0, "output", _H)]
    slim(model, map_of(model, [group_of("c", 6)], {"0.weight": rows, "0.bias": rows}), {"c": [0, 3]})
    assert (model[0].groups, model[0].in_channels) == (2, 2)
    model(torch.randn(1, 2, 5))


def test_channels_inside_every_group_leave_the_groups(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Conv1d(6, 6, 1, groups=2))
    channels = map_of(model, [group_of("c", 3)], {"0.weight": [("c", 1, "input", range(3))]})
    slim(model, channels, {"c": [0, 2]})
    assert (model[0].groups, model[0].in_channels, model[0].out_channels) == (2, 4, 6)


def test_group_norm_loses_whole_groups(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.GroupNorm(3, 6))
    rows = [("g", 0, "output", [0, 0, 1, 1, 2, 2])]
    slim(model, map_of(model, [group_of("g", 3)], {"0.weight": rows, "0.bias": rows}), {"g": [0, 2]})
    assert (model[0].num_groups, model[0].num_channels) == (2, 4)
    model(torch.randn(2, 4, 3))


def test_sizes_of_other_standard_modules(map_of: Callable, group_of: Callable) -> None:
    model = nn.ModuleList([nn.PReLU(4), nn.Bilinear(4, 2, 3), nn.InstanceNorm1d(4, affine=True)])
    axes = {
        "0.weight": [("c", 0, "output", range(4))],
        "1.weight": [("c", 1, "input", range(4))],
        "2.weight": [("c", 0, "output", range(4))],
        "2.bias": [("c", 0, "output", range(4))],
    }
    slim(model, map_of(model, [group_of("c", 4)], axes), {"c": [0, 1, 3]})
    assert model[0].num_parameters == 3
    assert (model[1].in1_features, model[1].in2_features, model[1].out_features) == (3, 2, 3)
    assert model[2].num_features == 3


def test_parametrised_weights_are_cut_where_they_are_stored(
    map_of: Callable, group_of: Callable, rng: torch.Generator
) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 1)), nn.Conv1d(4, 2, 1))
    rows = [("c", 0, "output", range(4))]
    axes = {
        "0.parametrizations.weight.original0": rows,
        "0.parametrizations.weight.original1": rows,
        "0.bias": rows,
        "1.weight": [("c", 1, "input", range(4))],
    }
    before = model[0].weight.detach().clone()
    slim(model, map_of(model, [group_of("c", 4)], axes), {"c": [1, 3]})
    torch.testing.assert_close(model[0].weight.detach(), before[[1, 3]])
    assert model[0].out_channels == 2
    model(torch.randn(1, 2, 3, generator=rng))


def test_weights_that_hooks_compute_are_cut_at_their_source(map_of: Callable, group_of: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 4)))
    rows = [("c", 0, "output", range(4))]
    axes = {"0.weight_v": rows, "0.weight_g": rows, "0.bias": rows}
    slim(model, map_of(model, [group_of("c", 4)], axes), {"c": [1, 3]})
    assert model[0].out_features == 2
    assert model(torch.randn(1, 2)).shape == (1, 2)


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 6)
        self.num_heads = 3
        self.width = 6
        self.view_as = torch.Size([1, 3, 2])
        self.listed = [6, 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).view(len(x), *self.view_as[1:])


def _heads_map(map_of: Callable, group_of: Callable) -> ChannelMap:
    sizes = (("", "num_heads"), ("", "width"), ("", "view_as[1]"), ("", "listed[0]"))
    narrower = (("", "width"), ("", "view_as[2]"), ("", "listed[0]"))
    rows = [("heads", 0, "output", [0, 0, 1, 1, 2, 2]), ("width", 0, "output", [0, 1, 0, 1, 0, 1])]
    return map_of(
        _Heads(),
        [group_of("heads", 3, sizes=sizes), group_of("width", 2, sizes=narrower)],
        {"fc.weight": rows, "fc.bias": rows},
    )


def test_attributes_go_in_proportion_to_every_group(map_of: Callable, group_of: Callable) -> None:
    model = _Heads()
    old = model.listed
    slim(model, _heads_map(map_of, group_of), {"heads": [0, 2], "width": [1]})
    assert (model.num_heads, model.width, model.view_as, model.listed) == (
        2,
        2,
        torch.Size([1, 2, 1]),
        [2, 1],
    )
    assert old == [6, 1]
    assert model(torch.randn(4, 2)).shape == (4, 2, 1)


def test_a_size_that_is_not_whole_is_refused(map_of: Callable, group_of: Callable) -> None:
    rows = [("heads", 0, "output", [0, 0, 0, 1, 1, 1])]
    channels = map_of(_Heads(), [group_of("heads", 2, sizes=(("", "num_heads"),))], {"fc.weight": rows})
    with pytest.raises(ModelError, match=r"num_heads is 3, and 1\.5 of it would be left"):
        slim(_Heads(), channels, {"heads": [0]})


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ((("", "missing"),), "has no whole number 'missing'"),
        ((("", "view_as[7]"),), r"has no whole number 'view_as\[7\]'"),
        ((("", "training"),), "has no whole number 'training'"),
        ((("away", "width"),), "has no module 'away'"),
    ],
)
def test_sizes_that_are_not_there_are_refused(
    sizes: tuple, match: str, map_of: Callable, group_of: Callable
) -> None:
    rows = [("c", 0, "output", _H)]
    channels = map_of(_Heads(), [group_of("c", 6, sizes=sizes)], {"fc.weight": rows})
    with pytest.raises(ModelError, match=match):
        slim(_Heads(), channels, {"c": [0]})


@pytest.mark.parametrize(
    ("kept", "error", "match"),
    [
        ({"fc2": [0]}, UnknownNameError, r"there is no group 'fc2'; did you mean 'fc1'\?$"),
        ({"other": [0]}, UnknownNameError, "there is no group 'other'; known are 'fc1'$"),
        ({"fc1": []}, OptionError, r"the units that stay are \[\]; give at least one"),
        ({"fc1": [2, 1]}, OptionError, r"the units that stay are \[2, 1\]"),
        ({"fc1": [1, 1]}, OptionError, "each once"),
        ({"fc1": [0, 6]}, OptionError, r"units 0 to 6 are not all inside 0\.\.5"),
        ({"fc1": [-1, 2]}, OptionError, r"units -1 to 2 are not all inside 0\.\.5"),
    ],
)
@pytest.mark.parametrize("verb", [slim, mask])
def test_units_that_cannot_stay_are_refused(
    verb: Callable, kept: dict, error: type[Exception], match: str, map_of: Callable, group_of: Callable
) -> None:
    model = _mlp()
    with pytest.raises(error, match=match):
        verb(model, _mlp_map(model, map_of, group_of), kept)


def test_frozen_groups_are_refused(map_of: Callable, group_of: Callable) -> None:
    model = _mlp()
    channels = _mlp_map(model, map_of, group_of, reason="it is the output")
    with pytest.raises(OptionError, match="'fc1' cannot be slimmed: it is the output"):
        slim(model, channels, _KEPT)
    slim(model, channels, {"fc1": range(6)})


def test_a_map_of_another_model_is_refused(map_of: Callable, group_of: Callable) -> None:
    channels = _mlp_map(_mlp(), map_of, group_of)
    with pytest.raises(ModelError, match=r"Linear has no tensor '0\.weight'"):
        slim(nn.Linear(4, 6), channels, _KEPT)


def test_slimming_twice_is_refused(map_of: Callable, group_of: Callable) -> None:
    model = _mlp()
    channels = _mlp_map(model, map_of, group_of)
    slim(model, channels, _KEPT)
    with pytest.raises(ShapeError, match=r"0\.weight is \(3, 4\), and \(6, 4\) where the groups were read"):
        slim(model, channels, _KEPT)


def test_uneven_groups_are_refused_and_nothing_is_changed(map_of: Callable, group_of: Callable) -> None:
    model = nn.Sequential(nn.Conv1d(6, 6, 1, groups=2))
    channels = map_of(model, [group_of("c", 6)], {"0.weight": [("c", 0, "output", _H)]})
    with pytest.raises(ModelError, match="Conv1d '0': its groups would be left with 1, 3 channels"):
        slim(model, channels, {"c": [0, 1, 2, 5]})
    assert model[0].weight.shape == (6, 3, 1)
