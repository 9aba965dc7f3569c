# SPDX-License-Identifier: Apache-2.0
"""Modules by name: copy, find, replace."""

import contextlib
import functools
import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError
from slimrank.forward._batch import Batch, copied, named_tensors

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


_TORCH, _PACKAGE = (f"{Path(file).parent}/" for file in (torch.__file__, Path(__file__).parent))


def is_users_code(file: str) -> bool:
    """Whether a source file is the user's own: neither torch's, nor of this package, nor made up.

    The demo's network stands for a user's.
    """
    if file.startswith((_TORCH, "<")):
        return False
    return not file.startswith(_PACKAGE) or file.startswith(f"{_PACKAGE}demo/")


def describe(error: Exception) -> str:
    """An error in one line, with the innermost source line that is neither torch's nor of this room."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_code(frame.filename)]
    if not frames:
        return text
    last = frames[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{text} at {Path(last.filename).name}:{last.lineno} `{line}`"


def training_error(model: nn.Module, sample: Batch) -> str | None:
    """What a forward in training mode or the way back dies of."""
    model.train()
    try:
        with torch.enable_grad(), quiet_luck(model):
            result = call(model, sample)
            sums = [tensor.float().sum() for _, tensor in named_tensors(result) if tensor.requires_grad]
            if sums:
                torch.stack(sums).sum().backward()
    except Exception as error:
        return describe(error)
    return None


@contextlib.contextmanager
def quiet_luck(model: nn.Module) -> Iterator[None]:
    """The same random numbers every time, and no word of what warns."""
    with same_luck(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
