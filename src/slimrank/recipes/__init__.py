# SPDX-License-Identifier: Apache-2.0
"""Whole ways on top of a study."""

from slimrank.recipes._activation_bytes import activation_bytes
from slimrank.recipes._compress import LATENCIES_FILE, compress
from slimrank.recipes._export import export
from slimrank.recipes._from_onnx import from_onnx
from slimrank.recipes._from_pretrained import from_pretrained
from slimrank.recipes._measure_elsewhere import collect_latency, prepare_latency
from slimrank.recipes._measure_latency import measure_latency
from slimrank.recipes._measure_scores import measure_scores
from slimrank.recipes._meet_latency import meet_latency
from slimrank.recipes._replay import apply, load
from slimrank.recipes._smallest import checked_drop, smallest
from slimrank.recipes._split import check_split, search_split

__all__ = [
    "LATENCIES_FILE",
    "activation_bytes",
    "apply",
    "check_split",
    "checked_drop",
    "collect_latency",
    "compress",
    "export",
    "from_onnx",
    "from_pretrained",
    "load",
    "measure_latency",
    "measure_scores",
    "meet_latency",
    "prepare_latency",
    "search_split",
    "smallest",
]
