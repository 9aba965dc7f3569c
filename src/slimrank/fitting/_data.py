# SPDX-License-Identifier: Apache-2.0
"""What fits draw on, and the caller's hook."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank.calibrate import Feed
from slimrank.cost import MemoryBudgets
from slimrank.fitting._seen import Seen

OnLayer = Callable[[nn.Module, str], object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """What fits draw on.

    Attributes:
        original: a private copy of the model in eval mode.
        feed: the samples.
        grams: (C_out, C_out) second moments of output gradients by layer; may lack layers.
        seed: of the rows drawn.
        budgets: memory of what can be cut.
        seen: what forwards of the original show.
        sequential: fit to the inputs of the compressed model; False fits every layer on its own.
    """

    original: nn.Module
    feed: Feed
    grams: Mapping[str, Tensor]
    seed: int
    budgets: MemoryBudgets
    seen: Seen
    sequential: bool = True


def check_on_layer(on_layer: OnLayer | None) -> None:
    """Refuses a hook that cannot be called with a model and a name.

    Raises:
        OptionError: its signature does not fit.
    """
    if on_layer is None:
        return
    if not callable(on_layer):
        raise OptionError(f"on_layer is a {type(on_layer).__name__}; give a function fn(model, layer_name)")
    try:
        inspect.signature(on_layer).bind(nn.Identity(), "layer")
    except TypeError as error:
        raise OptionError(f"on_layer cannot be called as fn(model, layer_name): {error}") from error


def call_hook(on_layer: OnLayer | None, model: nn.Module, name: str) -> None:
    """Calls the hook, if there is one, with gradients on: it may train the model."""
    if on_layer is None:
        return
    with torch.enable_grad():
        on_layer(model, name)
