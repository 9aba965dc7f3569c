# SPDX-License-Identifier: Apache-2.0
"""Copies of a model: whole, quiet, light; and what is exchanged in one put back."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from slimrank._errors import ModelError


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the original.

    Args:
        model: any module.

    Returns:
        The copy: same class, names, values, modes and hooks.

    Raises:
        ModelError: the model cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is a torch.jit script; its modules cannot be replaced: pass the eager model"
        )
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ModelError(
            "the model is compiled by torch.compile, which hides its layers; pass model._orig_mod, "
            "and compile the result"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"{name} is not initialised yet (a lazy layer); run the model once first")
    try:
        return copy.deepcopy(model, _computed_tensors(model))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied ({error}); "
            "remove what copy.deepcopy(model) refuses"
        ) from error


def _computed_tensors(model: nn.Module) -> dict[int, object]:
    """By id, copies of what deepcopy refuses: old-style weight norm keeps such a tensor, LSTMs list it."""
    return {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        for tensor in (value if type(value) is list else (value,))
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    }


def remember(model: nn.Module) -> Callable[[], None]:
    """What a model is made of now, to go back to it.

    Args:
        model: to be changed in place.

    Returns:
        A function that puts back whatever was exchanged since: modules, tensors, attributes, classes. Values
        changed within a tensor are not put back, nor hooks taken off; exchange the tensor and the table.
    """
    # Copies of the three tables, since these are changed in place; other attributes are set anew.
    saved = [
        (
            module,
            type(module),
            vars(module) | {key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")},
        )
        for module in model.modules()
    ]

    def go_back() -> None:
        for module, kind, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
            if type(module) is not kind:
                module.__class__ = kind

    return go_back


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever is exchanged in a model while the context lasts is put back, as by ``remember``."""
    go_back = remember(model)
    try:
        yield
    finally:
        go_back()


def quiet_copy(model: nn.Module) -> nn.Module:
    """A private copy for reading: eval mode, no parameter asks for gradients."""
    copy_ = copy_model(model)
    # One call each: overridden train() methods often forget to return the module.
    copy_.eval()
    copy_.requires_grad_(requires_grad=False)
    return copy_


# What modules keep their hooks and children in. Exact types: a subclass may hold more than its entries.
_CONTAINERS: tuple[type, ...] = (dict, OrderedDict, set)


def light_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters are those of the original: to be replaced, never to be written to.

    Args:
        model: a private copy.

    Returns:
        The copy; its buffers are its own.
    """
    memo = _computed_tensors(model) | {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in _CONTAINERS and not value:
                # A module holds a dozen of them, mostly for hooks; deepcopy spends half of its time there.
                memo[id(value)] = type(value)()
    return copy.deepcopy(model, memo)
