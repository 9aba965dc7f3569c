# SPDX-License-Identifier: Apache-2.0
"""``slimrank apply``."""

from pathlib import Path
from typing import Unpack

import click

import slimrank as sr
from slimrank._errors import OptionError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import check_out, fit_from_text, hook_at, model_of_study
from slimrank.cli._options import (
    FitText,
    after_option,
    architecture_option,
    fit_options,
    memory_option,
    on_layer_option,
    overwrite_option,
    quiet_option,
    serve_option,
)
from slimrank.cli._references import batches_at, model_at
from slimrank.cli._save import save_result
from slimrank.cli._typed import refuse_given

# Decided when a study is made; without effect beside --study.
_FIXED = ("batches", "inputs", "likelihood", "weights", "fisher", "draws", "holdout", "seed")


@click.command(cls=Command)
@click.argument("model")
@click.argument("plan_path", metavar="PLAN", type=PATH)
@click.option("--out", type=PATH, required=True, help="Directory of the compressed model.")
@click.option("--study", "study_dir", type=PATH, help="Fit to the inputs that this study kept.")
@click.option("--batches", metavar="REF", help="Fit to these; without data factors come from weights alone.")
@fit_options
@on_layer_option
@after_option
@architecture_option
@overwrite_option
@memory_option
@serve_option
@quiet_option
@click.pass_context
def apply(
    ctx: click.Context,
    model: str,
    plan_path: Path,
    out: Path,
    study_dir: Path | None,
    batches: str | None,
    on_layer: str | None,
    after: Path | None,
    architecture: bool,
    overwrite: bool,
    memory: str | None,
    serve: bool,
    quiet: bool,
    **options: Unpack[FitText],
) -> Answer:
    """Compress MODEL as PLAN says, and save it."""
    check_out(out, overwrite=overwrite)
    chosen = sr.Plan.load(plan_path)
    fit = fit_from_text(options)
    hook = hook_at(on_layer)
    if study_dir is None:
        if after is not None:
            raise OptionError(
                "--after goes with the --study of that model; without one, PLAN replays every step"
            )
        if serve:
            raise OptionError(
                "--serve shows what is written to a run's directory; add --study RUN, or leave it out"
            )
        network = model_at(model)
        data = None if batches is None else batches_at(batches, "--batches")
        result = sr.apply(network, chosen, data, on_layer=hook, progress=not quiet, memory=memory, **fit)
    else:
        refuse_given(ctx, _FIXED, "fixed when the study was made; leave it out, or leave out --study")
        network = model_of_study(study_dir, model, after)
        measured = sr.Study.load(
            study_dir,
            model=network,
            outputs=fit["outputs"],
            loss=fit["loss"],
            run_dir=study_dir,
            progress=not quiet,
            memory=memory,
        )
        result = measured.apply(chosen, on_layer=hook, serve=serve)
    return save_result(result, out, overwrite=overwrite, architecture=architecture)
