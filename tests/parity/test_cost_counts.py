# SPDX-License-Identifier: Apache-2.0
"""The closed forms against torch's own counter, on pairs built here by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimrank.cost import forms_of, layer_cost, max_rank, pair_cost, pair_costs, setting_cost
from slimrank.records import Call, Cost, Form, LayerKind, LayerSpec, Setting

_CONVS: tuple[Callable[..., nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS: tuple[LayerKind, ...] = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Case:
    """A convolution and the shapes of the inputs of its calls."""

    c_in: int
    c_out: int
    kernel: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    bias: bool = True
    groups: int = 1
    options: dict[str, tuple[int, ...]] = field(default_factory=dict)


_CASES = {
    "1d": Case(5, 7, (3,), ((1, 5, 20),)),
    "1d stride and dilation": Case(5, 7, (4,), ((1, 5, 31),), options={"stride": (3,), "dilation": (2,)}),
    "2d": Case(6, 9, (3, 3), ((1, 6, 10, 10),), options={"padding": (1, 1)}),
    "2d without bias, non-square": Case(6, 9, (3, 5), ((1, 6, 11, 14),), bias=False),
    "2d 1x1 strided": Case(6, 9, (1, 1), ((1, 6, 11, 14),), options={"stride": (2, 2)}),
    "2d narrowing": Case(20, 2, (3, 3), ((1, 20, 6, 6),)),
    "2d row kernel": Case(6, 9, (1, 7), ((1, 6, 11, 14),), options={"padding": (0, 3)}),
    "2d stride, dilation, padding": Case(
        4, 5, (3, 2), ((1, 4, 17, 13),), options={"stride": (2, 1), "dilation": (1, 3), "padding": (2, 1)}
    ),
    "2d called three times": Case(6, 6, (3, 3), ((1, 6, 8, 8), (1, 6, 12, 7), (1, 6, 8, 8))),
    "2d with a batch inside the sample": Case(6, 9, (3, 3), ((4, 6, 8, 8),)),
    "2d without a batch": Case(6, 9, (3, 3), ((6, 8, 8),)),
    "2d grouped": Case(12, 18, (3, 3), ((1, 12, 10, 10),), groups=3, options={"padding": (1, 1)}),
    "2d grouped, strided, called twice": Case(
        8, 12, (3, 5), ((1, 8, 11, 14), (1, 8, 9, 9)), groups=4, bias=False, options={"stride": (2, 1)}
    ),
    "3d": Case(3, 4, (2, 3, 3), ((1, 3, 5, 6, 7),), options={"stride": (1, 2, 1), "padding": (1, 0, 1)}),
}


def _counted(layer: nn.Module, inputs: tuple[tuple[int, ...], ...]) -> Cost:
    parameters = list(layer.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for shape in inputs:
            layer(torch.zeros(shape))
    params = sum(p.numel() for p in parameters)
    return Cost(
        macs=counter.get_total_flops() // 2,
        params=params,
        bytes=sum(p.numel() * p.element_size() for p in parameters),
    )


def _conv_spec(case: Case) -> tuple[nn.Module, LayerSpec]:
    dims = len(case.kernel)
    layer = _CONVS[dims - 1](
        case.c_in, case.c_out, case.kernel, bias=case.bias, groups=case.groups, **case.options
    )
    calls = tuple(
        Call(input_shape=shape, output_shape=tuple(layer(torch.zeros(shape)).shape)) for shape in case.inputs
    )
    return layer, LayerSpec(
        name="conv",
        kind=_KINDS[dims - 1],
        class_name=type(layer).__name__,
        weight_shape=(case.c_out, case.c_in // case.groups, *case.kernel),
        groups=case.groups,
        has_bias=case.bias,
        dtype="float32",
        itemsize=4,
        stride=case.options.get("stride", (1,) * dims),
        dilation=case.options.get("dilation", (1,) * dims),
        padding=case.options.get("padding", (0,) * dims),
        calls=calls,
    )


def _conv_pair(case: Case, form: Form, rank: int) -> nn.Module:
    """The pair as a textbook writes it: which kernel, stride, dilation and padding go to which factor."""
    dims = len(case.kernel)
    first_axes = {"kxk_1x1": set(range(dims)), "1x1_kxk": set(), "v_h": {0}, "h_v": {1}}[form]
    conv = _CONVS[dims - 1]

    def factor(c_in: int, c_out: int, axes: set[int], *, bias: bool) -> nn.Module:
        neutral = {"stride": 1, "dilation": 1, "padding": 0}
        options = {
            name: tuple(case.options[name][d] if d in axes else neutral[name] for d in range(dims))
            for name in case.options
        }
        kernel = tuple(k if d in axes else 1 for d, k in enumerate(case.kernel))
        return conv(c_in, c_out, kernel, bias=bias, groups=case.groups, **options)

    return nn.Sequential(
        factor(case.c_in, case.groups * rank, first_axes, bias=False),
        factor(case.groups * rank, case.c_out, set(range(dims)) - first_axes, bias=True),
    )


def _forms(spec: LayerSpec) -> tuple[Form, ...]:
    return forms_of(spec, "weight_svd") + forms_of(spec, "spatial_svd")


@pytest.mark.parametrize("name", _CASES)
def test_layer_cost_of_a_convolution_is_what_torch_counts(name: str) -> None:
    layer, spec = _conv_spec(_CASES[name])
    assert layer_cost(spec) == _counted(layer, _CASES[name].inputs)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", _CASES)
def test_pair_cost_of_a_convolution_is_what_torch_counts(name: str, rank: int) -> None:
    case = _CASES[name]
    _, spec = _conv_spec(case)
    assert _forms(spec)
    for form in _forms(spec):
        counted = _counted(_conv_pair(case, form, rank), case.inputs)
        assert pair_cost(spec, form, rank, has_bias=True) == counted, form


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("name", [name for name, case in _CASES.items() if len(case.kernel) == 2])
def test_cost_of_three_factors_is_what_torch_counts(name: str, ranks: tuple[int, int]) -> None:
    case = _CASES[name]
    _, spec = _conv_spec(case)
    rank_in, rank = ranks
    three = nn.Sequential(
        nn.Conv2d(case.c_in, rank_in, 1, bias=False),
        nn.Conv2d(rank_in, rank, case.kernel, bias=False, **case.options),
        nn.Conv2d(rank, case.c_out, 1),
    )
    setting = Setting(method="tucker2", form="1x1_kxk_1x1", rank=rank, rank_in=rank_in)
    assert setting_cost(spec, setting, has_bias=True) == _counted(three, case.inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", [((1, 6),), ((1, 12, 6),), ((1, 12, 6), (1, 2, 3, 6))], ids=str)
def test_linear_counts_tokens(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 9, dtype=dtype)
    pair = nn.Sequential(nn.Linear(6, 4, bias=False, dtype=dtype), nn.Linear(4, 9, dtype=dtype))
    rows = sum(torch.Size(shape[:-1]).numel() for shape in shapes)
    spec = LayerSpec(
        name="fc",
        kind="linear",
        class_name="Linear",
        weight_shape=(9, 6),
        has_bias=True,
        dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize,
        calls=tuple(Call(input_shape=shape, output_shape=(*shape[:-1], 9)) for shape in shapes),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for shape in shapes:
            layer(torch.zeros(shape, dtype=dtype))
    assert layer_cost(spec).macs == counter.get_total_flops() // 2 == rows * 54
    assert layer_cost(spec).bytes == sum(p.nbytes for p in layer.parameters())
    expected = Cost(
        macs=rows * 4 * 15,
        params=sum(p.numel() for p in pair.parameters()),
        bytes=sum(p.nbytes for p in pair.parameters()),
    )
    assert pair_cost(spec, "linear", 4, has_bias=True) == expected


@pytest.mark.parametrize("name", _CASES)
def test_costs_at_many_ranks_are_those_at_each(name: str) -> None:
    _, spec = _conv_spec(_CASES[name])
    for form in _forms(spec):
        ranks = np.arange(1, max_rank(spec, form) + 1)
        macs, params = pair_costs(spec, form, ranks, has_bias=False)
        for rank, m, p in zip(ranks.tolist(), macs.tolist(), params.tolist(), strict=True):
            assert pair_cost(spec, form, rank, has_bias=False) == Cost(macs=m, params=p, bytes=4 * p)


@pytest.mark.parametrize("name", _CASES)
def test_max_rank_is_the_rank_of_the_unfolded_weight(name: str, rng: torch.Generator) -> None:
    case = _CASES[name]
    _, spec = _conv_spec(case)
    # Each group has a rank of its own, and they are alike.
    shape = (case.c_out // case.groups, case.c_in // case.groups, *case.kernel)
    weight = torch.randn(shape, generator=rng, dtype=torch.float64)
    for form in _forms(spec):
        if form == "kxk_1x1":
            matrix = weight.flatten(1)
        elif form == "1x1_kxk":
            matrix = weight.movedim(1, 0).flatten(1)
        elif form == "v_h":
            matrix = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (C_in K_h, C_out K_w)
        else:
            matrix = weight.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)  # (C_in K_w, C_out K_h)
        assert max_rank(spec, form) == int(torch.linalg.matrix_rank(matrix)), form
