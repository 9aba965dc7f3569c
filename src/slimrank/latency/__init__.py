# SPDX-License-Identifier: Apache-2.0
"""Measured times of a network and its parts, in a runtime."""

from slimrank.latency._backends import BACKENDS, Backend, open_timed
from slimrank.latency._latencies import Latencies
from slimrank.latency._measure import PRECISIONS, check_conditions, measure_variants, quantize_of
from slimrank.latency._predict import predicted_time
from slimrank.latency._variants import build_variant, draw_variants

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "Latencies",
    "build_variant",
    "check_conditions",
    "draw_variants",
    "measure_variants",
    "open_timed",
    "predicted_time",
    "quantize_of",
]
