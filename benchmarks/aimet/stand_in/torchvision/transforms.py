# SPDX-License-Identifier: Apache-2.0
"""The one class that AIMET's ONNX table names."""


class Resize:
    """A key in AIMET's table of ONNX names."""
