# SPDX-License-Identifier: Apache-2.0
"""Numbers as people give them: Decimal, Fraction and numpy scalars beside int and float."""

import math
import re
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

import numpy as np

_PERCENT = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})\s*%\s*", re.ASCII)
_PLAIN = re.compile(r"\s*(?:0|[1-9][0-9]{0,17}|[01]?\.[0-9]{1,18})\s*", re.ASCII)


def real_number(value: object) -> float | None:
    """A number as a float.

    Args:
        value: what was given.

    Returns:
        The float, which may be nan or infinite; None for what is no number (text, bool, tensor, array). A
        narrow numpy float counts by its decimal digits: ``float32(0.7)`` is seven tenths.
    """
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    if isinstance(value, np.floating):
        return float(str(value))
    try:
        return float(value)
    except OverflowError:
        # A Fraction beyond the largest float.
        return math.inf if value > Fraction(0) else -math.inf
    except ValueError:
        # A signalling nan of Decimal.
        return math.nan


def plain_number(value: object) -> object:
    """A number as Python's own int or float, for checks, files and fingerprints.

    Args:
        value: what was given.

    Returns:
        An int for a whole number, a float for any other one; what is no number as it is.
    """
    if type(value) in {int, float, bool}:
        return value
    whole = whole_number(value)
    number = real_number(value) if whole is None else whole
    return value if number is None else number


def whole_number(value: object) -> int | None:
    """A whole number as an int.

    Args:
        value: what was given.

    Returns:
        The int; None for what is no number, for a float, and for a Decimal or Fraction that is not whole.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Fraction) and value.denominator == 1:
        return int(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    return None


def percent_ratio(text: str) -> float | None:
    """The ratio that a text such as "50%" tells.

    Args:
        text: digits and a percent sign.

    Returns:
        One half for "50%"; None for any other text.
    """
    found = _PERCENT.fullmatch(text)
    return None if found is None else float(Fraction(found[1]) / 100)


def quotes_hint(asked: object, name: str) -> str:
    """What to do about a ratio or a whole number that was given as a text, to end a message with.

    Args:
        asked: what was refused.
        name: of its argument.

    Returns:
        "" for what is no such text.
    """
    if not isinstance(asked, str) or not _PLAIN.fullmatch(asked):
        return ""
    text = asked.strip()
    if not (text.isdecimal() and int(text) > 1) and not 0 < float(text) <= 1:
        return ""
    return f"; a number is given without quotes: {name}={text}"
