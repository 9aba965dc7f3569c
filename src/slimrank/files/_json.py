# SPDX-License-Identifier: Apache-2.0
"""JSON text to checked values, and back to text that people can edit."""

import json
from collections.abc import Iterable, Sequence
from typing import NoReturn

from slimrank._errors import PlanError
from slimrank._names import nearest

Json = None | bool | int | float | str | Sequence["Json"] | dict[str, "Json"]

# Columns up to which a list or object stays on one line: wider files have fewer lines, but compare worse.
_LINE_LENGTH = 100
# Characters of a wrong value that an error shows.
_SHOWN_CHARS = 40


def to_text(value: Json, indent: int = 0) -> str:
    """JSON with sorted keys; what is short stands on one line.

    Args:
        value: to write.
        indent: columns that the text already stands in.

    Returns:
        The text, without a newline at the end.

    Raises:
        ValueError: a number that is not finite.
    """
    flat = json.dumps(value, sort_keys=True, allow_nan=False)
    if len(flat) + indent <= _LINE_LENGTH or not value or not isinstance(value, dict | list | tuple):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {to_text(value[key], indent + 1)}" for key in sorted(value)]
        return "{\n" + ",\n".join(pad + item for item in items) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + to_text(item, indent + 1) for item in value) + "\n" + " " * indent + "]"


def from_text(text: str, where: str) -> Json:
    """JSON text to a value; a key that stands twice is refused.

    Args:
        text: JSON.
        where: for errors.

    Returns:
        The value.

    Raises:
        PlanError: no JSON, cut short, a key twice, or a number that is not finite.
    """

    # By default, json takes the last of two equal keys, and reads NaN and Infinity, which are not JSON.
    def without_repeats(pairs: Iterable[tuple[str, Json]]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for key, value in pairs:
            if key in found:
                raise PlanError(f"{where}: {key!r} stands twice in one object; delete one of them")
            found[key] = value
        return found

    def refuse_constant(constant: str) -> NoReturn:
        raise PlanError(
            f"{where}: {constant} is no number that such a file may hold; write a finite one, or null"
        )

    try:
        value: Json = json.loads(text, object_pairs_hook=without_repeats, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        # PlanError is a ValueError, and has its message already.
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{where}: no JSON, or cut short ({error}); save it again") from error
    return value


def as_object(
    value: Json, where: str, *, required: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, Json]:
    """A JSON object with these keys.

    Args:
        value: to check.
        where: for errors.
        required: keys that must be there; None when any key may be.
        optional: further keys that may be.

    Returns:
        The object.

    Raises:
        PlanError: no object, an unknown key, or one that is missing.
    """
    if not isinstance(value, dict):
        raise PlanError(f"{where}: {_short(value)} is no object; write {{...}}")
    if required is not None:
        known = (*required, *optional)
        for key in value:
            if key not in known:
                raise PlanError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
        for key in required:
            if key not in value:
                raise PlanError(f"{where}: {key!r} is missing; add it, or save it again")
    return value


def as_list(value: Json, where: str) -> Sequence[Json]:
    """A JSON list, else PlanError."""
    if not isinstance(value, list):
        raise PlanError(f"{where}: {_short(value)} is no list; write [...]")
    return value


def as_text(value: Json, where: str) -> str:
    """A JSON string, else PlanError."""
    if not isinstance(value, str):
        raise PlanError(f'{where}: {_short(value)} is no text; write "..."')
    return value


def as_flag(value: Json, where: str) -> bool:
    """A JSON true or false, else PlanError."""
    if not isinstance(value, bool):
        raise PlanError(f"{where}: {_short(value)} is neither true nor false; write one of them")
    return value


def as_integer(value: Json, where: str) -> int:
    """A JSON whole number, else PlanError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{where}: {_short(value)} is no whole number; write one")
    return value


def as_number(value: Json, where: str) -> float:
    """A JSON number, else PlanError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{where}: {_short(value)} is no number; write one")
    return float(value)


def as_integers(value: Json, where: str) -> tuple[int, ...]:
    """A JSON list of whole numbers, else PlanError."""
    return tuple(as_integer(item, f"{where}[{index}]") for index, item in enumerate(as_list(value, where)))


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
