# SPDX-License-Identifier: Apache-2.0
"""Text files of people and of earlier runs, read with errors that say what to give."""

import os
from pathlib import Path

from slimrank._errors import FileError, SlimrankError


def read_text(
    path: str | os.PathLike[str],
    where: str,
    *,
    advice: str,
    error: type[SlimrankError],
    encoding: str = "utf-8",
) -> str:
    """The text of a file.

    Args:
        path: of the file.
        where: kind and path of the file, for errors.
        advice: what to do, for errors.
        error: what a file that holds no text is.
        encoding: of the file.

    Returns:
        The whole text.

    Raises:
        FileError: the file is missing or cannot be read.
        SlimrankError: ``error``, where it holds no text.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as cause:
        raise error(f"{where}: no text ({cause}); {advice}") from cause
    except OSError as cause:
        raise FileError(f"{where}: cannot be read ({cause}); {advice}") from cause
