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
