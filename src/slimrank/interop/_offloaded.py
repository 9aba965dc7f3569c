# SPDX-License-Identifier: Apache-2.0
"""Modules that accelerate hooked, to move weights and values between devices in every forward."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from slimrank._errors import ModelError

_HOOK = "_hf_hook"
# What accelerate keeps on a module beside its hook; the methods on the model warn of moving it.
_LEFT = (_HOOK, "_old_forward", "hf_device_map", "to", "cuda", "npu", "xpu", "mlu", "musa", "sdaa")


def is_hooked(thing: object) -> bool:
    """Whether a thing is a module with a hook of accelerate."""
    return isinstance(thing, nn.Module) and _HOOK in vars(thing)


def without_hook(module: nn.Module) -> nn.Module:
    """A module without its hook, offloaded weights read (in place).

    Args:
        module: of a private copy, with a hook. Tensors are exchanged, not changed.

    Raises:
        ModelError: the hook does not tell where a weight is.
    """
    attributes = vars(module)
    stores = list(_stores(attributes[_HOOK]))
    own = attributes.get("_old_forward")
    attributes.pop("forward", None)
    if own is not None and getattr(own, "__func__", None) is not type(module).forward:
        # Another forward was set on the module before.
        attributes["forward"] = own
    for name in _LEFT:
        attributes.pop(name, None)
    for owner_name, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in list(table.items()):
                if tensor is not None and tensor.is_meta:
                    full_name = f"{owner_name}.{name}".removeprefix(".")
                    # A hook may keep weights of a whole subtree; those of a child are mostly its own hook's.
                    value = _stored(stores, full_name)
                    if value is not None:
                        table[name] = _like(tensor, value)
    return module


def _stores(hook: object) -> Iterator[Mapping[str, object]]:
    """Where a hook, or the hooks in a hook, keep weights."""
    for inner in getattr(hook, "hooks", ()):
        yield from _stores(inner)
    store = getattr(hook, "weights_map", None)
    if store is not None:
        yield store


def _stored(stores: list[Mapping[str, object]], name: str) -> object:
    """A weight from the first store that has it; None where none has."""
    for store in stores:
        try:
            return store[name]
        except KeyError:
            continue
    return None


def _like(tensor: Tensor, value: object) -> Tensor:
    """A stored weight in the type of the one whose place it takes."""
    read = torch.as_tensor(value).to(tensor.dtype)
    if read.shape != tensor.shape:
        raise ModelError(
            f"model: an offloaded weight is stored as {list(read.shape)}, and the module has "
            f"{list(tensor.shape)}; load the model anew, without device_map="
        )
    return (
        nn.Parameter(read, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else read
    )
