# SPDX-License-Identifier: Apache-2.0
"""The one class that AIMET's ONNX table names; ``nms`` and ``roi_align`` are looked up only when called."""


class RoIPool:
    """A key in AIMET's table of ONNX names."""
