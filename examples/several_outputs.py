# SPDX-License-Identifier: Apache-2.0
"""A network with two outputs, a map of classes and a map of depths: what counts, and how much.

From the repository root: ``python examples/several_outputs.py``
"""

import torch
from torch import Tensor, nn

import slimrank as sr


class Maps(nn.Module):
    """Classes of pixels and their depth from one trunk; untrained, so that the example needs no file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
        self.classes, self.depth = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (N, 5, H, W) and (N, 1, H, W)."""
        features = self.second(self.first(images).relu()).relu()
        return {"classes": 20 * self.classes(features), "depth": self.depth(features)}


def main() -> None:
    """Compresses to half of the MACs with and without a weight, and prints what each output lost."""
    torch.manual_seed(0)
    model, batches = Maps().eval(), [torch.randn(16, 3, 16, 16) for _ in range(4)]
    likelihood = {"classes": "categorical", "depth": "gaussian"}
    for weights in (None, {"depth": 1000.0}):
        study = sr.study(model, batches, likelihood=likelihood, weights=weights, progress=False)
        result = study.apply(study.plan(macs=0.5))
        lost = {name: f"{output.lost:.2%}" for name, output in result.agreement.items()}
        print(f"{study.before.macs:,} -> {result.after.macs:,} MACs, weights {weights}, lost: {lost}")


if __name__ == "__main__":
    main()
