# SPDX-License-Identifier: Apache-2.0
"""A trained model and its data, small enough to ship: something real to compress in seconds."""

from slimrank.demo._glyphnet import GlyphNet, build, calibration_batches, test_batches
from slimrank.demo._run import DemoRun, run_demo

__all__ = ["DemoRun", "GlyphNet", "build", "calibration_batches", "run_demo", "test_batches"]
