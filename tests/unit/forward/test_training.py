# SPDX-License-Identifier: Apache-2.0
"""Whether a model can be trained."""

import re

import pytest
import torch
from torch import Tensor, nn

from slimrank.forward import as_batch, training_error


class _OnlyEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("cannot be trained")
        out: Tensor = self.layer(x)
        return out


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: object, _gradient: Tensor) -> Tensor:
        raise ValueError("no gradient here")


class _ForwardOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _NoBackward.apply(self.layer(x))
        return out


@pytest.mark.parametrize(
    ("make", "error", "line"),
    [
        (_OnlyEval, "ValueError: cannot be trained", 'raise ValueError("cannot be trained")'),
        (_ForwardOnly, "ValueError: no gradient here", 'raise ValueError("no gradient here")'),
    ],
)
def test_the_error_of_the_forward_or_of_the_backward_pass_is_told(
    make: type[nn.Module], error: str, line: str
) -> None:
    text = training_error(make().eval(), as_batch(torch.ones(1, 2)))
    assert re.fullmatch(rf"{error} at test_training\.py:\d+ `{re.escape(line)}`", str(text))


def test_a_model_that_trains_and_one_without_gradients_have_no_error() -> None:
    model = nn.Linear(2, 2)
    assert training_error(model, as_batch(torch.ones(1, 2))) is None
    assert model.weight.grad is not None
    assert training_error(nn.ReLU(), as_batch(torch.ones(1, 2))) is None
