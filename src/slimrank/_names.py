# SPDX-License-Identifier: Apache-2.0
"""Closest known names, for errors."""

from collections.abc import Iterable
from difflib import get_close_matches

# Close names that an error offers: more would hide the right one.
_MAX_CLOSE = 3
# Names that a message writes out; a model may have hundreds.
_MAX_LISTED = 8
# How alike two names must be, 0 to 1: the default of difflib, which finds most typing errors.
_MIN_LIKENESS = 0.6


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to a wrong one, as the end of an error message.

    Args:
        name: what was asked for.
        known: what exists.

    Returns:
        "did you mean 'a' or 'b'?", those that begin with the name first; or where nothing is close "known are
        'a', 'b'" with a count of the rest.
    """
    names = list(dict.fromkeys(known))
    close = [*_beginning_with(name, names), *get_close_matches(name, names, _MAX_CLOSE, _MIN_LIKENESS)]
    if close:
        offered = list(dict.fromkeys(close))[:_MAX_CLOSE]
        return "did you mean " + " or ".join(repr(match) for match in offered) + "?"
    return f"known are {listed(names)}" if names else "none are known"


def _beginning_with(name: str, names: Iterable[str]) -> list[str]:
    """The names that begin with what was typed, those inside a module of that name first."""
    longer = [known for known in names if name and known.startswith(name)]
    return sorted(longer, key=lambda known: not known.startswith(f"{name}."))


def listed(names: Iterable[str], limit: int = _MAX_LISTED) -> str:
    """Names in quotes, the first few and a count of the rest.

    Args:
        names: what to list.
        limit: how many are written out.

    Returns:
        "'a', 'b' and 3 more".
    """
    every = list(names)
    text = ", ".join(repr(name) for name in every[:limit])
    return f"{text} and {len(every) - limit} more" if len(every) > limit else text
