# SPDX-License-Identifier: Apache-2.0
"""Save and load, without pickle."""

from slimrank.deploy._artifact import load_artifact, save_artifact
from slimrank.deploy._describe import describe
from slimrank.deploy._inputs import batch_from_files, batches_to_files
from slimrank.deploy._store import Json, Store, digest_tensors, make_directory, write_bytes

__all__ = [
    "Json",
    "Store",
    "batch_from_files",
    "batches_to_files",
    "describe",
    "digest_tensors",
    "load_artifact",
    "make_directory",
    "save_artifact",
    "write_bytes",
]
