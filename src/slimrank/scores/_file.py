# SPDX-License-Identifier: Apache-2.0
"""The file of a score table: JSON, sorted, written whole or not at all."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypedDict, get_args

from slimrank._errors import PlanError, ScoreError
from slimrank._names import listed, nearest
from slimrank.cost import FORM_ROWS, FORMS
from slimrank.files import (
    Json,
    as_flag,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    check_format,
    from_text,
    read_text,
    to_text,
    write_text,
)
from slimrank.plan import form_of, method_of
from slimrank.records import PRUNING, Method, replaces_groups
from slimrank.scores._entry import EntryForm, ScoreEntry

# Written into each score table; a higher number would keep older versions from misreading a new layout.
SCORES_FORMAT = 1
# The form of an entry of a channel group, which no pair replaces.
CHANNELS: Literal["channels"] = "channels"
# Every method there is: a table may hold any of them.
_METHODS: tuple[Method, ...] = get_args(Method)
# Every file has these.
_TABLE_KEYS = (
    "format",
    "fingerprint",
    "baseline",
    "lower_is_better",
    "methods",
    "candidates",
    "order",
    "entries",
    "notes",
)
# Tables of layers alone are written as they were before there were groups.
_OPTIONAL_TABLE_KEYS = ("groups",)
_KEYS_OF_GROUP = ("group", "entries")
_KEYS_OF_ENTRY = ("method", "form", "rank", "keep_ratio", "score")
# Written only where there is something to say.
_LATER_KEYS_OF_ENTRY = ("rank_in",)


class ScoresFields(TypedDict):
    """The fields of a score table, as ``Scores`` takes them."""

    fingerprint: Mapping[str, str]
    baseline: float
    lower_is_better: bool
    methods: tuple[Method, ...]
    candidates: tuple[float, ...]
    entries: Mapping[str, tuple[ScoreEntry, ...]]
    notes: tuple[str, ...]
    groups: Mapping[str, tuple[ScoreEntry, ...]]


def write_scores(path: str | os.PathLike[str], scores: ScoresFields) -> None:
    """Write a table as JSON.

    Args:
        path: of the file; an existing one is replaced, whole or not at all.
        scores: to write.

    Raises:
        FileError: the file cannot be written.
        ScoreError: the table holds a number that is not finite.
    """
    content: dict[str, Json] = {
        "format": SCORES_FORMAT,
        "fingerprint": dict(scores["fingerprint"]),
        "baseline": scores["baseline"],
        "lower_is_better": scores["lower_is_better"],
        "methods": list(scores["methods"]),
        "candidates": list(scores["candidates"]),
        # Sorting would lose the order of execution.
        "order": list(scores["entries"]),
        "entries": {name: _entries_to_json(entries) for name, entries in scores["entries"].items()},
        "notes": list(scores["notes"]),
    }
    if scores["groups"]:
        content["groups"] = [
            {"group": name, "entries": _entries_to_json(entries)}
            for name, entries in scores["groups"].items()
        ]
    try:
        text = to_text(content)
    except ValueError as error:
        raise ScoreError(f"score table: a number is not finite ({error}); measure it again") from error
    write_text(path, text, what="score table")


def _entries_to_json(entries: Iterable[ScoreEntry]) -> Json:
    return [
        {
            key: getattr(entry, key)
            for key in (*_KEYS_OF_ENTRY, *_LATER_KEYS_OF_ENTRY)
            if key in _KEYS_OF_ENTRY or getattr(entry, key) is not None
        }
        for entry in entries
    ]


def read_scores(path: str | os.PathLike[str]) -> ScoresFields:
    """Read the file of a table.

    Args:
        path: of the file.

    Returns:
        The fields of a table.

    Raises:
        FileError: the file is missing or cannot be read.
        ScoreError: it is no score table, is cut short, holds unknown keys, or is of another format.
    """
    where = f"score table {Path(path)}"
    text = read_text(path, where, advice="give a file that measure_scores wrote", error=ScoreError)
    try:
        return _scores_from_json(text, where)
    except PlanError as error:
        # The readers of JSON raise a PlanError, whatever file they read.
        raise ScoreError(str(error)) from error


def _scores_from_json(text: str, where: str) -> ScoresFields:
    content = as_object(from_text(text, where), where)
    check_format(
        content.get("format"),
        SCORES_FORMAT,
        where=where,
        advice="give a file that measure_scores wrote, or install a newer slimrank",
        error=ScoreError,
    )
    as_object(content, where, required=_TABLE_KEYS, optional=_OPTIONAL_TABLE_KEYS)
    fingerprint = as_object(content["fingerprint"], f"{where}: fingerprint")
    order = [as_text(name, f"{where}: order") for name in as_list(content["order"], f"{where}: order")]
    entries_by_layer = as_object(content["entries"], f"{where}: entries")
    unmatched = set(order).symmetric_difference(entries_by_layer)
    if unmatched or len(order) != len(entries_by_layer):
        raise ScoreError(
            f"{where}: order and entries do not hold the same layers "
            f"({listed(sorted(unmatched)) or 'one stands twice'}); save it again"
        )
    return ScoresFields(
        fingerprint={key: as_text(value, f"{where}: fingerprint") for key, value in fingerprint.items()},
        baseline=_finite(content["baseline"], f"{where}: baseline"),
        lower_is_better=as_flag(content["lower_is_better"], f"{where}: lower_is_better"),
        methods=tuple(
            _method_from_json(value, f"{where}: methods")
            for value in as_list(content["methods"], f"{where}: methods")
        ),
        candidates=tuple(
            _finite(value, f"{where}: candidates")
            for value in as_list(content["candidates"], f"{where}: candidates")
        ),
        entries={
            name: _entries_from_json(entries_by_layer[name], f"{where}: entries[{name!r}]", in_groups=False)
            for name in order
        },
        notes=tuple(
            as_text(value, f"{where}: notes") for value in as_list(content["notes"], f"{where}: notes")
        ),
        groups=_groups_from_json(content.get("groups", []), f"{where}: groups"),
    )


def _groups_from_json(value: Json, where: str) -> dict[str, tuple[ScoreEntry, ...]]:
    """Entries by group, in the order of the file."""
    found: dict[str, tuple[ScoreEntry, ...]] = {}
    for index, item in enumerate(as_list(value, where)):
        content = as_object(item, f"{where}[{index}]", required=_KEYS_OF_GROUP)
        name = as_text(content["group"], f"{where}[{index}].group")
        if name in found:
            raise ScoreError(f"{where}: group {name!r} stands twice; delete one of the two")
        found[name] = _entries_from_json(content["entries"], f"{where}[{name!r}]", in_groups=True)
    return found


def _entries_from_json(value: Json, where: str, *, in_groups: bool) -> tuple[ScoreEntry, ...]:
    found = tuple(
        _entry_from_json(item, f"{where}[{index}]") for index, item in enumerate(as_list(value, where))
    )
    if any(replaces_groups(entry.method) != in_groups for entry in found):
        raise ScoreError(
            f"{where}: {PRUNING!r} belongs to groups and no other method does; move it, or measure "
            "the scores again"
        )
    return _distinct(found, where)


def _distinct(entries: tuple[ScoreEntry, ...], where: str) -> tuple[ScoreEntry, ...]:
    """The entries, each of another method, form or rank."""
    known = [(entry.method, *entry.key) for entry in entries]
    repeated = next((key for key in known if known.count(key) > 1), None)
    if repeated is not None:
        shown = " ".join(str(part) for part in repeated if part is not None)
        raise ScoreError(f"{where}: {shown} stands twice; delete one of the entries")
    return entries


def _entry_from_json(value: Json, where: str) -> ScoreEntry:
    content = as_object(value, where, required=_KEYS_OF_ENTRY, optional=_LATER_KEYS_OF_ENTRY)
    method = _method_from_json(content["method"], f"{where}.method")
    form_text = as_text(content["form"], f"{where}.form")
    form = _entry_form(method, form_text)
    if form is None:
        close = nearest(form_text, FORMS.get(method, (CHANNELS,)))
        raise ScoreError(f"{where}: {method} has no form {form_text!r}; {close}")
    rank = as_integer(content["rank"], f"{where}.rank")
    rank_in = as_integer(content["rank_in"], f"{where}.rank_in") if "rank_in" in content else None
    if (form in FORM_ROWS and FORM_ROWS[form].has_third) != (rank_in is not None):  # type: ignore[index]
        raise ScoreError(
            f"{where}: {form} has {'one rank' if rank_in else 'two ranks'}; "
            f"{'delete' if rank_in else 'add'} rank_in, or measure the scores again"
        )
    ratio = _finite(content["keep_ratio"], f"{where}.keep_ratio")
    if rank < 1 or ratio <= 0:
        raise ScoreError(f"{where}: rank {rank} and keep_ratio {ratio:g} must be above 0; delete the entry")
    return ScoreEntry(
        method=method,
        form=form,
        rank=rank,
        rank_in=rank_in,
        keep_ratio=ratio,
        score=_finite(content["score"], f"{where}.score"),
    )


def _method_from_json(value: Json, where: str) -> Method:
    text = as_text(value, where)
    method = method_of(text, _METHODS)
    if method is None:
        raise ScoreError(f"{where}: unknown method {text!r}; {nearest(text, _METHODS)}")
    return method


def _entry_form(method: Method, text: str) -> EntryForm | None:
    """The form of this name; None where the method has none."""
    if replaces_groups(method):
        return CHANNELS if text == CHANNELS else None
    return form_of(method, text)


def _finite(value: Json, where: str) -> float:
    number = as_number(value, where)
    if not math.isfinite(number):
        raise ScoreError(f"{where}: {number} is not finite; write a finite number")
    return number
