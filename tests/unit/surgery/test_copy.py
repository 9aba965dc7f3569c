# SPDX-License-Identifier: Apache-2.0
"""Copies: what they share, what refuses to be copied, and whatever is exchanged put back."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from slimrank import ModelError
from slimrank.surgery import copy_model, light_copy, put_back, replace_module, set_weights, shift_mean


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


def test_light_copies_share_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.seen = model[0].seen = OrderedDict()
    model.kept = {"one": [1]}
    copy = light_copy(model)
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert not any(a is b for a, b in zip(model.buffers(), copy.buffers(), strict=True))
    copy[0].register_forward_hook(lambda *_: None)
    copy[1].register_buffer("scratch", torch.zeros(1), persistent=False)
    copy.seen["here"] = copy.kept["one"].append(2)
    assert copy.seen is copy[0].seen
    assert (model.seen, model.kept, model[0]._forward_hooks) == ({}, {"one": [1]}, {})
    assert not hasattr(model[1], "scratch")
    assert not model[1]._non_persistent_buffers_set
