# SPDX-License-Identifier: Apache-2.0
"""Measured times of a network and its parts, in a runtime."""

from slimrank.latency._elsewhere import collect_variants, prepare_variants
from slimrank.latency._latencies import Latencies
from slimrank.latency._machine import package_versions
from slimrank.latency._measure import BACKENDS, PRECISIONS, check_conditions, measure_variants
from slimrank.latency._predict import predicted_time
from slimrank.latency._variants import build_variant, draw_variants

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Latencies",
    "build_variant",
    "check_conditions",
    "collect_variants",
    "draw_variants",
    "measure_variants",
    "package_versions",
    "predicted_time",
    "prepare_variants",
]
