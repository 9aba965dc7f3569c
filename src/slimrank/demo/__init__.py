# SPDX-License-Identifier: Apache-2.0
"""A trained model and its data, small enough to ship: something real to compress in seconds."""

from slimrank.demo._glyphnet import GlyphNet, build, calibration_batches, test_batches

__all__ = ["GlyphNet", "build", "calibration_batches", "test_batches"]
