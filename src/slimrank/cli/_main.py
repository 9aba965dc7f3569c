# SPDX-License-Identifier: Apache-2.0
"""The program ``slimrank``: the group of all commands."""

import click

import slimrank as sr
from slimrank.cli._apply import apply
from slimrank.cli._compress import compress
from slimrank.cli._export import export
from slimrank.cli._latency import latency
from slimrank.cli._other import demo, env
from slimrank.cli._plan import plan
from slimrank.cli._score import score
from slimrank.cli._study import report, study


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sr.__version__, message="slimrank %(version)s")
def cli() -> None:
    """Makes trained PyTorch models smaller and faster, and keeps their accuracy.

    MODEL, BATCHES and REF are written package.module:name or path/to/file.py:name. A function named
    so is called without arguments and gives the model, or the batches; an object is taken as it is.

    Exit codes: 0 done, 1 a bug, 2 something to correct, 130 stopped by Ctrl-C.
    """


for _command in (demo, study, plan, score, latency, apply, compress, export, report, env):
    cli.add_command(_command)


def main() -> None:
    """The program ``slimrank``."""
    cli(prog_name="slimrank")
