# SPDX-License-Identifier: Apache-2.0
"""Weights alone, beside 64 unlabelled images: what a few inputs are worth.

From the repository root: ``python examples/without_data.py``
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
    """Splits layers to 0.45 of the MACs without data and with a batch, and prints accuracies."""
    model, batches = demo.build(), demo.calibration_batches()[:1]
    print(f"before:          {accuracy(model):.1%} right")
    # A batch of the right shape tells layers and costs; its values are not used.
    shapes = [torch.zeros(1, 1, 32, 32)]
    for name, inputs, data_free in (("without data", shapes, True), ("64 images", batches, False)):
        study = sr.study(model, inputs, data_free=data_free, progress=False)
        result = study.apply(study.plan(macs=0.45, methods=("weight_svd", "spatial_svd")))
        share = result.keep_ratio("macs")
        print(f"{name + ':':16} {accuracy(result.model):.1%} right with {share:.2f} of the MACs")


if __name__ == "__main__":
    main()
