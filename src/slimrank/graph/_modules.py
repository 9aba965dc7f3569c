# SPDX-License-Identifier: Apache-2.0
"""Modules by name: copy, find, replace."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slimrank._errors import ModelError
from slimrank.graph._batch import Batch


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the original.

    Args:
        model: any module.

    Returns:
        The copy: same class, names, values, modes and hooks.

    Raises:
        ModelError: the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            # Such tensors (old-style weight norm keeps one) are refused by deepcopy.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}); "
            "remove what copy.deepcopy(model) refuses"
        ) from error


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in place of another, under every name that it has in the tree (in place).

    Args:
        model: the tree.
        name: dotted name of the module to replace; not the root.
        new: what takes its place.
    """
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new


def quiet_copy(model: nn.Module) -> nn.Module:
    """A private copy for reading: eval mode, no parameter asks for gradients."""
    return copy_model(model).eval().requires_grad_(requires_grad=False)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Turns torch's fused transformer layers off, so that every layer is called as a module."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def run(model: nn.Module, batch: Batch) -> object:
    """One forward, every layer called as a module; gradients as the caller has set them."""
    with plain_attention():
        result: object = model(*batch.args, **batch.kwargs)
    return result
