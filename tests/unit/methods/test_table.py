# SPDX-License-Identifier: Apache-2.0
"""What each form takes of a kernel, and the empty modules that follow from it."""

import pytest
import torch
from torch import nn

from slimrank.capture import describe_layers
from slimrank.cost import FORM_ROWS, max_rank
from slimrank.methods import empty_pair
from slimrank.records import Form, LayerSpec


def _spec(layer: nn.Module) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    return spec


@pytest.mark.parametrize("form", FORM_ROWS)
def test_the_factors_share_the_taps(form: Form) -> None:
    first, second = FORM_ROWS[form].first_taps(2), FORM_ROWS[form].second_taps(2)
    assert [a != b for a, b in zip(first, second, strict=True)] == [True, True]
    assert FORM_ROWS[form].is_closed == (not any(second))


# Kernel, stride, padding, dilation of the first factor, then of the second.
_NEUTRAL = ((1, 1), (1, 1), (0, 0), (1, 1))
_WHOLE = ((3, 5), (2, 3), (4, 6), (7, 8))
_ROWS = ((3, 1), (2, 1), (4, 0), (7, 1))
_COLUMNS = ((1, 5), (1, 3), (0, 6), (1, 8))


@pytest.mark.parametrize(
    ("form", "first", "second"),
    [
        ("kxk_1x1", _WHOLE, _NEUTRAL),
        ("1x1_kxk", _NEUTRAL, _WHOLE),
        ("v_h", _ROWS, _COLUMNS),
        ("h_v", _COLUMNS, _ROWS),
    ],
)
def test_geometry_goes_with_the_taps(
    form: Form, first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]
) -> None:
    layer = nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(4, 6), dilation=(7, 8), padding_mode="replicate")
    modules = empty_pair(_spec(layer), form, 2, has_bias=True)
    assert [m.weight.shape[:2] for m in modules] == [(2, 4), (6, 2)]
    assert [m.bias is not None for m in modules] == [False, True]
    for module, expected in zip(modules, (first, second), strict=True):
        assert isinstance(module, nn.Conv2d)
        assert (module.kernel_size, module.stride, module.padding, module.dilation) == expected
        assert module.padding_mode == ("zeros" if expected == _NEUTRAL else "replicate")
        assert module.weight.is_meta


def test_padding_words_stay_where_there_are_taps() -> None:
    same, pointwise = empty_pair(_spec(nn.Conv2d(4, 6, 3, padding="same")), "kxk_1x1", 2, has_bias=False)
    assert (same.padding, pointwise.padding) == ("same", (0, 0))
    valid = empty_pair(_spec(nn.Conv2d(4, 6, 3, padding="valid")), "v_h", 2, has_bias=False)
    assert [module.padding for module in valid] == ["valid", "valid"]


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.Conv1d(4, 6, 3), nn.Conv1d), (nn.Conv2d(4, 6, 3), nn.Conv2d), (nn.Conv3d(4, 6, 3), nn.Conv3d)],
)
def test_a_convolution_stays_one(layer: nn.Module, kind: type[nn.Module]) -> None:
    assert [type(m) for m in empty_pair(_spec(layer), "kxk_1x1", 2, has_bias=False)] == [kind, kind]


def test_a_linear_gives_two() -> None:
    first, second = empty_pair(_spec(nn.Linear(5, 7)), "linear", 3, has_bias=False)
    assert (first.weight.shape, second.weight.shape) == (torch.Size([3, 5]), torch.Size([7, 3]))
    assert first.bias is None
    assert second.bias is None
    assert max_rank(_spec(nn.Linear(5, 7)), "linear") == 5
