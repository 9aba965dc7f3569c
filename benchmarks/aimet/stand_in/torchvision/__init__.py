# SPDX-License-Identifier: Apache-2.0
"""Stands in for torchvision, which AIMET imports and whose operators its compression never calls.

Only what AIMET's modules name while they are imported is here; nothing in it can be called to any effect.
"""

from torchvision import datasets, ops, transforms

__all__ = ["datasets", "ops", "transforms"]
