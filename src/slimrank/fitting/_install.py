# SPDX-License-Identifier: Apache-2.0
"""Puts fits where their layers are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank.fitting._fit import Fit
from slimrank.fitting._layer_tasks import Work
from slimrank.methods import fill_container, open_container
from slimrank.surgery import replace_module, set_weights, shift_mean


def checked_layer(layer: nn.Module, work: Work) -> nn.Module:
    """A layer still to come, as ``on_layer`` left it."""
    if not isinstance(layer.weight, Tensor) or tuple(layer.weight.shape) != work.shape:
        raise OptionError(
            f"layer {work.spec.name!r}: on_layer put a {type(layer).__name__} there that the plan does not "
            f"fit; it may change values, or exchange the layer for one with a weight {list(work.shape)}"
        )
    return layer


def copied_parameters(layer: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [parameter.detach().clone() for parameter in layer.parameters()]


def are_same_tensors(own: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(own) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(own, others, strict=True)
    )


def install(model: nn.Module, work: Work, source: nn.Module, fit: Fit) -> None:
    if work.setting is not None:
        replace_module(model, work.spec.name, open_container(source))
    fill(model, work, source, fit)


def fill(model: nn.Module, work: Work, source: nn.Module, fit: Fit) -> None:
    """Puts a fit where its layer is: new values, or factors in the container around it."""
    if isinstance(fit.factors, Tensor):
        if work.norm is None or fit.bias is None:
            set_weights(source, fit.factors, fit.bias)
            return
        set_weights(source, fit.factors, None)
        shift_mean(model.get_submodule(work.norm), fit.bias)
        return
    container = model.get_submodule(work.spec.name)
    fill_container(container, work.slimmed, source, fit.factors, fit.bias)
