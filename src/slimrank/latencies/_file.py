# SPDX-License-Identifier: Apache-2.0
"""The file of a latency table: JSON, sorted, written whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from slimrank._errors import LatencyError, PlanError
from slimrank._names import nearest
from slimrank.cost import FORM_ROWS
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
from slimrank.latencies._parts import Parts, Place
from slimrank.latencies._record import Conditions, LatencyRecord, VariantTime
from slimrank.plan import form_of, method_of
from slimrank.records import DenseTime, Form, LayerTimes, NetworkTimes, Note, PairTime, Setting, Steps

# Written into each table; a higher number would keep older versions from misreading a new layout.
LATENCY_FORMAT = 2
_KEYS = ("format", "conditions", "steps", "original", "variants", "result")
_CONDITIONS = tuple(Conditions.__dataclass_fields__)
_CHOICE = ("settings", "kept", "dropped")
_VARIANT = (*_CHOICE, "parts", "before_ms", "before_spread", "ratio", "spread")
# Written of variants in another precision than the original's only.
_STANDING = "standing_ratio"
_PARTS = ("factors", "others")
_OTHER = ("block", "groups", "nanoseconds")
_RESULT = ("before_ms", "spread", "error", "times", "notes")
_TIMES = ("layers", "groups", "ragged", "blocks", "fixed", "before", "reference", "step", "column_step")
_DENSE = ("fixed", "per_row", "per_column", "per_product")
_PAIR = ("fixed", "per_rank", "per_row", "per_column", "any_row", "any_column")
_NOTE = ("where", "text", "is_warning")
_ADVICE = "give a file that measure_latency wrote"


class ResultFields(TypedDict):
    """What was made of a record once it was whole."""

    before_ms: float
    spread: float
    error: float
    times: NetworkTimes
    notes: tuple[Note, ...]


def write_latencies(path: str | os.PathLike[str], record: LatencyRecord, result: ResultFields | None) -> None:
    """Writes a table as JSON.

    Args:
        path: of the file; an existing one is replaced, whole or not at all.
        record: what was measured so far.
        result: what was made of it; None where more is to be measured.

    Raises:
        FileError: the file cannot be written.
        LatencyError: a number is not finite.
    """
    content: dict[str, Json] = {
        "format": LATENCY_FORMAT,
        "conditions": conditions_to_json(record.conditions),
        "steps": {"rows": record.steps.rows, "columns": record.steps.columns},
        "original": _parts_to_json(record.original),
        "variants": [_variant_to_json(variant) for variant in record.variants],
        "result": None if result is None else _result_to_json(result),
    }
    try:
        text = to_text(content)
    except ValueError as error:
        raise LatencyError(f"latency table: a number is not finite ({error}); measure it again") from error
    write_text(path, text, what="latency table")


def read_latencies(path: str | os.PathLike[str]) -> tuple[LatencyRecord, ResultFields | None]:
    """Reads the file of a table.

    Args:
        path: of the file.

    Returns:
        What was measured, and what was made of it; None where the measurement was stopped.

    Raises:
        FileError: the file is missing or cannot be read.
        LatencyError: it is no such table, is cut short, holds unknown keys, or is of another format.
    """
    where = f"latency table {Path(path)}"
    text = read_text(path, where, advice=_ADVICE, error=LatencyError)
    try:
        content = as_object(from_text(text, where), where)
        check_format(
            content.get("format"),
            LATENCY_FORMAT,
            where=where,
            advice=f"{_ADVICE}, or install a newer slimrank",
            error=LatencyError,
        )
        as_object(content, where, required=_KEYS)
        record = LatencyRecord(
            conditions=conditions_from(content["conditions"], f"{where}: conditions"),
            steps=_steps_from(content["steps"], f"{where}: steps"),
            original=_parts_from(content["original"], f"{where}: original"),
            variants=tuple(
                _variant_from(entry, f"{where}: variants[{index}]")
                for index, entry in enumerate(as_list(content["variants"], f"{where}: variants"))
            ),
        )
        result = content["result"]
        return record, None if result is None else _result_from(result, f"{where}: result")
    except PlanError as error:
        # The readers of JSON raise a PlanError, whatever file they read.
        raise LatencyError(str(error)) from error


def _steps_from(value: Json, where: str) -> Steps:
    found = as_object(value, where, required=Steps._fields)
    return Steps(**{key: as_integer(found[key], where) for key in Steps._fields})


def _parts_to_json(parts: Parts) -> Json:
    return {
        "factors": {name: list(times) for name, times in parts.factors.items()},
        "others": [
            {"block": place.block, "groups": list(place.groups), "nanoseconds": time}
            for place, time in sorted(parts.others.items())
        ],
    }


def _variant_to_json(variant: VariantTime) -> Json:
    return {
        **choice_to_json(variant.settings, variant.kept, variant.dropped),
        "parts": _parts_to_json(variant.parts),
        **{key: getattr(variant, key) for key in ("before_ms", "before_spread", "ratio", "spread")},
        **({} if variant.standing_ratio is None else {_STANDING: variant.standing_ratio}),
    }


def _result_to_json(result: ResultFields) -> Json:
    times = result["times"]
    return {
        **{key: result[key] for key in ("before_ms", "spread", "error")},
        "notes": [{key: getattr(note, key) for key in _NOTE} for note in result["notes"]],
        "times": {
            **{key: getattr(times, key) for key in ("fixed", "before", "reference", "step")},
            "column_step": times.steps.columns,
            "groups": dict(times.groups),
            "ragged": dict(times.ragged),
            "blocks": dict(times.blocks),
            "layers": {
                name: {
                    "dense": {key: getattr(layer.dense, key) for key in _DENSE},
                    "pairs": {
                        form: {key: getattr(pair, key) for key in _PAIR} for form, pair in layer.pairs.items()
                    },
                }
                for name, layer in times.layers.items()
            },
        },
    }


def conditions_from(value: Json, where: str) -> Conditions:
    """Conditions of measurements, from a file; else PlanError."""
    found = as_object(value, where, required=_CONDITIONS)
    return Conditions(
        backend=as_text(found["backend"], where),
        threads=as_integer(found["threads"], where),
        batch=as_integer(found["batch"], where),
        precision=as_text(found["precision"], where),
        machine=as_text(found["machine"], where),
        versions=_texts(found["versions"], where),
        fingerprint=_texts(found["fingerprint"], where),
        methods=tuple(as_text(entry, where) for entry in as_list(found["methods"], where)),
    )


def _parts_from(value: Json, where: str) -> Parts:
    found = as_object(value, where, required=_PARTS)
    factors = as_object(found["factors"], where)
    others = [
        as_object(entry, where, required=_OTHER) for entry in as_list(found["others"], f"{where}: others")
    ]
    return Parts(
        factors={
            name: tuple(as_number(time, where) for time in as_list(times, where))
            for name, times in factors.items()
        },
        others={
            Place(
                block=as_text(other["block"], where),
                groups=tuple(as_text(name, where) for name in as_list(other["groups"], where)),
            ): as_number(other["nanoseconds"], where)
            for other in others
        },
    )


def _variant_from(value: Json, where: str) -> VariantTime:
    found = as_object(value, where, required=_VARIANT, optional=(_STANDING,))
    return VariantTime(
        **choice_from({key: found[key] for key in _CHOICE}, where),
        parts=_parts_from(found["parts"], where),
        before_ms=as_number(found["before_ms"], where),
        before_spread=as_number(found["before_spread"], where),
        ratio=as_number(found["ratio"], where),
        spread=as_number(found["spread"], where),
        standing_ratio=as_number(found[_STANDING], where) if _STANDING in found else None,
    )


class ChoiceFields(TypedDict):
    """What a variant does to the network, as ``VariantTime`` has it."""

    settings: Mapping[str, Setting]
    kept: Mapping[str, int]
    dropped: tuple[str, ...]


def choice_to_json(
    settings: Mapping[str, Setting], kept: Mapping[str, int], dropped: Sequence[str]
) -> dict[str, Json]:
    """What a variant does to the network, for a file."""
    return {
        "settings": {
            name: [setting.method, setting.form, setting.rank] for name, setting in settings.items()
        },
        "kept": dict(kept),
        "dropped": list(dropped),
    }


def choice_from(value: Json, where: str) -> ChoiceFields:
    """What a variant does to the network, from a file; else PlanError."""
    found = as_object(value, where, required=_CHOICE)
    return ChoiceFields(
        settings={
            name: _setting_from(entry, f"{where}[{name!r}]")
            for name, entry in as_object(found["settings"], where).items()
        },
        kept={name: as_integer(count, where) for name, count in as_object(found["kept"], where).items()},
        dropped=tuple(as_text(name, where) for name in as_list(found["dropped"], where)),
    )


def conditions_to_json(conditions: Conditions) -> dict[str, Json]:
    """Conditions of measurements, for a file."""
    return {
        **{key: getattr(conditions, key) for key in _CONDITIONS},
        "versions": dict(conditions.versions),
        "fingerprint": dict(conditions.fingerprint),
        "methods": list(conditions.methods),
    }


def _setting_from(value: Json, where: str) -> Setting:
    method, form, rank = _three(as_list(value, where), where)
    known = method_of(as_text(method, where))
    known_form = None if known is None else form_of(known, as_text(form, where))
    if known is None or known_form is None:
        raise PlanError(f"{where}: {method!r} {form!r} is no way to split a layer; measure it again")
    return Setting(method=known, form=known_form, rank=as_integer(rank, where))


def _three(values: Sequence[Json], where: str) -> tuple[Json, Json, Json]:
    if len(values) != 3:
        raise PlanError(f"{where}: {len(values)} entries; write [method, form, rank]")
    return values[0], values[1], values[2]


def _result_from(value: Json, where: str) -> ResultFields:
    found = as_object(value, where, required=_RESULT)
    notes = [as_object(entry, where, required=_NOTE) for entry in as_list(found["notes"], where)]
    return ResultFields(
        before_ms=as_number(found["before_ms"], where),
        spread=as_number(found["spread"], where),
        error=as_number(found["error"], where),
        times=_times_from(found["times"], f"{where}: times"),
        notes=tuple(
            Note(
                where=as_text(note["where"], where),
                text=as_text(note["text"], where),
                is_warning=as_flag(note["is_warning"], where),
            )
            for note in notes
        ),
    )


def _times_from(value: Json, where: str) -> NetworkTimes:
    found = as_object(value, where, required=_TIMES)
    return NetworkTimes(
        layers={
            name: _layer_from(entry, f"{where}[{name!r}]")
            for name, entry in as_object(found["layers"], where).items()
        },
        groups=_numbers(found["groups"], where),
        ragged=_numbers(found["ragged"], where),
        blocks=_numbers(found["blocks"], where),
        fixed=as_number(found["fixed"], where),
        before=as_number(found["before"], where),
        reference=as_number(found["reference"], where),
        step=as_integer(found["step"], where),
        column_step=as_integer(found["column_step"], where),
    )


def _layer_from(value: Json, where: str) -> LayerTimes:
    found = as_object(value, where, required=("dense", "pairs"))
    pairs = as_object(found["pairs"], where)
    forms: dict[Form, PairTime] = {}
    for name, entry in pairs.items():
        form = next((form for form in FORM_ROWS if form == name), None)
        if form is None:
            raise PlanError(f"{where}: {nearest(name, FORM_ROWS)}")
        forms[form] = PairTime(**_numbers(entry, where, _PAIR))
    return LayerTimes(dense=DenseTime(**_numbers(found["dense"], where, _DENSE)), pairs=forms)


def _numbers(value: Json, where: str, keys: Sequence[str] | None = None) -> dict[str, float]:
    found = as_object(value, where, required=keys)
    return {name: as_number(entry, f"{where}[{name!r}]") for name, entry in found.items()}


def _texts(value: Json, where: str) -> Mapping[str, str]:
    return {name: as_text(entry, where) for name, entry in as_object(value, where).items()}
