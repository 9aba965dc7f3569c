# SPDX-License-Identifier: Apache-2.0
"""Results of commands: saved, and told as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import slimrank as sr
from slimrank._errors import FileError
from slimrank._result import add_export, summary_of
from slimrank.cli._command import Answer
from slimrank.deploy import REPORT_FILE
from slimrank.files import Json
from slimrank.records import Measurement, Note
from slimrank.report import int8_facts, render_text, result_facts


def save_result(result: sr.Result, out: Path, *, overwrite: bool, architecture: bool) -> Answer:
    """Saves a compressed model and tells what became of it."""
    result.save(out, overwrite=overwrite, architecture=architecture)
    text = f"{result_text(result)}\nSaved in {out}; report: {out / REPORT_FILE}"
    return Answer(text=text, facts=saved_facts(result, out))


def result_text(result: sr.Result, measurements: Sequence[Measurement] = ()) -> str:
    """What ``Result.summary`` says, in whole lines."""
    return render_text(summary_of(result, measurements), plan=result.plan, width=None)


def name_in_saved(exported: sr.Exported, directory: Path) -> sr.Exported:
    """Names a file in the saved model that it was made of; a note says where that failed."""
    try:
        add_export(directory, exported)
    except FileError as error:
        text = f"the saved model does not name this file, and is as it was: {error}"
        note = Note(where=str(directory), text=text, is_warning=True)
        return replace(exported, notes=(*exported.notes, note))
    return exported


def exported_facts(exported: sr.Exported) -> dict[str, Json]:
    """A file that was exported, for ``--json``."""
    notes: list[Json] = [str(note) for note in exported.notes]
    int8 = None if exported.int8 is None else int8_facts(exported.int8)
    return {**asdict(exported), "path": str(exported.path), "notes": notes, "int8": int8}


def saved_facts(result: sr.Result, out: Path, measurements: Sequence[Measurement] = ()) -> dict[str, Json]:
    """A result that was saved, for ``--json``."""
    return {"model": str(out), **result_facts(summary_of(result, measurements, out))}
