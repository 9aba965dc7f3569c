# SPDX-License-Identifier: Apache-2.0
"""A model and one batch: layers, costs, blocks, and what follows a layer."""

from slimrank.capture._activations import Alive, Place, alive_by_place, peak_activation_bytes
from slimrank.capture._blocks import find_blocks
from slimrank.capture._count import count_by_module, count_cost, stored
from slimrank.capture._epilogues import Epilogue, Source, find_epilogues, find_norms, find_sources
from slimrank.capture._layers import Captured, capture, check_compressible, check_weights, describe_layers
from slimrank.capture._reasons import DEPTHWISE, SKIPPED

__all__ = [
    "DEPTHWISE",
    "SKIPPED",
    "Alive",
    "Captured",
    "Epilogue",
    "Place",
    "Source",
    "alive_by_place",
    "capture",
    "check_compressible",
    "check_weights",
    "count_by_module",
    "count_cost",
    "describe_layers",
    "find_blocks",
    "find_epilogues",
    "find_norms",
    "find_sources",
    "peak_activation_bytes",
    "stored",
]
