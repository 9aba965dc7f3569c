# SPDX-License-Identifier: Apache-2.0
"""What would stay whole though nothing speaks against it: channels, blocks and layers of unusual ways."""

import pytest
from nets import noise
from torch import Tensor, nn

import slimrank as sr


def live_groups(study: sr.Study) -> set[str]:
    return {name for name, group in study.structure.channels.groups.items() if group.reason is None}


class Clip(nn.Module):
    """Frames of a clip, folded into the batch."""

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.a, self.b, self.fc = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.fc(x.view(-1, self.n_frames, x.shape[1]).mean(1))


@pytest.mark.parametrize("n_frames", [3, 4])
def test_frames_that_are_folded_into_the_batch(n_frames: int) -> None:
    study = sr.study(Clip(n_frames).eval(), noise(8, size=12), draws=1, progress=False)
    assert live_groups(study) == {"a", "b"}
    result = study.apply(study.plan(macs=0.6))
    assert result.after.macs <= 0.6 * result.before.macs
