# SPDX-License-Identifier: Apache-2.0
"""Files of named arrays, in the format of safetensors: nothing in them can run code."""

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slimrank._errors import FileError
from slimrank.files._atomic import draft_of

# Of whatever type it was written with.
Array = NDArray[Any]


@contextmanager
def arrays_draft(path: Path) -> Iterator[Path]:
    """Where safetensors may write a file, so that it is whole or not there; its folder must be there.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with draft_of(path) as draft:
            # safetensors writes to a file of its own that nobody else may read, and moves that here: the mode
            # is that of any new file in this folder instead.
            draft.touch()
            mode = stat.S_IMODE(draft.stat().st_mode)
            yield draft
            draft.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} cannot be written ({error}); give a directory with room and rights"
        ) from error


@contextmanager
def arrays_read(path: Path) -> Iterator[None]:
    """Tells what keeps safetensors from reading a file.

    Raises:
        FileError: missing, truncated or altered.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist; is this a directory of slimrank?") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise FileError(
            f"{path} is truncated or altered ({error}); restore a copy or make it again"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays whole or not at all; the folder must be there.

    Raises:
        FileError: it cannot be written.
    """
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with arrays_draft(path) as draft:
        # None, not {}: with neither arrays nor entries safetensors writes a header that it cannot read.
        save_file(ready, draft, dict(metadata) if metadata else None)


def read_arrays(path: Path) -> dict[str, Array]:
    """Reads arrays.

    Raises:
        FileError: missing, truncated or altered.
    """
    with arrays_read(path):
        arrays: dict[str, Array] = load_file(path)
    return arrays
