# SPDX-License-Identifier: Apache-2.0
"""A directory of JSON and safetensors files, each written whole or not at all."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimrank._errors import FileError
from slimrank.files import Json, draft_of, make_directory, write_bytes


class Store:
    """Files of one run.

    Args:
        root: the directory; made when the first file is written, in a folder that must be there.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.root / name).is_file()

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self.has(name):
            (self.root / name).unlink()

    def write_json(self, name: str, value: Json) -> None:
        """Writes JSON, sorted."""
        write_bytes(self._path_of(name), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Json]:
        """Reads a JSON object.

        Raises:
            FileError: missing, truncated, nested too deep, or not an object.
        """
        path = self.root / name
        try:
            value: Json = json.loads(path.read_text())
        except OSError as error:
            raise FileError(
                f"{path} cannot be read ({error.strerror}); is this a directory of slimrank?"
            ) from error
        except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
            raise FileError(f"{path} is not whole JSON ({error}); delete it or restore a copy") from error
        if not isinstance(value, dict):
            raise FileError(f"{path} holds a {type(value).__name__}, not an object; restore a copy")
        return value

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes tensors; storage that several names share is written once for each."""
        write_tensors(self._path_of(name), tensors, metadata)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Reads tensors onto the CPU.

        Raises:
            FileError: missing, truncated or altered.
        """
        return read_tensors(self.root / name)

    def _path_of(self, name: str) -> Path:
        """Where to write a file: in the directory, or in a folder within it, which are made."""
        path = make_directory(self.root) / name
        folders = path.relative_to(self.root).parents
        for folder in reversed(folders[:-1]):
            make_directory(self.root / folder)
        return path


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all; its folder must be there."""
    # Cloned: safetensors refuses tensors that share storage or are views of it.
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with draft_of(path) as draft:
            # safetensors writes to a file of its own that nobody else may read, and moves that here: the mode
            # is that of any new file in this folder instead.
            draft.touch()
            mode = stat.S_IMODE(draft.stat().st_mode)
            # None, not {}: with neither tensors nor entries safetensors writes a header that it cannot read.
            save_file(ready, draft, dict(metadata) if metadata else None)
            draft.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} cannot be written ({error}); give a directory with room and rights"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file onto the CPU.

    Raises:
        FileError: missing, truncated or altered.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist; is this a directory of slimrank?") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise FileError(
            f"{path} is truncated or altered ({error}); restore a copy or make it again"
        ) from error
    return tensors


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
