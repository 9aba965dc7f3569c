# SPDX-License-Identifier: Apache-2.0
"""Exported files: as rows of a table, and as JSON that can be read back."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from slimrank._errors import FileError, PlanError
from slimrank.files import Json, as_flag, as_integer, as_list, as_number, as_object, as_text
from slimrank.records import Exported, Int8, Note
from slimrank.report._numbers import format_metric, format_share, number_or_text

_COLUMNS = (
    "file",
    "format",
    ">size",
    ">original size",
    ">largest error",
    ">equal classes",
    ">time",
    ">original time",
    "timed with",
)
_NOTE_KEYS = ("where", "text", "is_warning")
_KEYS = (
    "file",
    "format",
    "bytes",
    "before_bytes",
    "max_error",
    "agreement",
    "before_ms",
    "after_ms",
    "before_spread",
    "after_spread",
    "batch",
    "threads",
    "notes",
)
# Of files in float, and in manifests that were written before there was int8, it is not there.
_INT8 = "int8"
_INT8_KEYS = (
    "precision",
    "divergence",
    "noise_db",
    "layers",
    "kept",
    "left",
    "float_bytes",
    "float_ms",
    "float_spread",
)


def named_in(directory: Path | None, exported: Exported) -> Exported:
    """An exported file under the name that files in a directory have for it.

    Args:
        directory: of the page or manifest that names the file; None for none.
        exported: with a path from the working directory, or a whole one.

    Returns:
        With the path from the directory where the file lies in it, beside it, or in a folder beside it: all
        that can be moved together. Elsewhere with the name alone: who gets the directory need not know the
        folders of this machine.
    """
    if directory is None:
        return replace(exported, path=Path(exported.path.name))
    file, folder = exported.path.parent.resolve() / exported.path.name, directory.resolve()
    if not file.is_relative_to(folder.parent):
        return replace(exported, path=Path(file.name))
    return replace(exported, path=Path(os.path.relpath(file, folder)))


def with_file(known: Sequence[Exported], exported: Exported) -> tuple[Exported, ...]:
    """Exported files and one more, which takes the place of an earlier one of the same path."""
    return (*(file for file in known if file.path != exported.path), exported)


def export_facts(files: Sequence[Exported]) -> list[Json]:
    """Exported files as JSON, with ``/`` in paths on every system."""
    facts: list[Json] = []
    for exported in files:
        values = {**asdict(exported), "file": exported.path.as_posix()}
        values["notes"] = [asdict(note) for note in exported.notes]
        values["max_error"] = number_or_text(exported.max_error)
        entry: dict[str, Json] = {key: values[key] for key in _KEYS}
        if exported.int8 is not None:
            entry[_INT8] = int8_facts(exported.int8)
        facts.append(entry)
    return facts


def int8_facts(int8: Int8) -> dict[str, Json]:
    """What int8 did, as JSON; null where nothing differs (inf dB), text for what else is not finite."""
    names = {key: list(getattr(int8, key)) for key in ("layers", "kept", "left")}
    divergence = None if int8.divergence is None else number_or_text(int8.divergence)
    noise_db = None if int8.noise_db == math.inf else number_or_text(int8.noise_db)
    values: dict[str, Json] = {**asdict(int8), **names, "divergence": divergence, "noise_db": noise_db}
    return {key: values[key] for key in _INT8_KEYS}


def exports_from_facts(facts: Json, where: str) -> tuple[Exported, ...]:
    """What ``export_facts`` wrote.

    Args:
        facts: that were read.
        where: for errors.

    Returns:
        The files.

    Raises:
        FileError: something else.
    """
    try:
        return tuple(
            _from_facts(entry, f"{where}[{index}]") for index, entry in enumerate(as_list(facts, where))
        )
    except PlanError as error:
        raise FileError(str(error)) from error


def _from_facts(value: Json, where: str) -> Exported:
    facts = as_object(value, where, required=_KEYS, optional=(_INT8,))

    def number(key: str) -> float:
        return as_number(facts[key], f"{where}.{key}")

    def number_or_none(key: str) -> float | None:
        return None if facts[key] is None else number(key)

    def integer(key: str) -> int:
        return as_integer(facts[key], f"{where}.{key}")

    return Exported(
        path=Path(as_text(facts["file"], f"{where}.file")),
        format=as_text(facts["format"], f"{where}.format"),
        bytes=integer("bytes"),
        before_bytes=None if facts["before_bytes"] is None else integer("before_bytes"),
        max_error=_any_number(facts["max_error"], f"{where}.max_error"),
        agreement=number_or_none("agreement"),
        before_ms=number_or_none("before_ms"),
        after_ms=number("after_ms"),
        before_spread=number_or_none("before_spread"),
        after_spread=number("after_spread"),
        batch=integer("batch"),
        threads=integer("threads"),
        notes=tuple(
            _note_from_facts(note, f"{where}.notes[{index}]")
            for index, note in enumerate(as_list(facts["notes"], f"{where}.notes"))
        ),
        int8=_int8_from_facts(facts[_INT8], f"{where}.{_INT8}") if _INT8 in facts else None,
    )


def _int8_from_facts(value: Json, where: str) -> Int8:
    facts = as_object(value, where, required=_INT8_KEYS)

    def names(key: str) -> tuple[str, ...]:
        values = as_list(facts[key], f"{where}.{key}")
        return tuple(as_text(name, f"{where}.{key}[{index}]") for index, name in enumerate(values))

    def number(key: str) -> float:
        return as_number(facts[key], f"{where}.{key}")

    return Int8(
        precision=as_text(facts["precision"], f"{where}.precision"),
        divergence=(
            None if facts["divergence"] is None else _any_number(facts["divergence"], f"{where}.divergence")
        ),
        noise_db=math.inf
        if facts["noise_db"] is None
        else _any_number(facts["noise_db"], f"{where}.noise_db"),
        layers=names("layers"),
        kept=names("kept"),
        left=names("left"),
        float_bytes=as_integer(facts["float_bytes"], f"{where}.float_bytes"),
        float_ms=number("float_ms"),
        float_spread=number("float_spread"),
    )


def _any_number(value: Json, where: str) -> float:
    """A number that ``number_or_text`` wrote."""
    if value in ("inf", "-inf", "nan"):
        return float(str(value))
    return as_number(value, where)


def _note_from_facts(value: Json, where: str) -> Note:
    facts = as_object(value, where, required=_NOTE_KEYS)
    return Note(
        where=as_text(facts["where"], f"{where}.where"),
        text=as_text(facts["text"], f"{where}.text"),
        is_warning=as_flag(facts["is_warning"], f"{where}.is_warning"),
    )


def export_rows(files: Sequence[Exported]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of exported files: headings, and a row for each."""
    return _COLUMNS, [_row(exported) for exported in files]


def _row(exported: Exported) -> tuple[str, ...]:
    before_bytes, share = exported.before_bytes, exported.agreement
    return (
        exported.path.as_posix(),
        exported.format if exported.int8 is None else f"{exported.format}, {exported.int8.precision}",
        format_metric("bytes", exported.bytes),
        "-" if before_bytes is None else format_metric("bytes", before_bytes),
        f"{exported.max_error:.1e}",
        "-" if share is None else format_share(share, digits=2),
        _time(exported.after_ms, exported.after_spread),
        "-"
        if exported.before_ms is None or exported.before_spread is None
        else _time(exported.before_ms, exported.before_spread),
        f"batch {exported.batch}, {exported.threads} {'thread' if exported.threads == 1 else 'threads'}",
    )


def _time(milliseconds: float, spread: float) -> str:
    return f"{milliseconds:.3f} ms, spread {spread:.0%}"
