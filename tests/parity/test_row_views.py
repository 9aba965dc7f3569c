# SPDX-License-Identifier: Apache-2.0
"""Rows that one sample gives, from the shapes of calls, against the MACs of the layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slimrank.capture import capture
from slimrank.cost import row_cap, row_view, row_width, rows_available
from slimrank.forward import as_batch
from slimrank.records import LayerSpec
from slimrank.surgery import dense_weight, quiet_copy

_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear on tokens": (lambda: nn.Linear(5, 3, bias=False), (4, 6, 5)),
    "linear on 4-D": (lambda: nn.Linear(5, 3), (4, 2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 4, 11)),
    "conv1d in groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), (4, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1), (4, 4, 9, 8)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (4, 4, 9, 8)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), (4, 4, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 4, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 2), padding=(1, 1, 0)), (4, 2, 4, 7, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1), (4, 4, 7)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1), (4, 4, 5, 6)),
    "transposed 2d, dilated": (
        lambda: nn.ConvTranspose2d(4, 3, (3, 2), (1, 3), dilation=2, output_padding=(0, 1), bias=False),
        (4, 4, 5, 6),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, 2), (4, 2, 3, 4, 2)),
}


class _Called(nn.Module):
    """A layer that is called on maps of several sizes."""

    def __init__(self, layer: nn.Module, calls: int) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, x: Tensor) -> list[Tensor]:
        # Longer along the first dimension that is neither samples nor channels, if there is one.
        dim = 1 if isinstance(self.layer, nn.Linear) else 2
        grown = [torch.cat([x] * (count + 1), dim) if x.ndim > 2 else x for count in range(self.calls)]
        return [self.layer(part) for part in grown]


def _captured(name: str, calls: int) -> tuple[nn.Module, LayerSpec]:
    build, shape = _LAYERS[name]
    model = quiet_copy(_Called(build(), calls))
    captured = capture(model, as_batch(torch.randn(shape)), methods=(), skip=(), has_bias=True)
    (spec,) = [spec for spec in captured.layers if spec.name == "layer"]
    assert len(spec.calls) == calls
    return model.get_submodule("layer"), spec


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("name", _LAYERS)
def test_positions_are_those_that_the_macs_tell(name: str, calls: int) -> None:
    layer, spec = _captured(name, calls)
    view = row_view(spec)
    assert (view.n_outputs, view.n_columns) == tuple(dense_weight(layer).shape)
    # Of the matrix of a layer in groups, only the blocks on the diagonal are multiplied.
    assert spec.macs * spec.groups == view.n_positions * view.n_outputs * view.n_columns
    assert view.n_positions > 0


@pytest.mark.parametrize("n_samples", [1, 7, 10**6])
@pytest.mark.parametrize("name", _LAYERS)
def test_rows_of_samples_are_capped(name: str, n_samples: int) -> None:
    _, spec = _captured(name, 2)
    by_macs = spec.macs * spec.groups // (row_width(spec) * row_view(spec).n_outputs)
    assert rows_available(spec, n_samples) == min(row_cap(spec), by_macs * n_samples)
