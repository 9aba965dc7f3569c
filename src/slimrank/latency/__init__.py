# SPDX-License-Identifier: Apache-2.0
"""Measured times of a network and its parts, in a runtime."""

from slimrank.latency._backends import BACKENDS, Backend, open_timed
from slimrank.latency._elsewhere import collect_variants, prepare_variants
from slimrank.latency._machine import package_versions
from slimrank.latency._measure import (
    PRECISIONS,
    check_conditions,
    check_kept,
    measure_variants,
    quantize_of,
)
from slimrank.latency._variants import build_variant, draw_variants, untouched

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "build_variant",
    "check_conditions",
    "check_kept",
    "collect_variants",
    "draw_variants",
    "measure_variants",
    "open_timed",
    "package_versions",
    "prepare_variants",
    "quantize_of",
    "untouched",
]
