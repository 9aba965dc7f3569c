# SPDX-License-Identifier: Apache-2.0
"""``slimrank score``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import click
from torch import nn

import slimrank as sr
from slimrank._errors import OptionError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import loss_at, model_of_study, outputs_at
from slimrank.cli._options import (
    after_option,
    as_studied_options,
    memory_option,
    methods_option,
    quiet_option,
    serve_option,
)
from slimrank.cli._references import function_at
from slimrank.cli._typed import refuse_given, split_names, writable
from slimrank.files import check_folder
from slimrank.records import Method

# Without effect on a table that is done.
_ONLY_WHEN_MEASURED = (
    "layers",
    "candidates",
    "workers",
    "no_prefix_cache",
    "outputs",
    "loss",
    "after",
    "memory",
    "serve",
)


@click.command(cls=Command)
@click.argument("model", required=False)
@click.argument("score_fn", required=False)
@click.option("--study", "study_dir", type=PATH, required=True, help="Study of MODEL.")
@click.option("--out", "scores_path", type=PATH, required=True, help="Table (JSON); resumed.")
@methods_option
@click.option("--layers", multiple=True, metavar="GLOB", help="Only these layers.")
@click.option(
    "--candidates",
    default="10",
    show_default=True,
    metavar="N|R,R,...",
    help="Ratios per layer: k/N for k below N, or a list.",
)
@click.option("--lower-is-better", is_flag=True, help="The score is a loss or an error rate.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that evaluate.")
@click.option("--no-prefix-cache", is_flag=True, help="Run every evaluation from the inputs.")
@as_studied_options
@after_option
@memory_option
@click.option("--report", "report_path", type=PATH, help="Write the table as an HTML page, too.")
@click.option("--from-aimet", type=PATH, metavar="FILE", help="Read AIMET's pickled table instead.")
@click.option("--baseline", type=float, help="With --from-aimet: score of the original.")
@serve_option
@quiet_option
@click.pass_context
def score(
    ctx: click.Context,
    model: str | None,
    score_fn: str | None,
    study_dir: Path,
    scores_path: Path,
    methods: tuple[str, ...],
    layers: tuple[str, ...],
    candidates: str,
    lower_is_better: bool,
    workers: int,
    no_prefix_cache: bool,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    memory: str | None,
    report_path: Path | None,
    from_aimet: Path | None,
    baseline: float | None,
    serve: bool,
    quiet: bool,
) -> Answer:
    """Score MODEL with each layer compressed to each candidate ratio: AIMET's eval-score table.

    SCORE_FN is a function of the model that returns a number, higher is better. The table is written after
    every evaluation: a command that was stopped goes on where it was.
    """
    if report_path is not None:
        check_folder(report_path, "--report")
    if from_aimet is not None:
        if model or score_fn:
            raise OptionError("--from-aimet reads a table that is done; leave out MODEL and SCORE_FN")
        refuse_given(ctx, _ONLY_WHEN_MEASURED, "a table of AIMET's is done; leave it out")
        table = _from_aimet(study_dir, from_aimet, split_names(methods), baseline, lower_is_better)
        table.save(scores_path)
    else:
        if model is None or score_fn is None:
            raise OptionError(
                "give MODEL and SCORE_FN, e.g. net.py:build net.py:accuracy, or --from-aimet FILE"
            )
        if baseline is not None:
            raise OptionError("--baseline is for --from-aimet; otherwise the original is evaluated")
        function = function_at(score_fn, "SCORE_FN")
        network = model_of_study(study_dir, model, after)
        measured = sr.Study.load(
            study_dir,
            model=network,
            outputs=outputs_at(outputs),
            loss=loss_at(loss),
            run_dir=writable(study_dir),
            progress=not quiet,
            memory=memory,
        )
        table = sr.measure_scores(
            measured,
            cast(Callable[[nn.Module], float], function),
            methods=split_names(methods) or None,
            layers=layers or None,
            candidates=_candidates(candidates),
            path=scores_path,
            lower_is_better=lower_is_better,
            workers=workers,
            prefix_cache=0 if no_prefix_cache else None,
            progress=not quiet,
            serve=serve,
        )
    if report_path is not None:
        table.report(report_path)
    closing = f"Kept in {scores_path}. Next: slimrank plan {study_dir} --scores {scores_path} --macs 0.5"
    return Answer(text=f"{table.summary()}\n{closing}", facts=json.loads(scores_path.read_text()))


def _from_aimet(
    study_dir: Path,
    file: Path,
    methods: Sequence[Method],
    baseline: float | None,
    lower_is_better: bool,
) -> sr.Scores:
    if len(methods) != 1:
        raise OptionError("--from-aimet needs the one method that AIMET explored: --methods spatial_svd, say")
    return sr.Scores.from_aimet(
        file,
        sr.Study.load(study_dir),
        method=methods[0],
        baseline=baseline,
        lower_is_better=lower_is_better,
    )


def _candidates(text: str) -> int | tuple[float, ...]:
    """N for k/N, or the ratios that were typed."""
    try:
        if text.isdecimal():
            return int(text)
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--candidates {text!r}: {error}; give a number, or ratios like 0.3,0.5") from error
