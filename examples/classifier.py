# SPDX-License-Identifier: Apache-2.0
"""Compress a CNN that classifies, without labels, and compare accuracies: by a budget, and by a drop.

From the repository root: ``python examples/classifier.py``
"""

import torch
from torch import nn

import slimrank as sr
from slimrank import demo


@torch.inference_mode()
def accuracy(model: nn.Module) -> float:
    """Share of the test images that a network classifies right; it is used to judge only."""
    tests = demo.test_batches()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in tests)
    return right / sum(len(labels) for _, labels in tests)


def main() -> None:
    """Compresses the demo's network twice, and prints figures before and after."""
    model, batches = demo.build(), demo.calibration_batches()
    study = sr.study(model, batches, progress=False)
    print(f"before:              {study.before.macs:,} MACs, {accuracy(model):.1%} right")

    half = study.apply(study.plan(macs=0.5))
    print(f"half of the MACs:    {half.after.macs:,} MACs, {accuracy(half.model):.1%} right")

    small = sr.smallest(study, max_drop=0.02)
    print(f"0.02 nats are lost:  {small.after.macs:,} MACs, {accuracy(small.model):.1%} right")


if __name__ == "__main__":
    main()
