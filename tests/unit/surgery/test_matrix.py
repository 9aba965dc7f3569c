# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices and back, kernels that are transposed among them."""

import pytest
import torch
from torch import Tensor, nn

from slimrank.records import Call
from slimrank.surgery import bias_of, bias_of_taps, dense_weight, has_weight, set_weights, tap_shares

LAYERS = {
    "linear": lambda: (nn.Linear(5, 3), torch.randn(4, 5)),
    "conv": lambda: (nn.Conv2d(5, 3, (2, 3), stride=2), torch.randn(4, 5, 8, 8)),
    "groups": lambda: (nn.Conv2d(6, 3, 2, groups=3), torch.randn(4, 6, 8, 8)),
    "transposed 1d": lambda: (nn.ConvTranspose1d(5, 3, 4, stride=2, padding=1), torch.randn(4, 5, 8)),
    "transposed 2d": lambda: (nn.ConvTranspose2d(5, 3, (2, 3), stride=(2, 3)), torch.randn(4, 5, 4, 4)),
    "transposed 3d": lambda: (nn.ConvTranspose3d(5, 3, 2, dilation=2), torch.randn(2, 5, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_its_own_matrix_back(name: str) -> None:
    layer, x = LAYERS[name]()
    expected, bias = layer(x), layer.bias.detach().double()
    matrix = dense_weight(layer)
    assert matrix.dtype == torch.float64
    assert int(matrix.count_nonzero()) == layer.weight.numel()
    set_weights(layer, torch.zeros_like(matrix), torch.zeros_like(bias))
    assert not layer(x).any()
    set_weights(layer, matrix, bias)
    assert torch.equal(layer(x), expected)
    assert layer.weight.is_contiguous()
    layer.bias = None
    set_weights(layer, matrix, bias)
    assert torch.equal(layer(x), expected)


def test_a_transposed_kernel_gives_every_tap_of_every_output() -> None:
    layer = nn.ConvTranspose2d(5, 3, 2, stride=2, bias=False)
    x = torch.randn(4, 5, 6, 7)
    rows = x.movedim(1, -1).reshape(-1, 5).double() @ dense_weight(layer).T
    # Taps that do not overlap lie side by side.
    taps = rows.view(4, 6, 7, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 12, 14)
    torch.testing.assert_close(taps.float(), layer(x))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1), (8,)),
        (nn.ConvTranspose2d(2, 3, 4), (1, 1)),
        (nn.ConvTranspose2d(2, 3, (2, 5), stride=2, padding=(0, 2), output_padding=(1, 1)), (4, 3)),
        (nn.ConvTranspose3d(2, 3, 2, dilation=2), (3, 2, 4)),
    ],
    ids=str,
)
def test_a_bias_makes_up_for_what_taps_miss_on_average(layer: nn.Module, size: tuple[int, ...]) -> None:
    """By torch: a kernel that gives what every tap misses, wherever its input is 1."""
    missed = torch.randn(len(dense_weight(layer)), dtype=torch.float64)
    given = nn.functional.pad(missed[:, None], (0, 1))  # of two inputs the first counts
    set_weights(layer, given, torch.zeros(3))
    x = torch.ones(1, 2, *size)
    call = Call(input_shape=tuple(x.shape), output_shape=tuple(layer(x).shape))
    bias = bias_of_taps(layer, (call, call), missed)
    torch.testing.assert_close(bias.float(), layer(x).mean(dim=tuple(range(2, x.ndim)))[0])


def test_the_shares_of_taps_are_one_in_stride_on_large_maps() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=(1, 3))
    call = Call(input_shape=(1, 2, 500, 500), output_shape=(1, 3, 502, 1500))
    torch.testing.assert_close(
        tap_shares(layer, (call,)), torch.full((9,), 1 / 3, dtype=torch.float64), rtol=0.01, atol=0
    )


def test_shares_of_taps_are_of_transposed_kernels() -> None:
    with pytest.raises(TypeError, match="Conv2d is no transposed convolution"):
        tap_shares(nn.Conv2d(2, 3, 3), ())


@pytest.mark.parametrize("read", [dense_weight, lambda layer: set_weights(layer, torch.zeros(1), None)])
def test_a_module_without_a_weight_is_refused(read: object) -> None:
    assert callable(read)
    layer = nn.ReLU()
    layer.weight = None
    with pytest.raises(TypeError, match="ReLU has no weight tensor"):
        read(layer)


def test_other_dtypes_are_kept() -> None:
    layer = nn.ConvTranspose2d(2, 3, 2).to(torch.bfloat16)
    layer.weight.requires_grad_(requires_grad=False)
    weight: Tensor = layer.weight.clone()
    set_weights(layer, dense_weight(layer), layer.bias.detach().double())
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, weight)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_exchanged_in_type_and_layout(bias: bool, rng: torch.Generator) -> None:
    layer = nn.Conv2d(3, 4, 3, bias=bias).bfloat16()
    layer.weight.requires_grad_(requires_grad=False)
    old = layer.weight
    weight = torch.randn(4, 27, dtype=torch.float64, generator=rng)
    set_weights(layer, weight, None)
    assert layer.weight is not old
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, weight.reshape(4, 3, 3, 3).bfloat16())
    assert not layer.weight.requires_grad
    assert (layer.bias is None) is not bias


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_is_exchanged_or_made(bias: bool) -> None:
    layer = nn.Linear(3, 2, bias=bias)
    layer.requires_grad_(requires_grad=bias)
    set_weights(layer, torch.zeros(2, 3), torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert isinstance(layer.bias, nn.Parameter)
    assert layer.bias.dtype == torch.float32
    assert layer.bias.tolist() == [1.0, 2.0]
    assert layer.bias.requires_grad is bias
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]
    assert layer(torch.ones(1, 3)).tolist() == [[1.0, 2.0]]


def test_a_bias_keeps_its_own_type() -> None:
    layer = nn.Linear(3, 2).half()
    layer.bias = nn.Parameter(torch.zeros(2))
    set_weights(layer, torch.zeros(2, 3), torch.ones(2, dtype=torch.float64))
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.float16, torch.float32)


def test_only_layers_have_weights() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d has no weight tensor"):
        set_weights(nn.BatchNorm1d(2, affine=False), torch.zeros(2), None)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_layer_is_what_its_first_layer_makes_of_inputs(bidirectional: bool) -> None:
    layer = nn.GRU(3, 2, 2, bidirectional=bidirectional, batch_first=True)
    matrix, bias = dense_weight(layer), bias_of(layer)
    assert matrix.shape == (12 if bidirectional else 6, 3)
    assert has_weight(layer, matrix.shape)
    assert not has_weight(layer, (6, 4))
    assert bias is not None
    x = torch.randn(2, 4, 3)
    before = layer(x)[0]
    # Inputs in another unit, and another zero.
    set_weights(layer, matrix / 2, bias.double() - matrix.sum(1))
    torch.testing.assert_close(layer(2 * (x + 1))[0], before)
    assert bias_of(nn.GRU(3, 2, bias=False)) is None
