# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed anew in every forward, stored as what they come to."""

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# Torch's older functions, which compute in a hook before the forward.
_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
_HOOK_TABLES = ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def has_computed_weights(module: nn.Module) -> bool:
    """Whether a module has a parametrization, or torch's older weight norm, spectral norm or pruning mask."""
    return parametrize.is_parametrized(module) or any(map(is_weight_hook, module._forward_pre_hooks.values()))


def is_weight_hook(hook: object) -> bool:
    """Whether a hook of a module computes a weight of it, by one of torch's older functions."""
    return isinstance(hook, _HOOKS)


def store_computed_weights(module: nn.Module) -> None:
    """Makes plain tensors of the computed ones, and takes off what computes them (in place).

    Args:
        module: of a private copy, in eval mode. Its tensors and tables of hooks are exchanged, not changed.
    """
    if parametrize.is_parametrized(module):
        _store_parametrized(module)
    for table in _HOOK_TABLES:
        setattr(module, table, vars(module)[table].copy())
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = False


def _store_parametrized(module: nn.Module) -> None:
    # Not by torch's remove_parametrizations: it deletes a property of a class that deep copies of the module
    # share, and so would break the module that this one was copied from.
    by_name = module.parametrizations
    if not isinstance(by_name, nn.ModuleDict):
        raise TypeError(f"{type(module).__name__} keeps no table of parametrizations")
    values = {name: getattr(module, name).detach().clone() for name in by_name}
    parameters = {name for name, how in by_name.items() if list(how.parameters(recurse=False))}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if name in parameters:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)
