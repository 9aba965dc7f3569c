# SPDX-License-Identifier: Apache-2.0
"""``slimrank study`` and ``slimrank report``."""

from pathlib import Path
from typing import Unpack

import click

import slimrank as sr
from slimrank._result import write_saved_report
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._options import StudyText, after_option, memory_option, quiet_option, study_options
from slimrank.cli._references import batches_at
from slimrank.cli._typed import model_to_compress, study_from_text
from slimrank.deploy import REPORT_FILE, is_saved_model
from slimrank.files import Json
from slimrank.report import study_facts


@click.command(cls=Command)
@click.argument("model")
@click.argument("batches")
@click.option("--out", "run_dir", type=PATH, required=True, help="Directory of the study; resumed.")
@study_options
@click.option("--groups", "with_groups", is_flag=True, help="Also show the channel groups.")
@after_option
@memory_option
@quiet_option
def study(
    model: str,
    batches: str,
    run_dir: Path,
    with_groups: bool,
    after: Path | None,
    memory: str | None,
    quiet: bool,
    **options: Unpack[StudyText],
) -> Answer:
    """Measure what every layer and channel group of MODEL can lose on BATCHES.

    All of it is kept in --out as it is measured: a command that was stopped goes on where it was.
    """
    network, previous = model_to_compress(model, after)
    data = batches_at(batches)
    measured = sr.study(
        network,
        data,
        run_dir=run_dir,
        progress=not quiet,
        memory=memory,
        previous=previous,
        **study_from_text(options),
    )
    facts: dict[str, Json] = {
        "study": str(run_dir),
        **study_facts(
            measured.layers,
            measured.before,
            measured.unit,
            measured.notes,
            measured.seconds,
            channels=measured.structure.channels,
            blocks=measured.block_damages,
        ),
    }
    parts = [
        measured.summary(),
        *([measured.groups()] if with_groups else []),
        f"Kept in {run_dir}. Next: slimrank plan {run_dir} --macs 0.5 --out plan.json",
    ]
    return Answer(text="\n".join(parts), facts=facts)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--out", type=PATH, help="HTML file; its data go beside it.  [default: report.html in DIR]")
def report(directory: Path, out: Path | None) -> Answer:
    """Write the study, or the saved model, in DIR as one HTML page, and its data as JSON beside it."""
    page = directory / REPORT_FILE if out is None else out
    if is_saved_model(directory):
        write_saved_report(directory, page)
    else:
        sr.Study.load(directory).report(page)
    data = page.with_suffix(".json")
    return Answer(text=f"Report: {page}; data: {data}", facts={"report": str(page), "data": str(data)})
