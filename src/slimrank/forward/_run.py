# SPDX-License-Identifier: Apache-2.0
"""One forward of a model, and the modes in which it runs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError
from slimrank.forward._batch import Batch, copied

_P = ParamSpec("_P")
_R = TypeVar("_R")


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
    copies = copied(batch)
    result: object = model(*copies.args, **copies.kwargs)
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
