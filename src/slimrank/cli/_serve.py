# SPDX-License-Identifier: Apache-2.0
"""``slimrank serve``."""

import sys
from pathlib import Path

import click

import slimrank as sr
from slimrank._errors import FileError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.deploy import is_saved_model


@click.command(cls=Command)
@click.argument("run_dir", metavar="DIR", type=PATH)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets other machines watch. Not encrypted.",
)
@click.option("--port", type=int, default=0, show_default=True, help="To listen on; 0 for a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def serve(run_dir: Path, host: str, port: int, open_browser: bool) -> Answer:
    """Show the run in DIR in the browser, while it goes on or after it.

    Prints the address, which holds a token, alone on a line; Ctrl-C ends it. It answers this machine only,
    unless --host says otherwise. Plans in DIR can be edited there.
    """
    try:
        running = sr.serve(run_dir, host=host, port=port, open_browser=open_browser)
    except FileError as error:
        if not is_saved_model(run_dir):
            raise
        raise FileError(
            f"{run_dir} holds a saved model, not a run; give the directory of its study (slimrank study "
            f"--out), or see the model's page: slimrank report {run_dir}"
        ) from error
    with running as live:
        click.echo(live.url)
        sys.stdout.flush()
        try:
            live.wait()
        except KeyboardInterrupt:
            # The way to end it; nothing is lost.
            return Answer(text="", facts={"url": live.url})
    return Answer(text="", facts={"url": live.url})
