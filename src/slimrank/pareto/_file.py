# SPDX-License-Identifier: Apache-2.0
"""The file of a curve of plans: JSON, sorted, written whole or not at all."""

import os
from collections.abc import Mapping
from math import inf, isfinite, nan
from pathlib import Path
from typing import TypedDict

from slimrank._errors import PlanError
from slimrank._names import nearest
from slimrank.files import (
    Json,
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
from slimrank.pareto._point import ParetoPoint
from slimrank.plan import plan_content, plan_of_content
from slimrank.records import LATENCY, METRICS, Budgeted

# Written into each file; a higher number would keep older versions from misreading a new layout.
PARETO_FORMAT = 1
_KEYS = ("format", "metric", "unit", "measured_unit", "baseline", "points")
_POINT_KEYS = ("budget", "cost", "predicted", "measured", "plan")
_ADVICE = "give a file that Pareto.save wrote"
# Numbers that JSON does not have, as texts.
_SPELLED: Mapping[str, float] = {"inf": inf, "-inf": -inf, "nan": nan}
_METRICS: tuple[Budgeted, ...] = (*METRICS, LATENCY)


class ParetoFields(TypedDict):
    """The fields of a curve, as ``Pareto`` takes them."""

    metric: Budgeted
    points: tuple[ParetoPoint, ...]
    unit: str
    measured_unit: str | None
    baseline: float | None


def write_pareto(path: str | os.PathLike[str], curve: ParetoFields) -> None:
    """Writes a curve as JSON.

    Args:
        path: of the file; an existing one is replaced, whole or not at all.
        curve: to write.

    Raises:
        FileError: the file cannot be written.
        PlanError: a number of a plan is not finite.
    """
    content: dict[str, Json] = {
        "format": PARETO_FORMAT,
        "metric": curve["metric"],
        "unit": curve["unit"],
        "measured_unit": curve["measured_unit"],
        "baseline": curve["baseline"],
        "points": [
            {
                "budget": point.budget,
                "cost": point.cost,
                "predicted": _number_to_json(point.predicted),
                "measured": _number_to_json(point.measured),
                "plan": plan_content(point.plan),
            }
            for point in curve["points"]
        ],
    }
    try:
        text = to_text(content)
    except ValueError as error:
        raise PlanError(f"pareto: a number of a plan is not finite ({error}); plan anew") from error
    write_text(path, text, what="pareto file")


def _number_to_json(value: float | None) -> Json:
    return value if value is None or isfinite(value) else str(float(value))


def read_pareto(path: str | os.PathLike[str]) -> ParetoFields:
    """Reads the file of a curve.

    Args:
        path: of the file.

    Returns:
        The fields of a curve.

    Raises:
        FileError: the file is missing or cannot be read.
        PlanError: it is no such file, is cut short, holds unknown keys,
            or is of another format.
        RankError: a rank that a layer does not have.
    """
    where = f"pareto file {Path(path)}"
    text = read_text(path, where, advice=_ADVICE, error=PlanError)
    content = as_object(from_text(text, where), where)
    check_format(
        content.get("format"),
        PARETO_FORMAT,
        where=where,
        advice=f"{_ADVICE}, or install a newer slimrank",
        error=PlanError,
    )
    as_object(content, where, required=_KEYS)
    metric_text = as_text(content["metric"], f"{where}: metric")
    metric = next((known for known in _METRICS if known == metric_text), None)
    if metric is None:
        raise PlanError(f"{where}: metric is {metric_text!r}; {nearest(metric_text, _METRICS)}")
    measured_unit = content["measured_unit"]
    return ParetoFields(
        metric=metric,
        points=tuple(
            _point_from_json(point, f"{where}: points[{index}]")
            for index, point in enumerate(as_list(content["points"], f"{where}: points"))
        ),
        unit=as_text(content["unit"], f"{where}: unit"),
        measured_unit=None if measured_unit is None else as_text(measured_unit, f"{where}: measured_unit"),
        baseline=_number_from_json(content["baseline"], f"{where}: baseline"),
    )


def _point_from_json(value: Json, where: str) -> ParetoPoint:
    content = as_object(value, where, required=_POINT_KEYS)
    return ParetoPoint(
        budget=as_number(content["budget"], f"{where}.budget"),
        cost=as_number(content["cost"], f"{where}.cost"),
        predicted=_number_from_json(content["predicted"], f"{where}.predicted"),
        measured=_number_from_json(content["measured"], f"{where}.measured"),
        plan=plan_of_content(content["plan"], f"{where}.plan"),
    )


def _number_from_json(value: Json, where: str) -> float | None:
    if isinstance(value, str) and value in _SPELLED:
        return _SPELLED[value]
    return None if value is None else as_number(value, where)
