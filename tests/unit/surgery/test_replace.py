# SPDX-License-Identifier: Apache-2.0
"""Means that a norm is made to expect; parts of torch's fused layers that are replaced."""

import pytest
import torch
from torch import nn

from slimrank.surgery import replace_module, set_parameters, shift_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_norm_expects_another_mean(dtype: torch.dtype, rng: torch.Generator) -> None:
    norm = nn.BatchNorm1d(3).eval().to(dtype)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    old = norm.running_mean
    x = torch.randn(5, 3, generator=rng).to(dtype)
    shift = torch.tensor([0.25, 1.0, -3.0], dtype=torch.float64)
    expected = norm(x + shift.to(dtype))
    shift_mean(norm, shift)
    # The old buffer may be another model's too.
    assert norm.running_mean is not old
    assert old.tolist() == [1.0, -2.0, 0.5]
    assert norm.running_mean.dtype == dtype
    assert "running_mean" in dict(norm.named_buffers())
    torch.testing.assert_close(norm(x), expected)


def test_only_norms_with_statistics_take_up_a_mean() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d keeps no running mean"):
        shift_mean(nn.BatchNorm1d(2, track_running_stats=False), torch.zeros(2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("part", ["linear1", "linear2", "norm1", "self_attn.out_proj"])
def test_a_fused_layer_calls_the_parts_that_were_replaced(
    norm_first: bool, part: str, rng: torch.Generator
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, dropout=0.0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)).eval()
    x = torch.randn(3, 4, 8, generator=rng)
    padding = torch.arange(4)[None].expand(3, -1) >= torch.tensor([[4], [3], [2]])
    with torch.no_grad():
        expected = model[0](x, src_key_padding_mask=padding)
        name = f"0.layers.0.{part}"
        wrapped = model.get_submodule(name)
        # Of attention, torch reads a weight in every case.
        new = type(wrapped)(8, 8) if part == "self_attn.out_proj" else nn.Sequential(wrapped)
        new.load_state_dict(wrapped.state_dict() if part == "self_attn.out_proj" else new.state_dict())
        replace_module(model, name, new)
        got = model[0](x, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], expected[~padding])
    first, second = model[0].layers
    assert (first.activation_relu_or_gelu, second.activation_relu_or_gelu) == (0, 1)


def test_a_recurrent_layer_runs_with_the_parameters_that_it_is_given() -> None:
    model = nn.Sequential(nn.GRU(3, 2))
    before, x = model[0].weight_hh_l0, torch.randn(4, 5, 3)
    before.requires_grad_(False)
    set_parameters(model, {"0.weight_hh_l0": torch.zeros(6, 2, dtype=torch.float64)})
    new = model[0].weight_hh_l0
    assert new is not before
    assert (new.dtype, new.requires_grad) == (torch.float32, False)
    expected = nn.GRU(3, 2)
    expected.load_state_dict(model[0].state_dict())
    torch.testing.assert_close(model(x)[0], expected(x)[0])
