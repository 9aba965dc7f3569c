# SPDX-License-Identifier: Apache-2.0
"""Commands: one call, its answer as text or JSON, errors as exit codes. The only file that prints.

Every command returns an ``Answer``; ``Command`` prints it and turns errors into exit codes:
0 done, 1 a bug (with its traceback), 2 something to correct (one line), 130 Ctrl-C. A closed pipe
is answered by ``_main``.
"""

import contextlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from slimrank._errors import FileError, SlimrankError
from slimrank.cli._stopped import STOPPED, told
from slimrank.cli._terminal import fitted_to
from slimrank.files import Json

# A keyword of Python in a message, with or without a value: not in the brackets of a call, nor in a word.
_KEYWORD = re.compile(
    r"\w\((?:[^()]|\([^()]*\))*\)"
    r"|(?<![\w/.'\"=-])(?P<name>[a-z_]+)=(?!lambda |slimrank\.)(?=(?P<value>[^\s,;.]|\.\d)?)"
)
# Words of the library that name a keyword without "=", or show code: a keyword that has to be an option of
# the command, the words, and what stands in their place; {} is the option.
_PHRASES = tuple(
    (keyword, re.compile(words), spelling)
    for keyword, words, spelling in (
        ("inputs", r"\binputs=lambda \w+: \.\.\.", "{} file.py:fn"),
        ("inputs", r"\binputs=lambda (\w+): (\w[^\s,;]*)", r"{} file.py:fn with def fn(\1): return \2"),
        ("outputs", r"\boutputs=lambda \w+: \.\.\.", "{} file.py:fn"),
        ("likelihood", r"pass e\.g\. likelihood='(\w+)'", r"give e.g. {} \1"),
        ("likelihood", r"pass e\.g\. likelihood=\{'([^']*)': '(\w+)'\}", r"give e.g. {} \1=\2"),
        ("study_dir", r"pass batches= to fit to data", "give {} or --batches to fit to data"),
        ("run_dir", r"\b(another|this) run_dir\b", r"\1 {}"),
        ("", r"\b(another|this) run_dir\b", r"\1 directory"),
        ("", r"\bthe run_dir= \(--out\) of a study", "the --out of slimrank study"),
        ("skip", r"\blayers in skip\b", "layers in {}"),
        ("methods", r"\bmore methods\b", "more {}"),
        ("multiple_of", r"\bsmaller multiple_of\b", "smaller {}"),
    )
)
# Exit code where the user has to correct something: click takes the same for usage errors.
REFUSED = 2
# An argument that is a path.
PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command says.

    Attributes:
        text: for people.
        facts: for ``--json``.
        code: exit code.
    """

    text: str
    facts: Mapping[str, Json]
    code: int = 0


class Command(click.Command):
    """A command with ``--json`` and ``--traceback``, whose errors become exit codes."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON object on stdout."),
            click.Option(["--traceback", "with_traceback"], is_flag=True, help="Show where an error arose."),
        ]

    def invoke(self, ctx: click.Context) -> None:
        """Runs the command, prints its answer, exits with its code."""
        as_json, with_traceback = ctx.params.pop("as_json"), ctx.params.pop("with_traceback")
        # What the user's own code prints must not end up inside the JSON.
        guard = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        _log_progress()
        try:
            with guard:
                answer: Answer = super().invoke(ctx)
        except SlimrankError as error:
            if with_traceback:
                traceback.print_exception(error)
            click.echo(f"slimrank: {' '.join(_in_options(error, ctx.command).split())}", err=True)
            ctx.exit(REFUSED)
        except KeyboardInterrupt:
            _stop(ctx, _how_to_go_on(ctx))
        try:
            text = json.dumps(answer.facts, indent=1) if as_json else _shown(answer, ctx.command)
            click.echo(text.rstrip("\n"))
        except KeyboardInterrupt:
            _stop(ctx, "all was done, only its answer was not shown in full")
        ctx.exit(answer.code)


def _shown(answer: Answer, command: click.Command) -> str:
    """The text of an answer as the terminal shows it best."""
    return fitted_to(_phrased(answer.text, command), sys.stdout)


def _stop(ctx: click.Context, how_to_go_on: str) -> NoReturn:
    """Ends the program after Ctrl-C."""
    click.echo(f"\n{told(how_to_go_on)}", err=True)
    ctx.exit(STOPPED)


def _options(command: click.Command) -> dict[str, str]:
    """Keyword -> the option with a value that says it."""
    named = [param for param in command.params if isinstance(param, click.Option) and not param.is_flag]
    spelled = {param: max(param.opts, key=len) for param in named}
    options = {option.removeprefix("--").replace("-", "_"): option for option in spelled.values()}
    return options | {str(param.name): option for param, option in spelled.items()}


def _phrased(text: str, command: click.Command) -> str:
    """A text for people, with options of the command in phrases that speak of Python."""
    options = _options(command)
    for keyword, words, spelling in _PHRASES:
        if not keyword or keyword in options:
            text = words.sub(spelling.replace("{}", options.get(keyword, "")), text)
    return text


def _in_options(error: SlimrankError, command: click.Command) -> str:
    """The message of an error, with options of the command in place of keywords of Python."""
    text = _phrased(str(error), command)
    # Names of files may look like keywords.
    if isinstance(error, FileError):
        return text
    flagged = [param for param in command.params if isinstance(param, click.Option) and param.is_flag]
    # Of a flag such as --no-fisher the keyword says the opposite.
    dashed = {str(param.name): str(param.name).replace("_", "-") for param in flagged}
    opts = {opt for param in flagged for opt in param.opts}
    flags = {name: f"--{told}" for name, told in dashed.items() if f"--{told}" in opts}
    switches = {f"{name}=True": option for name, option in flags.items()}
    switches |= {f"{name}=False": f"--no-{told}" for name, told in dashed.items() if f"--no-{told}" in opts}
    options = _options(command)
    if text.partition(": ")[0] in options:
        name, _, rest = text.partition(": ")
        text = f"{options[name]}: {rest}"

    for keyword, spelling in switches.items():
        text = re.sub(rf"(?<![\w.(]){keyword}\b(?!\))", spelling, text)

    def option(found: re.Match[str]) -> str:
        if found["value"] is None and found["name"] in flags:
            return flags[found["name"]]
        name = options.get(found["name"])
        return found[0] if name is None else f"{name} " if found["value"] else name

    # A keyword inside of brackets is one of a call.
    return _KEYWORD.sub(option, text)


def _log_progress() -> None:
    """Shows the lines that tell of progress where stderr is no terminal, and bars cannot be drawn."""
    logger = logging.getLogger("slimrank.progress")
    if not sys.stderr.isatty() and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _how_to_go_on(ctx: click.Context) -> str:
    """What the user is told after Ctrl-C: where measurements are kept, if anywhere."""
    if ctx.params.get("prepare"):
        return "nothing was written"
    names = ("run_dir", "scores_path", "latency_path", "study_dir")
    path = next((ctx.params[name] for name in names if ctx.params.get(name)), None)
    if path is None:
        out = ctx.params.get("out")
        kept = f"nothing was kept but what {out} holds" if out and Path(out).exists() else "nothing was kept"
        can_resume = any("--run-dir" in param.opts for param in ctx.command.params)
        return kept + "; with --run-dir DIR the same command goes on where it was stopped" * can_resume
    if not Path(path).exists():
        return "nothing was measured yet"
    return f"what was measured is kept in {path}: the same command goes on from there"
