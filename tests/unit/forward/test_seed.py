# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are the same in every forward, and the caller's, which go on as before."""

import warnings

import pytest
import torch
from torch import nn

from slimrank.forward import fixed_seed, fixed_seed_without_warnings


def test_the_numbers_are_the_same_every_time() -> None:
    drawn = []
    for _ in range(2):
        torch.rand(3)
        with fixed_seed(nn.Linear(1, 1)):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_the_callers_numbers_go_on_as_if_nothing_was_drawn() -> None:
    # Made first, since its weights are drawn too.
    model = nn.Linear(1, 1)
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    with fixed_seed(model):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


def test_warnings_are_silent_inside_and_heard_again_after() -> None:
    drawn = []
    for context in (fixed_seed, fixed_seed_without_warnings):
        with context(nn.Linear(1, 1)):
            if context is fixed_seed_without_warnings:
                warnings.warn("of the user's code", UserWarning, stacklevel=1)
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    with pytest.warns(UserWarning, match="after it"):
        warnings.warn("after it", UserWarning, stacklevel=1)
