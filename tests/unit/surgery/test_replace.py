# SPDX-License-Identifier: Apache-2.0
"""Means that a norm is made to expect."""

import pytest
import torch
from torch import nn

from slimrank.surgery import shift_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_norm_expects_another_mean(dtype: torch.dtype, rng: torch.Generator) -> None:
    norm = nn.BatchNorm1d(3).eval().to(dtype)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    old = norm.running_mean
    x = torch.randn(5, 3, generator=rng).to(dtype)
    shift = torch.tensor([0.25, 1.0, -3.0], dtype=torch.float64)
    expected = norm(x + shift.to(dtype))
    shift_mean(norm, shift)
    # The old buffer may be another model's too.
    assert norm.running_mean is not old
    assert old.tolist() == [1.0, -2.0, 0.5]
    assert norm.running_mean.dtype == dtype
    assert "running_mean" in dict(norm.named_buffers())
    torch.testing.assert_close(norm(x), expected)


def test_only_norms_with_statistics_take_up_a_mean() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d keeps no running mean"):
        shift_mean(nn.BatchNorm1d(2, track_running_stats=False), torch.zeros(2))
