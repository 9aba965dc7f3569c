# SPDX-License-Identifier: Apache-2.0
"""Numbers of bytes as people type and read them."""

import math
import operator
import re

from slimrank._errors import OptionError
from slimrank._names import nearest
from slimrank._numbers import whole_number

# Bytes of each unit, by its name in lower case: powers of ten, and with an i powers of two.
_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SPELLED = ("B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")
_AMOUNT = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_ALLOWED = "give a whole number of bytes above 0, or a text such as '2GB', '500 MB' or '1.5GiB'"


def read_bytes(value: object, keyword: str) -> int:
    """A number of bytes, of what a caller gave.

    Args:
        value: a whole number, or a text: a number and a unit, or digits alone for bytes. GB is 10^9 bytes,
            GiB 2^30; upper and lower case are the same.
        keyword: the option that it was given as, for messages.

    Returns:
        The number, at least 1.

    Raises:
        OptionError: anything else.
    """
    if isinstance(value, str):
        return _of_text(value, keyword)
    try:
        # Whole numbers of other libraries, too; Python counts True as 1.
        whole = 0 if isinstance(value, bool) else whole_number(value)
        n_bytes = operator.index(value) if whole is None else whole  # type: ignore[arg-type]
    except TypeError as error:
        raise OptionError(f"{keyword}={value!r}; {_ALLOWED}") from error
    if n_bytes < 1:
        raise OptionError(f"{keyword}={value!r}; {_ALLOWED}")
    return n_bytes


def _of_text(text: str, keyword: str) -> int:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise OptionError(f"{keyword}={text!r}; {_ALLOWED}")
    number, unit = match[1], match[2].lower()
    if unit and unit not in _UNITS:
        raise OptionError(
            f"{keyword}={text!r}: there is no unit {match[2]!r}; {nearest(match[2], _SPELLED)}; {_ALLOWED}"
        )
    if not unit and "." in number:
        raise OptionError(f"{keyword}={text!r} has no unit; {_ALLOWED}")
    n_bytes = math.floor(float(number) * _UNITS[unit]) if unit else int(number)
    if n_bytes < 1:
        raise OptionError(f"{keyword}={text!r}; {_ALLOWED}")
    return n_bytes


def bytes_text(n_bytes: float) -> str:
    """A number of bytes for people: in kB, MB or GB, whole numbers from 10 on."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        # What would be rounded up to 1000 is told in the next unit.
        if n_bytes >= 0.995 * size:
            amount = n_bytes / size
            return f"{amount:.2g} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{n_bytes:.0f} bytes"
