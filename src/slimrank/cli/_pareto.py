# SPDX-License-Identifier: Apache-2.0
"""``slimrank pareto``."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import click
from torch import nn

import slimrank as sr
from slimrank._errors import FileError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import loss_at, model_of_study, outputs_at
from slimrank.cli._options import (
    after_option,
    as_studied_options,
    memory_option,
    quiet_option,
    serve_option,
)
from slimrank.cli._references import batches_at, function_at
from slimrank.cli._typed import refuse_given
from slimrank.pareto import pareto_facts
from slimrank.records import LATENCY, METRICS, Budgeted

# Options of a measurement, without effect where nothing is measured.
_OF_MEASURING = ("score_fn", "batches", "inputs", "outputs", "loss", "after", "memory", "serve", "quiet")


@click.command(cls=Command)
@click.argument("study_dir", metavar="RUN", type=PATH)
@click.option("--points", type=int, default=12, show_default=True, help="Budgets to try, at least 2.")
@click.option(
    "--metric",
    type=click.Choice([*METRICS, LATENCY]),
    default="macs",
    show_default=True,
    help="What budgets are of; latency with --latencies.",
)
@click.option("--latencies", "times", type=PATH, help="Table of measured times, of slimrank latency.")
@click.option("--model", metavar="REF", help="The model of the study; without it plans only predict.")
@click.option(
    "--score", "score_fn", metavar="REF", help="Function of a model: its score, in place of the divergence."
)
@click.option("--out", type=PATH, help="The curve with its plans (JSON); without it the curve is only shown.")
@click.option("--batches", metavar="REF", help="The study's data; else the inputs that it kept.")
@click.option("--inputs", metavar="REF", help="As in the study, for --batches.")
@as_studied_options
@after_option
@memory_option
@serve_option
@quiet_option
@click.pass_context
def pareto(
    ctx: click.Context,
    study_dir: Path,
    points: int,
    metric: Budgeted,
    times: Path | None,
    model: str | None,
    score_fn: str | None,
    out: Path | None,
    batches: str | None,
    inputs: str | None,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    memory: str | None,
    serve: bool,
    quiet: bool,
) -> Answer:
    """Plan the study in RUN under many budgets, build and measure each plan, and draw the curve.

    Fitted layers are kept in RUN: a command that was stopped goes on with them.
    """
    _check_file(out)
    table = None if times is None else sr.Latencies.load(times)
    if model is None:
        refuse_given(ctx, _OF_MEASURING, "nothing is measured without --model REF; add it")
        measured = sr.Study.load(study_dir)
    else:
        network = model_of_study(study_dir, model, after)
        measured = sr.Study.load(
            study_dir,
            model=network,
            batches=None if batches is None else batches_at(batches, "--batches"),
            inputs=None if inputs is None else function_at(inputs, "--inputs"),
            outputs=outputs_at(outputs),
            loss=loss_at(loss),
            run_dir=study_dir,
            progress=not quiet,
            memory=memory,
        )
    score = None if score_fn is None else cast(Callable[[nn.Module], float], function_at(score_fn, "--score"))
    curve = measured.pareto(
        metric, points=points, measure=model is not None, score_fn=score, latencies=table, serve=serve
    )
    if out is not None:
        curve.save(out)
    # In a pipe a number of columns is in COLUMNS at most; then as many as on an old terminal.
    parts = [curve.summary(width=shutil.get_terminal_size().columns)]
    if model is None:
        parts.append("Predicted, not measured; --model REF builds and measures every plan.")
    parts.append("Not saved; --out pareto.json saves it." if out is None else f"Saved as {out}.")
    return Answer(
        text="\n".join(parts), facts={"pareto": None if out is None else str(out), **pareto_facts(curve)}
    )


def _check_file(out: Path | None) -> None:
    """Refuses now what saving would refuse after all the work."""
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise FileError(f"--out {out}: cannot be written; give a file in an existing folder")
