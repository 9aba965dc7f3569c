# SPDX-License-Identifier: Apache-2.0
"""Save and load, without pickle."""

from slimrank.deploy._saved_model import load_artifact, save_artifact

__all__ = [
    "load_artifact",
    "save_artifact",
]
