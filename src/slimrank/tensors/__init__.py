# SPDX-License-Identifier: Apache-2.0
"""Files of tensors, and what ties them to a model."""

from slimrank.tensors._describe import describe
from slimrank.tensors._tensors import digest_file, digest_tensors, read_tensors, write_tensors

__all__ = [
    "describe",
    "digest_file",
    "digest_tensors",
    "read_tensors",
    "write_tensors",
]
