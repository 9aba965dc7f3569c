# SPDX-License-Identifier: Apache-2.0
"""Save and load, without pickle."""

from slimrank.deploy._artifact import load_artifact, save_artifact
from slimrank.deploy._inputs import batch_from_files, batches_to_files

__all__ = [
    "batch_from_files",
    "batches_to_files",
    "load_artifact",
    "save_artifact",
]
