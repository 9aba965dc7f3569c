# SPDX-License-Identifier: Apache-2.0
"""Modules by name: copy, find, replace."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, ModelError
from slimrank.graph._batch import Batch, copied

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def shift_mean(norm: nn.Module, shift: Tensor) -> None:
    """Lets a batch norm expect another mean (in place, by another buffer).

    Args:
        norm: with running statistics.
        shift: (C,), what its inputs lack of the mean that they had.
    """
    mean = norm.running_mean
    if not isinstance(mean, Tensor):
        raise TypeError(f"{type(norm).__name__} keeps no running mean")
    norm.running_mean = (mean.double() - shift.double()).to(mean.dtype)


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever is exchanged in a model while the context lasts is put back: modules, tensors, attributes.

    Values changed within a tensor are not; exchange the tensor.
    """
    saved = [
        (
            module,
            vars(module) | {key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")},
        )
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)


def quiet_copy(model: nn.Module) -> nn.Module:
    """A private copy for reading: eval mode, no parameter asks for gradients."""
    copy_ = copy_model(model)
    # One call each: overridden train() methods often forget to return the module.
    copy_.eval()
    copy_.requires_grad_(requires_grad=False)
    return copy_


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """The CUDA devices that parameters lie on, each once: those whose random numbers a forward may draw."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


@contextlib.contextmanager
def same_luck(model: nn.Module) -> Iterator[None]:
    """The same random numbers every time, on every device of the model; the caller's are put back."""
    devices = cuda_devices(model)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(0)
        yield


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Turns torch's fused transformer layers off, so that every layer is called as a module."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode while the context lasts; every module's own mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, with inference mode off while it runs, so that what it makes can be trained."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.inference_mode(mode=False):
            return function(*args, **kwargs)

    return wrapper


def run(model: nn.Module, batch: Batch) -> object:
    """One forward, every layer called as a module; gradients as the caller has set them.

    Raises:
        BatchesError: the model refuses the batch.
    """
    try:
        with plain_attention():
            return call(model, batch)
    except Exception as error:
        raise BatchesError(_refusal(model, batch, error)) from error


def call(model: nn.Module, batch: Batch) -> object:
    """One forward on copies of the tensors, since the model may work on its inputs in place."""
    own = copied(batch)
    result: object = model(*own.args, **own.kwargs)
    return result


def _refusal(model: nn.Module, sample: Batch, error: Exception) -> str:
    given = ", ".join(
        [
            f"{type(value).__name__}{list(value.shape) if isinstance(value, Tensor) else ''}"
            for value in sample.args
        ]
        + [f"{key}=" for key in sample.kwargs]
    )
    cure = (
        "a loader that yields (input, label) needs inputs=lambda b: b[0]"
        if len(sample.args) > 1
        else "check the shape and dtype of the inputs, or pass inputs=lambda b: ..."
    )
    return f"{type(model).__name__} refuses {sample.where} ({given}): {type(error).__name__}: {error}; {cure}"
