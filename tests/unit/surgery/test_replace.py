# SPDX-License-Identifier: Apache-2.0
"""Weights and means that are exchanged, and whatever is exchanged put back."""

import pytest
import torch
from torch import Tensor, nn

from slimrank._errors import ModelError
from slimrank.surgery import copy_model, put_back, replace_module, set_weights, shift_mean


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


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.tied = self.body[0]


def snapshot(model: nn.Module) -> object:
    modules = [
        (name, id(module), {key: value for key, value in vars(module).items() if not isinstance(value, dict)})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return modules, [(name, id(tensor), tensor.tolist()) for name, tensor in tensors]


def test_whatever_is_exchanged_is_put_back() -> None:
    model = Sized().eval()
    before = snapshot(model)
    with put_back(model):
        model.width, model.extra = 2, torch.zeros(3)
        model.train()
        set_weights(model.body[0], torch.zeros(4, 4), torch.ones(4))
        shift_mean(model.body[1], torch.ones(4))
        del model.body[1].weight
        replace_module(model, "body.0", nn.Identity())
        assert isinstance(model.tied, nn.Identity)
        model.body.append(nn.ReLU())
        assert snapshot(model) != before
    assert snapshot(model) == before
    assert not hasattr(model, "extra")
    assert isinstance(model.body[0], nn.Linear)


def test_it_is_put_back_after_an_error() -> None:
    model = Sized()
    before = snapshot(model)

    def fail() -> None:
        model.body = nn.Identity()
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"), put_back(model):
        fail()
    assert snapshot(model) == before


def test_models_that_cannot_be_copied_say_what_to_do() -> None:
    with (
        pytest.warns(DeprecationWarning, match="jit"),
        pytest.raises(ModelError, match="pass the eager model"),
    ):
        copy_model(torch.jit.script(nn.Linear(2, 2)))
    compiled = nn.Module()
    compiled._orig_mod = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"compiled by torch\.compile, .*pass model\._orig_mod"):
        copy_model(compiled)
    with pytest.raises(ModelError, match="weight is not initialised yet"):
        copy_model(nn.LazyLinear(2))

    class Refuses(nn.Module):
        def __deepcopy__(self, memo: object) -> Tensor:
            raise RuntimeError("holds a lock")

    with pytest.raises(ModelError, match=r"Refuses cannot be deep-copied \(holds a lock\)"):
        copy_model(Refuses())
