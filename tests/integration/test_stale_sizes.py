# SPDX-License-Identifier: Apache-2.0
"""Sizes that only methods beside the forward read are noted in the result."""

import torch
from torch import Tensor, nn

import slimrank as sr


class _Fusable(nn.Module):
    """Like a block of RepVGG."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.width, self.unread = channels, channels, channels
        self.conv, self.skip = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self._checked(self.conv(x) + self.skip(x)).relu()

    def _checked(self, x: Tensor) -> Tensor:
        return x if self.width else -x

    def fused(self) -> Tensor:
        return self.conv.weight + torch.eye(self.channels)[:, :, None, None]

    @property
    def size(self) -> int:
        return sum(self.channels for _ in range(1))


def test_sizes_that_only_other_methods_read_are_noted(rng: torch.Generator) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        _Fusable(12),
        _Fusable(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).eval()
    batches = [torch.randn(24, 3, 4, 4, generator=rng)]
    study = sr.study(model, batches, methods=("channel_pruning",), effort="fast", progress=False)
    (group,) = (name for name, group in study.structure.channels.groups.items() if group.reason is None)
    result = study.apply(sr.Plan.manual(study, {group: ("channel_pruning", {"keep": 5})}))
    (text,) = (note.text for note in result.notes if "is still" in note.text)
    assert text.startswith("channels is still 12 in '1', '2', where 5 channels are left")
    assert "'fused', 'size' may read it" in text
    for block in result.model[1:3]:
        block.channels = 5
        assert block.fused().shape == (5, 5, 1, 1)
    whole = study.apply(sr.Plan.manual(study, {}))
    assert not any("is still" in note.text for note in whole.notes)
