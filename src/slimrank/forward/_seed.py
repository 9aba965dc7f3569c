# SPDX-License-Identifier: Apache-2.0
"""Forwards that draw the same random numbers every time."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """The CUDA devices that parameters lie on, each once: those whose random numbers a forward may draw."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


@contextlib.contextmanager
def fixed_seed(model: nn.Module) -> Iterator[None]:
    """The same random numbers every time, on every device of the model; the caller's are put back."""
    devices = cuda_devices(model)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(0)
        yield


@contextlib.contextmanager
def fixed_seed_without_warnings(model: nn.Module) -> Iterator[None]:
    """The same random numbers every time, and no warnings."""
    with fixed_seed(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
