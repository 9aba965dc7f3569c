# SPDX-License-Identifier: Apache-2.0
"""``slimrank serve``."""

import sys
from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command


@click.command(cls=Command)
@click.argument("run_dir", metavar="DIR", type=PATH)
@click.option("--port", type=int, default=0, show_default=True, help="To listen on; 0 for a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def serve(run_dir: Path, port: int, open_browser: bool) -> Answer:
    """Show the run in DIR in the browser, while it goes on or after it.

    Prints the address, which holds a token, alone on a line; Ctrl-C ends it. It answers this machine only.
    """
    with sr.serve(run_dir, port=port, open_browser=open_browser) as live:
        click.echo(live.url)
        sys.stdout.flush()
        try:
            live.wait()
        except KeyboardInterrupt:
            # The way to end it; nothing is lost.
            return Answer(text="", facts={"url": live.url})
    return Answer(text="", facts={"url": live.url})
