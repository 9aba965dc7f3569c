# SPDX-License-Identifier: Apache-2.0
"""Rank rounding: one number, or one per layer-name glob."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral

from slimrank._errors import OptionError, UnknownNameError
from slimrank._names import nearest


def check_multiple_of(multiple_of: int | Mapping[str, int], names: Iterable[str]) -> None:
    """Check a rank rounding against the layers of a model.

    Args:
        multiple_of: at least 1, or layer-name glob -> at least 1.
        names: layers of the model.

    Raises:
        OptionError: a number that is no whole number of at least 1.
        UnknownNameError: a glob that no layer matches.
    """
    known = tuple(names)
    # An empty pattern stands for the number without a glob.
    entries = dict(multiple_of) if isinstance(multiple_of, Mapping) else {"": multiple_of}
    for pattern, number in entries.items():
        where = f"multiple_of[{pattern!r}]" if pattern else "multiple_of"
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise OptionError(f"{where} is {number!r}; give a whole number of at least 1, e.g. 8")
        if pattern and not any(fnmatchcase(name, pattern) for name in known):
            raise UnknownNameError(f"{where} matches no layer; {nearest(pattern, known)}")


def multiple_for(multiple_of: int | Mapping[str, int], name: str) -> int:
    """The number that the ranks of one layer are multiples of.

    Args:
        multiple_of: a number, or layer-name glob -> number; the first match wins.
        name: dotted layer name.

    Returns:
        At least 1; 1 where no glob matches.
    """
    if not isinstance(multiple_of, Mapping):
        return int(multiple_of)
    return next((int(number) for glob, number in multiple_of.items() if fnmatchcase(name, glob)), 1)
