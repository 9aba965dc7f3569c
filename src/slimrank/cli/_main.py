# SPDX-License-Identifier: Apache-2.0
"""The program ``slimrank``: the group of all commands, each imported when it is run."""

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module
from textwrap import shorten
from typing import TextIO

import click

from slimrank._version import __version__
from slimrank.cli._stopped import STOPPED, told_at_start

# Command -> its file, and the first sentence of its help.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("_other", "Compress the bundled network on bundled images, and export it."),
    "study": ("_study", "Measure what every layer and channel group of MODEL can lose on BATCHES."),
    "plan": ("_plan", "Choose ranks, channels and blocks under a budget, from the study in DIR."),
    "score": (
        "_score",
        "Score MODEL with each layer compressed to each candidate ratio: AIMET's eval-score table.",
    ),
    "latency": (
        "_latency",
        "Measure what every layer of the model of RUN takes in a runtime, here, in every form of a plan.",
    ),
    "pareto": (
        "_pareto",
        "Plan the study in RUN under many budgets, build and measure each plan, and draw the curve.",
    ),
    "diff": ("_diff", "Show what the plan in B does otherwise than the plan in A."),
    "explain": (
        "_explain",
        "Say what the study in RUN found of LAYER, and what each choice for it would cost.",
    ),
    "apply": ("_apply", "Compress MODEL as PLAN says, and save it."),
    "compress": ("_compress", "Study, plan and apply in one: compress MODEL on BATCHES, and save it."),
    "export": (
        "_export",
        "Write SAVED to the file OUT, which another runtime reads, checked and timed in that runtime.",
    ),
    "report": (
        "_study",
        "Write the study, or the saved model, in DIR as one HTML page, and its data as JSON beside it.",
    ),
    "serve": ("_serve", "Show the run in DIR in the browser, while it goes on or after it."),
    "edit": ("_edit", "Edit PLAN in the browser: ranks, widths, blocks, locks, and the rest planned again."),
    "env": ("_other", "Show what a bug report needs."),
}
# Columns that no line fills.
_WHOLE = 100_000
# Exit code where nobody reads on: 128 + SIGPIPE, as shells count.
_UNREAD = 141


@contextlib.contextmanager
def _quiet_where_unread() -> Iterator[None]:
    """Ends the program without a word where nobody reads what it prints, as after ``| head``."""
    try:
        yield
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:
            # Another pipe, such as one to a worker process; click would end without a word.
            traceback.print_exc()
            raise click.exceptions.Exit(1) from None
        for stream in unread:
            # Python writes what is left once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise click.exceptions.Exit(_UNREAD) from None


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone; a second write need not say so again."""
    if not hasattr(select, "poll"):
        # Windows, whose pipes end otherwise: no BrokenPipeError is of a stream.
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except OSError:
        # No file at all: a stream in memory.
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Commands(click.Group):
    """The commands. Help and version answer at once: torch is imported by the command that needs it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, sorted."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None where there is none."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"slimrank.cli.{_COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def make_context(self, *args: object, **kwargs: object) -> click.Context:
        """Reads what was typed; help and version are printed here."""
        with _quiet_where_unread():
            return super().make_context(*args, **kwargs)  # type: ignore[arg-type]

    def invoke(self, ctx: click.Context) -> object:
        """Imports and runs the command."""
        try:
            with _quiet_where_unread():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            # Before the command's own answer to it: while torch was imported, say.
            click.echo(f"\n{told_at_start()}", err=True)
            ctx.exit(STOPPED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists them in the help."""
        width = formatter.width - 6 - max(map(len, _COMMANDS))
        listed = [
            (name, shorten(_COMMANDS[name][1], width, placeholder="...")) for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(listed)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="slimrank %(version)s")
def cli() -> None:
    """Makes trained PyTorch models smaller and faster, and keeps their accuracy.

    MODEL, BATCHES and REF are written package.module:name or path/to/file.py:name. A function named
    so is called without arguments and gives the model, or the batches; an object is taken as it is.

    Exit codes: 0 done, 1 a bug, 2 something to correct, 130 stopped by Ctrl-C, 141 nobody read on.
    """


def run() -> None:
    """Runs the command that was typed, and exits with its code."""
    # OpenMP's threads spin while they wait unless told otherwise before torch is imported. Beside a second
    # process on the machine that makes a study take five times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Help for programs has each sentence in one line; None is what the terminal has.
    cli(prog_name="slimrank", terminal_width=None if sys.stdout.isatty() else _WHOLE)
