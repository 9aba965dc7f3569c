# SPDX-License-Identifier: Apache-2.0
"""A script as it was written for AIMET, with other import lines: spatial SVD by eval scores.

From the repository root: ``python examples/aimet_port.py``
"""

from decimal import Decimal

import torch
from torch import nn

from slimrank import aimet, demo


def evaluate(model: nn.Module, iterations: int | None, use_cuda: bool) -> float:
    """Share of right answers on so many batches of labelled images; None for all."""
    batches = demo.test_batches()[:iterations]
    with torch.inference_mode():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def main() -> None:
    """Compresses the demo's network as AIMET's ModelCompressor does, and prints figures and accuracies."""
    model, spatial = demo.build(), aimet.SpatialSvdParameters
    greedy = aimet.GreedySelectionParameters(Decimal("0.6"), num_comp_ratio_candidates=4)
    auto = spatial.AutoModeParams(greedy, modules_to_ignore=[model.stem[0]])
    compressed, statistics = aimet.ModelCompressor.compress_model(
        *(model, evaluate, 2),
        input_shape=(1, 1, 32, 32),
        compress_scheme=aimet.CompressionScheme.spatial_svd,
        cost_metric=aimet.CostMetric.mac,
        parameters=spatial(spatial.Mode.auto, auto),
    )
    print(f"MACs kept: {statistics.mac_compression_ratio}, asked for: {greedy.target_comp_ratio}")
    print(f"right: {evaluate(model, None, False):.1%} before, {evaluate(compressed, None, False):.1%} after")


if __name__ == "__main__":
    main()
