# SPDX-License-Identifier: Apache-2.0
"""Files of named arrays, in the format of safetensors: nothing in them can run code."""

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slimrank._errors import FileError
from slimrank.files._atomic import draft_of

# Of whatever type it was written with.
Array = NDArray[Any]
_Held = TypeVar("_Held")


def write_safetensors(
    path: Path,
    save: Callable[[dict[str, _Held], Path, dict[str, str] | None], None],
    held: dict[str, _Held],
    metadata: Mapping[str, str] | None,
) -> None:
    """Writes a file of safetensors whole or not at all; its folder must be there.

    Args:
        path: of the file.
        save: what safetensors writes such values with.
        held: arrays or tensors by name, each contiguous and in storage of its own.
        metadata: texts that stand in the file beside them; None for none.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with draft_of(path) as draft:
            # safetensors writes to a file of its own that nobody else may read, and moves that here: the mode
            # is that of any new file in this folder instead.
            draft.touch()
            mode = stat.S_IMODE(draft.stat().st_mode)
            # None, not {}: with neither arrays nor entries safetensors writes a header that it cannot read.
            save(held, draft, dict(metadata) if metadata else None)
            draft.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} cannot be written ({error}); give a directory with room and rights"
        ) from error


def read_safetensors(path: Path, load: Callable[[Path], dict[str, _Held]]) -> dict[str, _Held]:
    """Reads a file of safetensors.

    Args:
        path: of the file.
        load: what safetensors reads such values with.

    Raises:
        FileError: missing, truncated or altered.
    """
    try:
        return load(path)
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
    write_safetensors(path, save_file, ready, metadata)


def read_arrays(path: Path) -> dict[str, Array]:
    """Reads arrays.

    Raises:
        FileError: missing, truncated or altered.
    """
    return read_safetensors(path, load_file)
