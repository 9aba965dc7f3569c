# SPDX-License-Identifier: Apache-2.0
"""Results of commands: saved, and told as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import slimrank as sr
from slimrank._result import summary_of
from slimrank.cli._command import Answer
from slimrank.deploy import REPORT_FILE
from slimrank.files import Json
from slimrank.records import Measurement
from slimrank.report import result_facts


def save_result(result: sr.Result, out: Path, *, overwrite: bool) -> Answer:
    """Saves a compressed model and tells what became of it."""
    result.save(out, overwrite=overwrite)
    text = f"{result.summary()}\nSaved in {out}; report: {out / REPORT_FILE}"
    return Answer(text=text, facts=saved_facts(result, out))


def exported_facts(exported: sr.Exported) -> dict[str, Json]:
    """A file that was exported, for ``--json``."""
    notes: list[Json] = [str(note) for note in exported.notes]
    return {**asdict(exported), "path": str(exported.path), "notes": notes}


def saved_facts(result: sr.Result, out: Path, measurements: Sequence[Measurement] = ()) -> dict[str, Json]:
    """A result that was saved, for ``--json``."""
    return {"model": str(out), **result_facts(summary_of(result, measurements))}
