# SPDX-License-Identifier: Apache-2.0
"""Plans count what the built model counts, down to products of einsum over a single index."""

import torch
from torch import Tensor, nn

import slimrank as sr


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.head, self.n = nn.Linear(8, 6), nn.Linear(8, 48), nn.Linear(8, 4), 6

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bdn,bn->bd", self.keys(x).view(len(x), 8, self.n), self.queries(x)))


def test_counts_of_plan_and_model_agree_at_every_width(rng: torch.Generator) -> None:
    batches = [torch.randn(16, 8, generator=rng)]
    study = sr.study(_Net().eval(), batches, effort="fast", progress=False)
    (inner,) = (name for name, group in study.structure.channels.groups.items() if group.is_inner)
    for keep in (1, 2):
        plan = sr.Plan.manual(study, {inner: ("channel_pruning", {"keep": keep})})
        result = study.apply(plan)
        assert result.after.macs == plan.after.macs == 8 * keep + 64 * keep + 8 * keep + 32
        # What is left is counted, and slimmed, alike.
        again = sr.study(result, batches, effort="fast", progress=False)
        assert again.before.macs == plan.after.macs
