# SPDX-License-Identifier: Apache-2.0
"""Out of memory in the middle of a run: told as an error that says where, what is kept and what to lower."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from slimrank._errors import OutOfMemoryError

# What torch says on the CPU, where it has no class of its own for that.
_CPU_TEXTS = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, tells that memory is used up."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_TEXTS):
        return True
    return is_out_of_memory(error.__cause__)


@contextlib.contextmanager
def out_of_memory_at(where: str | Callable[[], str]) -> Iterator[None]:
    """Names a part of a run in an error that tells of memory; the innermost part that knows its name wins.

    Args:
        where: the part, or what tells it when it happens.

    Raises:
        OutOfMemoryError: memory is used up.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        part = where if isinstance(where, str) else where()
        raise OutOfMemoryError(f"{part}: {_first_line(error)}") from error


@contextlib.contextmanager
def out_of_memory_told(phase: Callable[[], str], kept: str) -> Iterator[None]:
    """Tells what is kept and what to lower, once memory is used up.

    Args:
        phase: asked when it happens, where no part has named itself.
        kept: what happens to what was measured.

    Raises:
        OutOfMemoryError: memory is used up.
    """
    try:
        with out_of_memory_at(phase):
            yield
    except OutOfMemoryError as error:
        # A call inside another one: told already.
        if error.is_told:
            raise
        told = OutOfMemoryError(
            f"out of memory: {error}; {kept}; lower memory=, give fewer or smaller samples or smaller "
            "batches, leave large layers alone with skip=, or free memory elsewhere"
        )
        told.is_told = True
        raise told from error.__cause__


def kept_text(directory: object, *, keyword: str = "run_dir") -> str:
    """What is kept of a run, for ``out_of_memory_told``.

    Args:
        directory: the run directory or file; None for none.
        keyword: how a caller gives it.
    """
    if directory is None:
        return f"nothing is kept of this run; with {keyword}= the next one would go on where it stopped"
    return f"what was measured is kept in {directory}: the same call goes on from there"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {text[0]}' if text else ''}"
