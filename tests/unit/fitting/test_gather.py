# SPDX-License-Identifier: Apache-2.0
"""What happens to the outputs of a layer, and which inputs can be compared."""

import pytest
import torch
from torch import nn

from seams import affine_of, have_same_positions
from slimrank.records import LayerSpec
from specs import conv2d, linear


def test_a_norm_has_statistics() -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(TypeError, match="bn is a BatchNorm1d without running statistics"):
        affine_of({"bn": norm}, "bn")


@pytest.mark.parametrize("affine", [True, False])
def test_gain_and_offset_are_those_of_the_norm(affine: bool, rng: torch.Generator) -> None:
    norm = nn.BatchNorm1d(3, affine=affine).eval()
    norm.running_mean.copy_(torch.randn(3, generator=rng))
    norm.running_var.copy_(torch.rand(3, generator=rng) + 0.5)
    x = torch.randn(5, 3, generator=rng)
    gain, offset = affine_of({"bn": norm}, "bn")
    with torch.no_grad():
        torch.testing.assert_close(x * gain + offset, norm(x))
    gain, offset = affine_of({"bn": norm}, None)
    assert (float(gain), float(offset)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("spec", "shape", "other", "same"),
    [
        (linear("fc", 3, 4), (2, 5, 4), (2, 5, 3), True),
        (linear("fc", 3, 4), (2, 5, 4), (2, 6, 4), False),
        (linear("fc", 3, 4), (2, 5, 4), (10, 4), False),
        (conv2d("conv", 3, 4, size=6), (2, 4, 6, 6), (2, 1, 6, 6), True),
        (conv2d("conv", 3, 4, size=6), (2, 4, 6, 6), (2, 4, 6, 5), False),
        (conv2d("conv", 3, 4, size=6), (4, 6, 6), (2, 6, 6), True),
    ],
)
def test_inputs_may_differ_in_channels_alone(
    spec: LayerSpec, shape: tuple[int, ...], other: tuple[int, ...], same: bool
) -> None:
    assert have_same_positions(spec, torch.zeros(shape), torch.zeros(other)) is same
