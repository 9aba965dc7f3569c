# SPDX-License-Identifier: Apache-2.0
"""Format numbers: a file or directory of another layout is refused instead of misread."""

from collections.abc import Iterable

from slimrank._errors import FileError, SlimrankError
from slimrank.files._json import Json


def spelled_number(found: Json) -> Json:
    """The number that a text spells out, for files that hold texts alone; anything else as it is."""
    return int(found) if isinstance(found, str) and found.isdecimal() else found


def check_format(
    found: Json,
    reads: int | Iterable[int],
    *,
    where: str,
    advice: str,
    error: type[SlimrankError] = FileError,
) -> int:
    """Refuses a format number that this version does not read.

    Args:
        found: what the file holds as its number; None where it holds none.
        reads: the numbers that this version reads.
        where: the file, for the error.
        advice: what to do about another number, for the error.
        error: the class of the error.

    Returns:
        The number.

    Raises:
        SlimrankError: of the class ``error``, for another number or something that is no number.
    """
    known = (reads,) if isinstance(reads, int) else tuple(sorted(reads))
    # Python takes true for 1.
    if isinstance(found, int) and not isinstance(found, bool) and found in known:
        return found
    numbers = ", ".join(str(number) for number in known)
    raise error(f"{where} has format {found!r}, this version reads {numbers}; {advice}")
