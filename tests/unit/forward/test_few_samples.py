# SPDX-License-Identifier: Apache-2.0
"""The fewest samples that a model runs on, where frames or views are folded into the batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slimrank.forward import as_batch, few_samples


class _By(nn.Module):
    """Whatever a function makes of the batch."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _frames(count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.view(-1, count, x.shape[1]).mean(1)


def _views(x: Tensor) -> Tensor:
    # A single row leaves no right view: the means hold nan.
    return x[::2].mean(0) + x[1::2].mean(0)


def _pairs(x: Tensor) -> Tensor:
    return x[::2][: len(x[1::2])] * x[1::2]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _all(x: Tensor) -> Tensor:
    return x.view(12, 4) @ torch.ones(4, 1)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (_frames(3), 6),
        (_frames(4), 8),
        (_frames(6), 12),
        (_frames(12), 12),
        (_views, 4),
        (_pairs, 4),
        (_centred, 2),
        (_all, 12),
    ],
)
def test_it_is_twice_what_the_model_asks_for(function: Callable[[Tensor], Tensor], wanted: int) -> None:
    x = torch.arange(48.0).reshape(12, 4)
    (cut,) = few_samples(_By(function), as_batch(x)).args
    assert torch.equal(cut, x[:wanted])


def test_a_batch_that_cannot_be_cut_stays() -> None:
    # One row of the second tensor for four of the first: no cut has as many of each.
    batch = as_batch((torch.ones(8, 4), torch.ones(2, 4)))
    model = _By(lambda x, y: x.view(-1, 4, 4).mean(1) + y.view(len(x) // 4, 4))
    assert few_samples(model, batch) is batch
