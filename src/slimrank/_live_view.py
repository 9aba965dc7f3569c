# SPDX-License-Identifier: Apache-2.0
"""``serve=True``: a run shown in the browser while the call that makes it lasts."""

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import ParamSpec, Protocol, TypeVar

from slimrank._errors import OptionError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOG = logging.getLogger("slimrank.progress")
# Directory of a run, of the arguments of a call; None where it keeps nothing.
DirectoryOf = Callable[[Mapping[str, object]], str | os.PathLike[str] | None]


class _Live(Protocol):
    """What is known of the server here: the room that has it stands above."""

    url: str

    def close(self) -> None: ...


def shown_live(directory_of: DirectoryOf, advice: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Gives a call, which has the keyword ``serve``, its page in the browser where that is True.

    Args:
        directory_of: of the arguments of the call: where its run writes its events.
        advice: what to do where that is nowhere.

    Returns:
        A decorator. What is decorated raises ``OptionError`` where there is no directory; it never fails
        because of the page.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not _is_asked(kwargs.get("serve", False)):
                return function(*args, **kwargs)
            run_dir = directory_of(signature.bind(*args, **kwargs).arguments)
            with live_view(run_dir, advice):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def run_dir_given(arguments: Mapping[str, object]) -> str | os.PathLike[str] | None:
    """``run_dir`` of a call that has this keyword.

    Raises:
        OptionError: it is no path.
    """
    given = arguments.get("run_dir")
    if given is None or isinstance(given, str | os.PathLike):
        return given
    raise OptionError(f"run_dir is a {type(given).__name__}; give the path of a directory")


ADVICE = "add run_dir=, e.g. run_dir='run'"
# Of calls that have ``run_dir=``.
shown_live_in_run_dir = shown_live(run_dir_given, ADVICE)


def _is_asked(serve: object) -> bool:
    if not isinstance(serve, bool):
        raise OptionError(f"serve={serve!r}; give True or False")
    return serve


@contextlib.contextmanager
def live_view(run_dir: str | os.PathLike[str] | None, advice: str) -> Iterator[None]:
    """Shows a run while the context lasts, and says once where; a page that cannot be shown stops nothing.

    Args:
        run_dir: where the run writes its events; None for nowhere.
        advice: what to do where that is nowhere.

    Raises:
        OptionError: it is nowhere.
    """
    if run_dir is None:
        raise OptionError(f"serve=True shows what a run writes to its directory, and there is none; {advice}")
    live: _Live | None = None
    try:
        live = import_module("slimrank.live").serve_from_start(run_dir)
    except OptionError as error:
        _LOG.warning("serve=True: %s; the run goes on without its page", error)
    else:
        # Not logged, and in no journal: the address holds the token. A run without stderr goes on, too.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(f"live view: {live.url}\n")
            sys.stderr.flush()
    try:
        yield
    finally:
        if live is not None:
            live.close()
