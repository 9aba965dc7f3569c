# SPDX-License-Identifier: Apache-2.0
"""Files of tensors, each written whole or not at all, and digests."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrank.files import read_safetensors, write_safetensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors whole or not at all; storage that several names share is written once for each.

    Args:
        path: of the file, such as ``Store.path_of`` gives; its folder must be there.
        tensors: by name.
        metadata: texts that stand in the file beside them; None for none.

    Raises:
        FileError: it cannot be written.
    """
    # Cloned: safetensors refuses tensors that share storage or are views of it.
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_safetensors(path, save_file, ready, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of tensors, or of arrays, onto the CPU.

    Raises:
        FileError: missing, truncated or altered.
    """
    return read_safetensors(path, load_file)


def digest_file(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # In parts, so that a file larger than the memory can be read.
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name and value."""
    digest = hashlib.sha256()
    # By name, so that the order of the mapping does not matter.
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
