# SPDX-License-Identifier: Apache-2.0
"""The number that a file or directory bears, so that one of another layout is refused instead of misread."""

from collections.abc import Iterable

from slimrank._errors import FileError, SlimrankError
from slimrank.files._json import Json


def spelled_number(found: Json) -> Json:
    """A number that a file of texts alone spells out, as a number; anything else as it is."""
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
        found: what stands in the file; None where nothing does.
        reads: the numbers that this version reads.
        where: the file, for the error.
        advice: what to do with another one, for the error.
        error: what a refusal is.

    Returns:
        The number.

    Raises:
        SlimrankError: ``error``, for another number or something that is none.
    """
    known = (reads,) if isinstance(reads, int) else tuple(sorted(reads))
    # Python takes true for 1.
    if isinstance(found, int) and not isinstance(found, bool) and found in known:
        return found
    numbers = ", ".join(str(number) for number in known)
    raise error(f"{where} has format {found!r}, this version reads {numbers}; {advice}")
