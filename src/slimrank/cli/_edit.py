# SPDX-License-Identifier: Apache-2.0
"""``slimrank edit``."""

import sys
from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import loss_at, model_of_study, outputs_at
from slimrank.cli._options import after_option, as_studied_options
from slimrank.cli._typed import refuse_given, writable
from slimrank.live import edit_in_browser


@click.command(cls=Command)
@click.argument("plan_path", metavar="PLAN", type=PATH)
@click.option("--study", "study_dir", metavar="RUN", type=PATH, required=True, help="Study that PLAN is of.")
@click.option("--model", metavar="REF", help="The model of the study: plans can then be applied there.")
@as_studied_options
@after_option
@click.option("--latencies", "times", type=PATH, help="Table of measured times: shows what each plan takes.")
@click.option("--port", type=int, default=0, show_default=True, help="To listen on; 0 for a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.pass_context
def edit(
    ctx: click.Context,
    plan_path: Path,
    study_dir: Path,
    model: str | None,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    times: Path | None,
    port: int,
    open_browser: bool,
) -> Answer:
    """Edit PLAN in the browser: ranks, widths, blocks, locks, and the rest planned again.

    Prints the address, which holds a token, alone on a line; Ctrl-C ends it. It answers this machine only.
    PLAN itself is never changed: what is saved goes to new files beside it.
    """
    if model is None:
        refuse_given(ctx, ("outputs", "loss", "after"), "it goes with --model REF; add it")
        measured = sr.Study.load(study_dir)
    else:
        network = model_of_study(study_dir, model, after)
        measured = sr.Study.load(
            study_dir,
            model=network,
            outputs=outputs_at(outputs),
            loss=loss_at(loss),
            run_dir=writable(study_dir),
            progress=False,
        )
    table = None if times is None else sr.Latencies.load(times)
    with edit_in_browser(
        plan_path, measured, latencies=table, run_dir=study_dir, port=port, open_browser=open_browser
    ) as live:
        click.echo(live.url)
        sys.stdout.flush()
        try:
            live.wait()
        except KeyboardInterrupt:
            # The way to end it; what was saved is kept.
            return Answer(text="", facts={"url": live.url})
    return Answer(text="", facts={"url": live.url})
