# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from slimrank._errors import FileError


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A path to write to; what is written there replaces the file when the context ends without an error.

    Args:
        path: of the file; an existing one is replaced.

    Yields:
        The path, in the same folder, so that the exchange is one step of the file system.
    """
    if not path.name:
        # Such as "." or "/", which with_name refuses with an error of another kind.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # With the number of the process, so that two processes that write one file do not share a draft.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            # It may not be written yet, or its parent may be a file: then there is nothing to remove.
            draft.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str, *, what: str) -> None:
    """Write a text file, whole or not at all; its folder must be there.

    Args:
        path: of the file; an existing one is replaced.
        text: without a newline at the end.
        what: the kind of file, for errors.

    Raises:
        FileError: the file cannot be written.
    """
    target = Path(path)
    missing = missing_folder(target)
    if missing is not None:
        raise FileError(
            f"{what} {target}: cannot be written (there is no folder {missing}); give a file in an existing "
            "folder"
        )
    try:
        _write_whole(target, f"{text}\n".encode())
    except OSError as error:
        raise FileError(
            f"{what} {target}: cannot be written ({error}); give a file in an existing folder"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of a run or a report, whole or not at all; its folder must be there.

    Args:
        path: of the file; an existing one is replaced.
        data: what it shall hold.

    Raises:
        FileError: the file cannot be written.
    """
    check_folder(path)
    try:
        _write_whole(path, data)
    except OSError as error:
        raise _not_written(path, error) from error


def missing_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder that a file or directory would lie in, where it is not there; None where it is."""
    target = Path(path)
    return None if target.absolute().parent.is_dir() else target.parent


def check_folder(path: str | os.PathLike[str], what: str = "") -> None:
    """Refuses a file or a directory whose folder is not there: nothing makes folders above what it writes.

    Args:
        path: of the file or directory.
        what: it is, for the message, such as the name of the argument.

    Raises:
        FileError: with the folder that is missing.
    """
    missing = missing_folder(path)
    if missing is not None:
        named = f"{what} {os.fspath(path)}".lstrip()
        raise FileError(f"{named} cannot be written: there is no folder {missing}; make it first")


def make_directory(path: Path) -> Path:
    """The directory, made where it is missing; its folder must be there.

    Raises:
        FileError: its folder is missing, something else stands there, or rights are missing.
    """
    check_folder(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def _write_whole(path: Path, data: bytes) -> None:
    with draft_of(path) as draft, draft.open("wb") as file:
        file.write(data)
        file.flush()
        # Otherwise a crash of the machine may leave an empty file under the new name.
        os.fsync(file.fileno())


def _not_written(path: Path, error: OSError) -> FileError:
    return FileError(f"{path} cannot be written ({error}); give a directory with room and rights")
