# SPDX-License-Identifier: Apache-2.0
"""A directory of JSON files and of arrays, each written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from slimrank._errors import FileError
from slimrank.files._arrays import Array, read_arrays, write_arrays
from slimrank.files._atomic import make_directory, write_bytes
from slimrank.files._json import Json


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
        write_bytes(self.path_of(name), (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

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

    def write_arrays(
        self, name: str, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes arrays by name."""
        write_arrays(self.path_of(name), arrays, metadata)

    def read_arrays(self, name: str) -> dict[str, Array]:
        """Reads arrays.

        Raises:
            FileError: missing, truncated or altered.
        """
        return read_arrays(self.root / name)

    def path_of(self, name: str) -> Path:
        """Where to write a file: in the directory, or in a folder within it, which are made."""
        path = make_directory(self.root) / name
        folders = path.relative_to(self.root).parents
        for folder in reversed(folders[:-1]):
            make_directory(self.root / folder)
        return path
