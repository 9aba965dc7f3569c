# SPDX-License-Identifier: Apache-2.0
"""Puts fits where their layers are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank.fitting._fit import Fit
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.methods import build_pair
from slimrank.surgery import replace_module, set_weights, shift_mean


def checked_layer(layer: nn.Module, task: LayerTask) -> nn.Module:
    """A layer still to come, as ``on_layer`` left it."""
    if not isinstance(layer.weight, Tensor) or tuple(layer.weight.shape) != task.shape:
        raise OptionError(
            f"layer {task.spec.name!r}: on_layer put a {type(layer).__name__} there that the plan does not "
            f"fit; it may change values, or exchange the layer for one with a weight {list(task.shape)}"
        )
    return layer


def copied_parameters(layer: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [parameter.detach().clone() for parameter in layer.parameters()]


def are_same_tensors(own: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(own) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(own, others, strict=True)
    )


def install(model: nn.Module, task: LayerTask, source: nn.Module, fit: Fit) -> None:
    if task.setting is not None:
        replace_module(model, task.spec.name, nn.Sequential(source))
    fill(model, task, source, fit)


def fill(model: nn.Module, task: LayerTask, source: nn.Module, fit: Fit) -> None:
    """Puts a fit where its layer is: new values, or a pair in the container around it."""
    if isinstance(fit.factors, Tensor):
        if task.norm is None or fit.bias is None:
            set_weights(source, fit.factors, fit.bias)
            return
        set_weights(source, fit.factors, None)
        shift_mean(model.get_submodule(task.norm), fit.bias)
        return
    place = model.get_submodule(task.spec.name)
    if not isinstance(place, nn.Sequential):
        raise TypeError(f"{task.spec.name} is a {type(place).__name__}, not the container that was put there")
    first, second = build_pair(task.slimmed, source, fit.factors, fit.bias)
    place[0] = first
    place.append(second)
    place.train(source.training)
