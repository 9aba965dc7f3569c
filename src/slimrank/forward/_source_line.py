# SPDX-License-Identifier: Apache-2.0
"""The line of the user's code where an error was raised."""

import linecache
import traceback
from pathlib import Path

import torch

# Folders of torch and of this package: this file lies one folder below the package.
_TORCH = f"{Path(torch.__file__).parent}/"
_PACKAGE = f"{Path(__file__).parent.parent}/"


def is_users_code(file: str) -> bool:
    """Whether a source file is the user's own: neither torch's nor of this package.

    Code without a file (``"<string>"``) is nobody's. The demo's network stands for a user's.
    """
    if file.startswith((_TORCH, "<")):
        return False
    return not file.startswith(_PACKAGE) or file.startswith(f"{_PACKAGE}demo/")


def error_with_source_line(error: Exception) -> str:
    """An error in one line, with the innermost source line of the user's code."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_code(frame.filename)]
    if not frames:
        return text
    last = frames[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{text} at {Path(last.filename).name}:{last.lineno} `{line}`"
