# SPDX-License-Identifier: Apache-2.0
"""A copy of a model in which formats of the table are undone."""

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from slimrank._errors import ModelError
from slimrank.interop._formats import FORMATS, Format
from slimrank.interop._kinds import is_kind
from slimrank.surgery import replace_module

_HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[Format, ...]]:
    """A model with its formats undone, and which these were; the model itself where there is none.

    Args:
        model: the caller's; it is not changed. Weights are shared where they need not be changed.

    Raises:
        ModelError: the model cannot be copied, or a format cannot be undone.
    """
    modules = list(model.modules())
    found = [row for row in FORMATS if row.place == "module" and any(row.is_it(module) for module in modules)]
    undone = [row for row in found if row.unwrap or row.change or row.plain_class]
    if not undone:
        return model, ()
    copied = _copied(model, modules, undone)
    for row in undone:
        if row.change is not None:
            copied = _changed(copied, row.is_it, row.change)
    return copied, tuple(undone)


def _changed(
    model: nn.Module, is_it: Callable[[object], bool], change: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A private copy with the outermost modules of a kind changed."""
    if is_it(model):
        return _changed_inside(change(model), is_it, change)
    return _changed_inside(model, is_it, change)


def _changed_inside(
    model: nn.Module, is_it: Callable[[object], bool], change: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    for name, module in list(model.named_modules()):
        if name and is_it(module) and _is_there(model, name, module):
            new = change(module)
            if new is not module:
                replace_module(model, name, new)
    return model


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a module stands where it stood, though what is around it was exchanged."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False


def _copied(model: nn.Module, modules: Sequence[nn.Module], undone: Sequence[Format]) -> nn.Module:
    """A deep copy without wrappers, of the classes that modules had before."""
    memo = _not_copied(modules, shares=not any(row.changes_weights for row in undone))
    sharded = {
        id(module): (module, row.plain_class(module))
        for row in undone
        for module in modules
        if row.plain_class is not None and row.is_it(module)
    }
    memo |= {key: object.__new__(plain) for key, (_, plain) in sharded.items()}
    try:
        # From the inside out: what a wrapper holds takes its place wherever it is referred to.
        for module in reversed(modules):
            inner = next((row.unwrap(module) for row in undone if row.unwrap and row.is_it(module)), None)
            if inner is not None:
                memo[id(module)] = copy.deepcopy(inner, memo)
        for key, (module, _) in sharded.items():
            vars(memo[key]).update(copy.deepcopy(_unsharded(module), memo))
        made: object = copy.deepcopy(model, memo)
    except Exception as error:
        names = ", ".join(row.name for row in undone)
        raise ModelError(
            f"model: {names} cannot be undone in a copy of it ({error}); give the plain torch.nn.Module"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"model: a wrapper holds a {type(made).__name__}; give a torch.nn.Module")
    return made


def _not_copied(modules: Sequence[nn.Module], *, shares: bool) -> dict[int, object]:
    """What stands in the copy for tensors and hooks, by ``id``: themselves, or what deepcopy would refuse."""
    memo: dict[int, object] = {}
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif name == "_hf_hook":
                # It holds the whole store of weights.
                memo[id(value)] = value
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and is_kind(tensor, r"torch\.distributed\.tensor\.(.*\.)?DTensor$"):
                memo[id(tensor)] = _gathered(tensor)
            elif tensor is not None and shares:
                memo[id(tensor)] = tensor
    return memo


def _gathered(tensor: Tensor) -> Tensor:
    """A weight that is spread over processes, whole in each of them."""
    whole: Tensor = tensor.full_tensor().detach()  # type: ignore[attr-defined]
    return (
        nn.Parameter(whole, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole
    )


def _unsharded(module: nn.Module) -> dict[str, object]:
    """The attributes of a module, without those that ``fully_shard`` gave it."""
    attributes = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith(("__composable_api", "_is_fsdp", "_fsdp"))
    }
    for name in _HOOK_TABLES:
        table = attributes.get(name)
        if isinstance(table, dict):
            kept = ((key, hook) for key, hook in table.items() if not _is_of_sharding(hook))
            attributes[name] = type(table)(kept)
    return attributes


def _is_of_sharding(hook: object) -> bool:
    return is_kind(getattr(hook, "__self__", None), r"torch\.distributed\.")
