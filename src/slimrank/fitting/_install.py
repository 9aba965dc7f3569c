# SPDX-License-Identifier: Apache-2.0
"""Puts fits where their layers are."""

from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank.fitting._fit import Fit
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.methods import fill_container, open_container
from slimrank.surgery import has_weight, replace_module, set_weights, shift_mean


def checked_layer(layer: nn.Module, task: LayerTask) -> nn.Module:
    """A layer still to come, as ``on_layer`` left it."""
    if not has_weight(layer, task.shape):
        raise OptionError(
            f"layer {task.spec.name!r}: on_layer put a {type(layer).__name__} there that the plan does not "
            f"fit; it may change values, or exchange the layer for one with a weight {list(task.shape)}"
        )
    return layer


def install(model: nn.Module, task: LayerTask, source: nn.Module, fit: Fit) -> None:
    """Puts a fit where its layer is, the container of factors included (in place).

    Args:
        model: the new model.
        task: of the layer.
        source: the layer as it stands.
        fit: of the layer.
    """
    if task.setting is not None:
        replace_module(model, task.spec.name, open_container(source))
    fill(model, task, source, fit)


def fill(model: nn.Module, task: LayerTask, source: nn.Module, fit: Fit) -> None:
    """Puts a fit where its layer is: new values, or factors in the container around it (in place)."""
    if isinstance(fit.factors, Tensor):
        if task.norm is None or fit.bias is None:
            set_weights(source, fit.factors, fit.bias)
            return
        # The batch norm behind the layer takes up the shift of the mean, so that the layer needs no bias.
        set_weights(source, fit.factors, None)
        shift_mean(model.get_submodule(task.norm), fit.bias)
        return
    container = model.get_submodule(task.spec.name)
    fill_container(container, task.slimmed, source, fit.factors, fit.bias)
