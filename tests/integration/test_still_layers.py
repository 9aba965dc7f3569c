# SPDX-License-Identifier: Apache-2.0
"""Networks with layers whose values do not vary beyond rounding: told layer by layer, and no error."""

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


class _Fading(nn.Module):
    """A branch whose values are so small that their squares are none in float32, or that is dead."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1, bias=False)
        self.second, self.third = nn.Conv2d(16, 8, 1, bias=False), nn.Conv2d(8, 16, 1, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        faded = self.third(self.second(self.first(x).relu() * self.scale).relu())
        return self.head((x + faded).mean((2, 3)))


@pytest.mark.parametrize("scale", [0.0, 3e-22])
def test_a_study_goes_on_where_values_fade(scale: float, rng: torch.Generator) -> None:
    batches = [torch.randn(24, 3, 6, 6, generator=rng)]
    study = sr.study(_Fading(scale).eval(), batches, effort="fast", progress=False)
    told = {note.where: note.text for note in study.notes}
    assert "do not vary beyond rounding" in told["third"]
    # What no gradient reaches either is told so.
    assert ("no gradient" if scale == 0 else "do not vary beyond rounding") in told["second"]
    assert {"stem", "head"}.isdisjoint(told)
    result = study.apply(study.plan(macs=0.6))
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.divergence is not None
    assert 0 <= result.divergence < float("inf")
