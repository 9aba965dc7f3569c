# SPDX-License-Identifier: Apache-2.0
"""What each layer of a recurrent module gives to the next one, and to itself one step later."""

import copy
import weakref

import torch
from torch import Tensor, nn

# Share of the largest output by which layers that run one after the other may differ from all at once.
_SAME = 1e-3


def inner_states(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Outputs of every layer of a recurrent module.

    Args:
        module: in eval mode.
        x: what it was called with.
        y: what it gave.

    Returns:
        One tensor per layer, the last one is ``y``. Where that does not follow from ``x``, since the caller
        passed states as well, nothing is known of a module of several layers: then none.
    """
    if not isinstance(module, nn.RNNBase):
        return []
    if module.num_layers == 1:
        return [y]
    states: list[Tensor] = []
    for layer in range(module.num_layers):
        x = _alone(module, layer)(x)[0]
        states.append(x)
    largest = float(y.abs().max()) if y.numel() else 0.0
    is_same = x.shape == y.shape and torch.allclose(x, y, rtol=0.0, atol=_SAME * largest)
    return [*states[:-1], y] if is_same else []


def _alone(module: nn.RNNBase, layer: int) -> nn.RNNBase:
    """One layer of a recurrent module as a module; it shares the weights."""
    alone = copy.copy(module)
    # Tables of its own, and none of the hooks.
    vars(alone).update({key: type(value)() for key, value in vars(module).items() if key.endswith("_hooks")})
    n_directions = 2 if module.bidirectional else 1
    old = module._all_weights[layer * n_directions :][:n_directions]
    new = [[name.replace(f"_l{layer}", "_l0") for name in names] for names in old]
    alone._parameters = {
        key: module._parameters[name]
        for keys, names in zip(new, old, strict=True)
        for key, name in zip(keys, names, strict=True)
    }
    alone.num_layers = 1
    alone.input_size = module.get_parameter(f"weight_ih_l{layer}").shape[1]
    alone._all_weights = new
    alone._flat_weights_names = [key for keys in new for key in keys]
    weights = [alone.get_parameter(key) for key in alone._flat_weights_names]
    alone._flat_weights = [*weights]
    alone._flat_weight_refs = [weakref.ref(weight) for weight in weights]
    return alone
