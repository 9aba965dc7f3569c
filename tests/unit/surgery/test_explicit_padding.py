# SPDX-License-Identifier: Apache-2.0
"""Padding in numbers; what it computes is compared in tests of ``prepare``."""

import pytest
from torch import nn

from slimrank.surgery import explicit_padding


def test_even_padding_is_set_on_the_convolution_itself() -> None:
    conv = nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1))
    assert explicit_padding(conv) is conv
    assert conv.padding == (2, 2)


@pytest.mark.parametrize("training", [True, False])
def test_uneven_padding_stands_in_front(training: bool) -> None:
    conv = nn.Conv1d(3, 4, 2, padding="same").train(training)
    padded = explicit_padding(conv)
    assert padded is not None
    assert [type(part) for part in padded] == [nn.ZeroPad1d, nn.Conv1d]
    assert padded[1] is conv
    assert [module.training for module in padded.modules()] == [training] * 3


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
        nn.ConvTranspose2d(3, 4, 3),
        nn.Linear(3, 4),
    ],
)
def test_nothing_is_done_where_nothing_is_to_do(module: nn.Module) -> None:
    before = getattr(module, "padding", None)
    assert explicit_padding(module) is None
    assert getattr(module, "padding", None) == before
