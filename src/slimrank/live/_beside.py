# SPDX-License-Identifier: Apache-2.0
"""What lies beside a plan that is edited: its file, other plans, new files, the model that is built of it."""

import os
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import count
from pathlib import Path

from slimrank._errors import FileError, OptionError, SlimrankError, StudyError
from slimrank._names import nearest
from slimrank._study import Study
from slimrank.files import from_text
from slimrank.plan import Plan

# A file with these keys is a plan, or means to be one.
_PLAN_KEYS = {"steps", "costs", "select"}
# These a study keeps for itself.
_OF_STUDIES = ("untouched_plan.json", "previous_plan.json")


class OpenFile:
    """The file of a plan while it is edited: tells where others edit it, too, and where it has changed."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Args:
            path: of the file, which can be read.
        """
        self._path = path
        self._seen = _stamp(path)
        self._file: int | None = None
        self._is_shared = False
        if os.name != "posix":
            return
        fcntl = import_module("fcntl")
        self._file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._is_shared = True
        except OSError:
            # Some file systems have no locks: then nothing can be told of other editors.
            return

    def notices(self) -> Iterator[str]:
        """What people should know of the file."""
        if self._is_shared:
            yield (
                f"{self._path.name} is open in another editor, too. Each sees its own changes alone, and "
                "saves to files of its own."
            )
        if _stamp(self._path) != self._seen:
            yield f"{self._path.name} was changed or removed since it was opened; here it is as it was then."

    def close(self) -> None:
        """Let it go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tells one state of a file from another; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Shelf:
    """The plans in some directories, by the names of their files."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look nowhere yet.

        Args:
            folders: the first one wins where names are equal.
        """
        self._folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))
        self._known: dict[tuple[Path, tuple[int, int, int] | None], bool] = {}

    def names(self) -> list[str]:
        """Of the plans that are there now."""
        return sorted(self._found())

    def path_of(self, name: str) -> Path:
        """The file of a plan; nothing but what ``names`` lists is opened.

        Raises:
            OptionError: there is no such plan.
        """
        found = self._found()
        if name not in found:
            raise OptionError(f"plan {name!r}: there is none beside this one; {nearest(name, list(found))}")
        return found[name]

    def _found(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in sorted(folder.glob("*.json")):
                if path.name in _OF_STUDIES:
                    continue
                key = path, _stamp(path)
                if key not in self._known:
                    self._known[key] = _is_plan(path)
                if self._known[key]:
                    found.setdefault(path.name, path)
        return found


def _is_plan(path: Path) -> bool:
    try:
        content = from_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        # Somebody else's file.
        return False
    return isinstance(content, dict) and content.keys() >= _PLAN_KEYS


def new_file(path: Path, word: str) -> Path:
    """A new, empty file beside another one: no two editors are ever given the same.

    Args:
        path: of the other one, whose name begins the new one.
        word: that follows.

    Returns:
        Its path.

    Raises:
        FileError: nothing can be written there.
    """
    for number in count(1):
        found = path.with_name(f"{path.stem}-{word}-{number}.json")
        try:
            os.close(os.open(found, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise FileError(
                f"{found} cannot be written ({error.strerror}); free some room or rights"
            ) from error
        break
    return found


class Building:
    """The model that is built of a plan, in a thread of its own."""

    def __init__(self, study: Study) -> None:
        """Build nothing yet.

        Args:
            study: with its model, where something shall be built.
        """
        self._study = study
        self._thread: threading.Thread | None = None
        self._facts: dict[str, str | float | None] = {
            "state": "none" if study._session is not None else "no model"
        }

    def check(self) -> None:
        """Refuses where nothing can be built.

        Raises:
            StudyError: the study has no model.
            OptionError: a model is being built already.
        """
        if self._study._session is None:
            raise StudyError(
                "this page has no model to apply the plan to; start slimrank edit with --model, or save the "
                "plan and use slimrank apply"
            )
        if self._thread is not None and self._thread.is_alive():
            raise OptionError("a model is being built already; wait until it is done")

    def start(self, plan: Plan, saved: Path) -> None:
        """Build it, and save it beside the plan's file.

        Args:
            plan: to apply.
            saved: file of the plan, by which the directory is named.
        """
        self._facts = {"state": "running", "plan": saved.name}
        self._thread = threading.Thread(target=self._build, args=(plan, saved), daemon=True)
        self._thread.start()

    def facts(self) -> dict[str, str | float | None]:
        """How it stands: "none", "no model", "running", "done" with what came out, or "failed" and why."""
        return dict(self._facts)

    def _build(self, plan: Plan, saved: Path) -> None:
        try:
            result = self._study.apply(plan)
            folder = next(
                path
                for number in count(1)
                if not (path := saved.with_name(f"{saved.stem}-model-{number}")).exists()
            )
            result.save(folder)
        except SlimrankError as error:
            self._facts = {"state": "failed", "plan": saved.name, "error": str(error)}
        except Exception as error:
            # A thread that dies silently would leave the page waiting.
            self._facts = {"state": "failed", "plan": saved.name, "error": f"{type(error).__name__}: {error}"}
            raise
        else:
            self._facts = {
                "state": "done",
                "plan": saved.name,
                "folder": folder.name,
                "divergence": result.divergence,
                "unit": result.unit,
            }
