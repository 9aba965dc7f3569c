# SPDX-License-Identifier: Apache-2.0
"""AIMET's compression API on top of slimrank: a script written for it runs when its import lines change."""

from slimrank.aimet._compress import ModelCompressor
from slimrank.aimet._parameters import (
    ChannelPruningParameters,
    CompressionScheme,
    CostMetric,
    GreedySelectionParameters,
    ModuleCompRatioPair,
    RankSelectScheme,
    SpatialSvdParameters,
    WeightSvdParameters,
)
from slimrank.aimet._statistics import CompressionStats, GreedyCompressionRatioSelectionStats

__all__ = [
    "ChannelPruningParameters",
    "CompressionScheme",
    "CompressionStats",
    "CostMetric",
    "GreedyCompressionRatioSelectionStats",
    "GreedySelectionParameters",
    "ModelCompressor",
    "ModuleCompRatioPair",
    "RankSelectScheme",
    "SpatialSvdParameters",
    "WeightSvdParameters",
]
