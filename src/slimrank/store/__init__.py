# SPDX-License-Identifier: Apache-2.0
"""Directories of tensors, and what ties them to a model."""

from slimrank.store._describe import describe
from slimrank.store._store import Store, digest_file, digest_tensors, read_tensors

__all__ = [
    "Store",
    "describe",
    "digest_file",
    "digest_tensors",
    "read_tensors",
]
