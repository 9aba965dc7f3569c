# SPDX-License-Identifier: Apache-2.0
"""Measured times in the data of a page, beside its counted costs."""

from slimrank.cost import layer_times
from slimrank.files import Json
from slimrank.plan import LatencyTable, Step, check_table, predicted_time
from slimrank.report.page._advice import result_advice, study_advice
from slimrank.report.page._reading import Facts, facts_of, rows_of

_NS_PER_MS = 1e6


def with_times(data: Facts, latencies: object, step: Step) -> dict[str, Json]:
    """The data of a page with the time of each layer, before and after, by a table of measured times.

    Args:
        data: of ``study_data``, ``result_data`` or a page that was written before.
        latencies: the table.
        step: what is done to the network that the table is of; nothing, for the page of a study.

    Returns:
        The data: ``ms`` among the costs of each layer, and ``latency``.

    Raises:
        OptionError: no table.
        LatencyError: it is of another network.
    """
    table = check_table(latencies, step.structure)
    untouched = Step(structure=step.structure, layers={})
    before, after = _by_layer(table, untouched), _by_layer(table, step)
    is_study = data["kind"] == "study"
    rows: list[Json] = []
    for row in rows_of(data["layers"]):
        name = str(row["name"])
        # A layer that the table has no time of is in what takes time outside of them.
        timed = {"before": before.get(name)}
        if not is_study:
            timed["after"] = None if name not in before else after.get(name, 0.0)
        rows.append({**row, **{key: {**facts_of(row[key]), "ms": ms} for key, ms in timed.items()}})
    found: dict[str, Json] = {
        **data,
        "layers": rows,
        "latency": {
            "backend": table.backend,
            "precision": table.precision,
            "threads": table.threads,
            "batch": table.batch,
            "before_ms": _whole(table, untouched),
            "after_ms": None if is_study else _whole(table, step),
        },
    }
    return {**found, "advice": study_advice(found) if is_study else result_advice(found)}


def _by_layer(table: LatencyTable, step: Step) -> dict[str, float]:
    """Milliseconds of each layer that the table knows and the step leaves."""
    times = layer_times(
        table.times,
        step.structure.layers,
        step.structure.channels,
        settings=step.settings,
        kept=step.groups,
        dropped=step.dropped,
    )
    return {name: _rounded(time) for name, time in times.items()}


def _whole(table: LatencyTable, step: Step) -> float:
    """Milliseconds of the network."""
    return _rounded(predicted_time(table.times, step))


def _rounded(time: float) -> float:
    """Milliseconds of nanoseconds, in four significant digits: no table is more precise."""
    return float(f"{time / _NS_PER_MS:.4g}")
