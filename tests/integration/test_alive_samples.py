# SPDX-License-Identifier: Apache-2.0
"""To how many samples layers are fitted, where maps wait for a late layer."""

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr

# Bytes of one channel of 8 by 8 numbers.
MAP = 4 * 64


class Skip(nn.Module):
    """A map that nothing but functions touch waits for the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 16, 3, padding=1)
        self.deep = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)))
        self.up = nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.relu(self.down(x))
        deep = nn.functional.interpolate(self.deep(torch.max_pool2d(kept, 2)), scale_factor=2)
        result: Tensor = self.up(torch.cat([kept, deep], 1))
        return result


def test_samples_that_are_fitted_to_follow_what_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batches = list(torch.randn(80, 2, 8, 8).split(16))
    study = sr.study(Skip().eval(), batches, effort="fast", progress=False)
    plan = study.plan(macs=0.7)
    # In both networks: inputs, what waits, both maps that are joined, the two joined, the output.
    most = 2 * (2 + 16 + 16 + 32 + 2) * MAP
    for n_samples, told in ((80, None), (40, "layers were fitted to 64, later 32, of 64 samples")):
        seams.limit_alive(monkeypatch, n_bytes=n_samples * most)
        notes = [note.text for note in study.apply(plan).notes if "layers were fitted to" in note.text]
        assert (notes == []) if told is None else (len(notes) == 1 and notes[0].startswith(told))
