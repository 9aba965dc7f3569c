# SPDX-License-Identifier: Apache-2.0
"""Exports that replace what is there whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slimrank._errors import FileError


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """A folder to write an export to, beside its target; it is gone when the context ends.

    Args:
        target: of the export; its folder must be there.

    Yields:
        An empty folder on the same file system, so that its files can be moved in one step each.

    Raises:
        FileError: the target cannot be written.
    """
    if not target.parent.is_dir():
        raise FileError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise FileError(f"{target} is a folder; give the path of a file")
    try:
        # With a name of its own, so that two processes that write one file do not share a draft.
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise FileError(
            f"{target} cannot be written ({error}); give a file in a folder with rights"
        ) from error
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def move_into_place(files: list[Path], target: Path) -> None:
    """Moves the files of a draft beside their target; where one cannot be moved, all are as before.

    Args:
        files: of the draft; the one that the others belong to has the name of the target, and goes last.
        target: of the export.

    Raises:
        FileError: a file cannot be moved, or would replace a folder.
    """
    old: dict[Path, Path] = {}
    new: list[Path] = []
    for final in (target.with_name(file.name) for file in files):
        # It would be moved away whole, and be gone with the draft.
        if final.is_dir():
            raise FileError(f"{target} cannot be written: {final} is a folder; give another name")
    try:
        for file in sorted(files, key=lambda file: file.name == target.name):
            final = target.with_name(file.name)
            # A single file is exchanged in one step. Of several, each step is noted before it is done: an
            # interrupt may come between.
            if len(files) > 1:
                if final.exists():
                    old[final] = file.with_name(f"{file.name}.old")
                    final.replace(old[final])
                new.append(final)
            file.replace(final)
    except BaseException as error:
        # After an interrupt, too: the old files would be gone with the draft.
        _go_back(new, old)
        if not isinstance(error, OSError):
            raise
        raise FileError(
            f"{target} cannot be written ({error}); give a file in a folder with rights"
        ) from error


def _go_back(new: list[Path], old: dict[Path, Path]) -> None:
    """Removes new files, and puts old ones back from where they were kept, as far as they were moved."""
    for final in new:
        final.unlink(missing_ok=True)
    for final, kept in old.items():
        if kept.exists():
            kept.replace(final)
