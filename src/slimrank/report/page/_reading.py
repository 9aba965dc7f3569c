# SPDX-License-Identifier: Apache-2.0
"""Reading the data of a page: what stands under a key is known, and JSON has one type for all of it."""

from collections.abc import Mapping, Sequence
from typing import cast

from slimrank.files import Json

Facts = Mapping[str, Json]


def rows_of(value: Json) -> Sequence[Facts]:
    """A list of objects."""
    return cast("Sequence[Facts]", value)


def facts_of(value: Json) -> Facts:
    """An object."""
    return cast("Facts", value)


def texts_of(value: Json) -> Sequence[str]:
    """A list of texts."""
    return cast("Sequence[str]", value)


def number_of(value: Json) -> float:
    """A number; 0 for null."""
    return float(value) if isinstance(value, int | float) else 0.0


def number_or_none(value: Json) -> float | None:
    """A number, or null."""
    return None if value is None else number_of(value)
