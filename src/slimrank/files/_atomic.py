# SPDX-License-Identifier: Apache-2.0
"""Text files, written whole or not at all."""

import contextlib
import os
from pathlib import Path

from slimrank._errors import FileError


def write_text(path: str | os.PathLike[str], text: str, *, what: str) -> None:
    """Write a text file, whole or not at all.

    Args:
        path: of the file; an existing one is replaced.
        text: without a newline at the end.
        what: the kind of file, for errors.

    Raises:
        FileError: the file cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            # Below a file there is no draft to remove, and no place to look for one.
            draft.unlink()
        raise FileError(
            f"{what} {target}: cannot be written ({error}); give a file in an existing folder"
        ) from error


def make_directory(path: Path) -> Path:
    """The directory, made where it is missing.

    Raises:
        FileError: something else stands there, or rights are missing.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error}); give a directory with room and rights"
        ) from error
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    make_directory(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FileError(
            f"{path} cannot be written ({error}); give a directory with room and rights"
        ) from error
