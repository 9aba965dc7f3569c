# SPDX-License-Identifier: Apache-2.0
"""The peak of activations as a budget."""

from slimrank.peaks._profile import PeakProfile, count_peak, profile_peaks
from slimrank.peaks._within import plan_within_peak

__all__ = ["PeakProfile", "count_peak", "plan_within_peak", "profile_peaks"]
