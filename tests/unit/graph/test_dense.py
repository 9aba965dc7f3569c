# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices and back, kernels that are transposed among them."""

import pytest
import torch
from torch import Tensor, nn

from slimrank.graph import dense_bias, dense_root, dense_weight, folded_bias, set_weights

LAYERS = {
    "linear": lambda: (nn.Linear(5, 3), torch.randn(4, 5)),
    "conv": lambda: (nn.Conv2d(5, 3, (2, 3), stride=2), torch.randn(4, 5, 8, 8)),
    "transposed 1d": lambda: (nn.ConvTranspose1d(5, 3, 4, stride=2, padding=1), torch.randn(4, 5, 8)),
    "transposed 2d": lambda: (nn.ConvTranspose2d(5, 3, (2, 3), stride=(2, 3)), torch.randn(4, 5, 4, 4)),
    "transposed 3d": lambda: (nn.ConvTranspose3d(5, 3, 2, dilation=2), torch.randn(2, 5, 3, 3, 3)),
}
TRANSPOSED = [name for name in LAYERS if name.startswith("transposed")]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_its_own_matrix_back(name: str) -> None:
    layer, x = LAYERS[name]()
    expected = layer(x)
    matrix, bias = dense_weight(layer), dense_bias(layer)
    assert matrix.dtype == torch.float64
    assert matrix.numel() == layer.weight.numel()
    assert bias is not None
    assert len(bias) == len(matrix)
    set_weights(layer, torch.zeros_like(matrix), torch.zeros_like(bias))
    assert not layer(x).any()
    set_weights(layer, matrix, bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_is_made_with_one_entry_per_output(name: str) -> None:
    layer, _ = LAYERS[name]()
    layer.bias = None
    assert dense_bias(layer) is None
    matrix = dense_weight(layer)
    set_weights(layer, matrix, matrix.new_ones(len(matrix)))
    assert layer.bias.shape == (3,)
    assert layer.bias.dtype == layer.weight.dtype


def test_a_transposed_kernel_gives_every_tap_of_every_output() -> None:
    layer = nn.ConvTranspose2d(5, 3, 2, stride=2, bias=False)
    x = torch.randn(4, 5, 6, 7)
    rows = x.movedim(1, -1).reshape(-1, 5).double() @ dense_weight(layer).T
    # Taps that do not overlap lie side by side.
    taps = rows.view(4, 6, 7, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 12, 14)
    torch.testing.assert_close(taps.float(), layer(x))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_bias_by_taps_moves_the_mean_as_its_rows_do(name: str) -> None:
    layer, _ = LAYERS[name]()
    matrix = dense_weight(layer)
    shift = torch.randn(len(matrix), dtype=torch.float64)
    kernel = shift.view(3, *layer.kernel_size)
    # What one place gives to all that it reaches, over the places that there are for each.
    per_output = kernel.flatten(1).sum(1) / torch.tensor(layer.stride).prod()
    torch.testing.assert_close(folded_bias(layer, shift), per_output)
    bias = dense_bias(layer)
    assert bias is not None
    torch.testing.assert_close(folded_bias(layer, bias), layer.bias.detach().double())


def test_the_root_of_a_transposed_kernel_is_that_of_its_taps() -> None:
    """Gradients without order over places: taps then have nothing to do with each other."""
    layer = nn.ConvTranspose1d(4, 3, 2, stride=2, bias=False).double()
    mixing = torch.randn(3, 3, dtype=torch.float64)
    gradients = torch.randn(1, 60_000, 3, dtype=torch.float64) @ mixing.T
    gram = gradients[0].T @ gradients[0]
    values, vectors = torch.linalg.eigh(gram)
    root = dense_root(layer, vectors @ values.sqrt().diag() @ vectors.T)
    # Gradients of each input place's rows: both taps of every output.
    rows = gradients.movedim(-1, 1).view(1, 3, -1, 2).movedim(2, 1).reshape(-1, 6)
    expected = rows.T @ rows
    torch.testing.assert_close(root @ root, expected, rtol=0, atol=0.03 * float(expected.max()))


def test_the_root_of_other_layers_is_their_own() -> None:
    root = torch.randn(3, 3, dtype=torch.float64)
    assert dense_root(nn.Linear(5, 3), root) is root


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
    set_weights(layer, dense_weight(layer), dense_bias(layer))
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, weight)
    assert not layer.weight.requires_grad
