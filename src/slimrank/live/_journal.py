# SPDX-License-Identifier: Apache-2.0
"""Reading a journal of events that somebody else may be writing."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimrank._errors import FileError
from slimrank._progress import EVENTS_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a journal.

    Attributes:
        end: bytes from the start of the file to the end of the line.
        event: what it says; None where it is no event, because a crash cut it short, say.
    """

    end: int
    event: dict[str, object] | None


def journal_of(run_dir: str | os.PathLike[str]) -> Path:
    """The journal of a run.

    Args:
        run_dir: the run's directory.

    Returns:
        The file.

    Raises:
        FileError: no directory, or none of a run; or one that cannot be read.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileError(f"{folder} is no directory; give that of a run, e.g. the run_dir= (--out) of a study")
    path = folder / EVENTS_FILE
    if not path.is_file():
        raise FileError(
            f"{folder} holds no run: there is no {EVENTS_FILE} in it; give the directory of one, e.g. the "
            "run_dir= (--out) of a study"
        )
    if not os.access(path, os.R_OK):
        raise FileError(f"{path} cannot be read; ask its owner for the right to")
    return path


def read_lines(path: Path, start: int) -> Iterator[Line]:
    """The whole lines of a journal from a byte on; a last one that is still being written is left for later.

    Args:
        path: of the journal.
        start: bytes to leave out; a line begins there.

    Yields:
        The lines.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        # It was removed, or is being replaced.
        return
    with file:
        file.seek(start)
        end = start
        for text in file:
            if not text.endswith(b"\n"):
                return
            end += len(text)
            yield Line(end=end, event=_event(text))


def _event(text: bytes) -> dict[str, object] | None:
    try:
        # JSON has no word for what is not finite, and a browser reads none.
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None
