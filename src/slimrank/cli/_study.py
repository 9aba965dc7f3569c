# SPDX-License-Identifier: Apache-2.0
"""``slimrank study`` and ``slimrank report``."""

from pathlib import Path
from typing import Unpack

import click

import slimrank as sr
from slimrank._errors import FileError, LatencyError
from slimrank._result import write_saved_report
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import model_to_compress, study_from_text
from slimrank.cli._options import (
    StudyText,
    after_option,
    memory_option,
    quiet_option,
    serve_option,
    study_options,
)
from slimrank.cli._references import batches_at
from slimrank.deploy import REPORT_FILE, is_saved_model
from slimrank.files import Json
from slimrank.recipes import LATENCIES_FILE
from slimrank.report import render_groups, render_layers, study_facts


@click.command(cls=Command)
@click.argument("model")
@click.argument("batches")
@click.option("--out", "run_dir", type=PATH, required=True, help="Directory of the study; resumed.")
@study_options
@click.option("--groups", "with_groups", is_flag=True, help="Also show the channel groups.")
@after_option
@memory_option
@serve_option
@quiet_option
def study(
    model: str,
    batches: str,
    run_dir: Path,
    with_groups: bool,
    after: Path | None,
    memory: str | None,
    serve: bool,
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
        serve=serve,
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
    groups = render_groups(
        measured.structure.channels,
        measured.group_curves,
        measured.block_damages,
        before=measured.before,
        width=None,
    )
    parts = [
        render_layers(measured.layers, measured.before, measured.notes, width=None),
        *([groups] if with_groups else []),
        f"Kept in {run_dir}. Next: slimrank plan {run_dir} --macs 0.5 --out plan.json",
    ]
    return Answer(text="\n".join(parts), facts=facts)


@click.command(cls=Command)
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--out", type=PATH, help="HTML file; its data go beside it.  [default: report.html in DIR]")
@click.option(
    "--latencies",
    "times",
    type=PATH,
    metavar="T.json",
    help="Table of slimrank latency: the time of each layer.  [default: latencies.json in DIR, where it is]",
)
@click.option("--pareto", "curve", type=PATH, metavar="P.json", help="Curve of slimrank pareto, to draw.")
@click.option("--scores", type=PATH, metavar="S.json", help="Table of slimrank score; of a study alone.")
def report(
    directory: Path, out: Path | None, times: Path | None, curve: Path | None, scores: Path | None
) -> Answer:
    """Write the study, or the saved model, in DIR as one HTML page, and its data as JSON beside it."""
    if not directory.is_dir():
        what = "is a file, and a report is of a directory" if directory.exists() else "is not there"
        raise FileError(
            f"{directory}: it {what}; give that of a study (slimrank study --out) or of a saved model. A "
            "plan alone has no report: slimrank explain RUN LAYER --plan PLAN and slimrank edit show one"
        )
    page = directory / REPORT_FILE if out is None else out
    is_model = is_saved_model(directory)
    if is_model and scores is not None:
        raise click.UsageError("--scores is of a study; give the directory of the study")
    # Where compress with a latency keeps the one that it measured.
    beside = directory / LATENCIES_FILE
    is_found = times is None and not is_model and beside.is_file()
    times, without = beside if is_found else times, ""
    try:
        table = None if times is None else sr.Latencies.load(times)
    except LatencyError as error:
        if not is_found:
            raise
        # Nobody asked for it, and a measurement that was stopped is no reason not to show the study.
        table, times, without = None, None, f"; without times: {error}"
    drawn = None if curve is None else sr.Pareto.load(curve)
    try:
        if is_model:
            write_saved_report(directory, page, pareto=drawn, latencies=table)
        else:
            known = None if scores is None else sr.Scores.load(scores)
            sr.Study.load(directory).report(page, pareto=drawn, scores=known, latencies=table)
    except LatencyError as error:
        raise LatencyError(f"{times}: {error}") from error
    data = page.with_suffix(".json")
    facts: dict[str, Json] = {
        "report": str(page),
        "data": str(data),
        "latencies": None if times is None else str(times),
    }
    told = without if times is None else f"; times: {times}"
    return Answer(text=f"Report: {page}; data: {data}{told}", facts=facts)
