# SPDX-License-Identifier: Apache-2.0
"""``slimrank edit``."""

import sys
from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.live import edit_in_browser


@click.command(cls=Command)
@click.argument("plan_path", metavar="PLAN", type=PATH)
@click.option("--study", "study_dir", metavar="RUN", type=PATH, required=True, help="Study that PLAN is of.")
@click.option("--port", type=int, default=0, show_default=True, help="To listen on; 0 for a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def edit(plan_path: Path, study_dir: Path, port: int, open_browser: bool) -> Answer:
    """Edit PLAN in the browser: ranks, widths, blocks, locks, and the rest planned again.

    Prints the address, which holds a token, alone on a line; Ctrl-C ends it. It answers this machine only.
    PLAN itself is never changed: what is saved goes to new files beside it.
    """
    measured = sr.Study.load(study_dir)
    with edit_in_browser(plan_path, measured, port=port, open_browser=open_browser) as live:
        click.echo(live.url)
        sys.stdout.flush()
        try:
            live.wait()
        except KeyboardInterrupt:
            # The way to end it; what was saved is kept.
            return Answer(text="", facts={"url": live.url})
    return Answer(text="", facts={"url": live.url})
