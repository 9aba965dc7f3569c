# SPDX-License-Identifier: Apache-2.0
"""``slimrank export``."""

from pathlib import Path
from typing import cast

import click

import slimrank as sr
from slimrank._errors import OptionError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import outputs_at
from slimrank.cli._references import batches_at, function_at, model_at
from slimrank.cli._save import exported_facts, name_in_saved
from slimrank.cli._typed import read_likelihood_option
from slimrank.deploy import FORMATS, Precision, format_of, has_architecture


@click.command(cls=Command)
@click.argument("saved")
@click.argument("out", type=PATH)
@click.option("--batches", metavar="REF", required=True, help="Real inputs to check and to time it with.")
@click.option(
    "--model", metavar="REF", help="The original model, where SAVED is a directory without its architecture."
)
@click.option(
    "--format",
    type=str,
    metavar="F",
    help=f"One of {', '.join(FORMATS)}; else what the ending of OUT says.",
)
@click.option("--quantize", type=str, metavar="Q", help="int8 or int8_weights; else the file is in float.")
@click.option("--max-quant-drop", type=float, help="Divergence per sample that int8 may add.")
@click.option("--inputs", metavar="REF", help="Function of one batch that gives the model's inputs.")
@click.option(
    "--outputs", multiple=True, metavar="KEY|REF", help="Outputs whose classes are compared, as in study."
)
@click.option(
    "--likelihood",
    multiple=True,
    metavar="FAMILY|NAME=FAMILY",
    help="Which outputs are classes, as in study.",
)
@click.option("--batch", type=int, default=1, show_default=True, help="Samples in a batch that is timed.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of the runtime while it is timed.")
def export(
    saved: str,
    out: Path,
    batches: str,
    model: str | None,
    format: str | None,
    quantize: str | None,
    max_quant_drop: float | None,
    inputs: str | None,
    outputs: tuple[str, ...],
    likelihood: tuple[str, ...],
    batch: int,
    threads: int,
) -> Answer:
    """Write SAVED to the file OUT, which another runtime reads, checked and timed in that runtime.

    SAVED is the directory of a compressed model, with --model for the original, beside which it is timed, or
    without where it was saved with --architecture; its manifest and report then name the file. Or SAVED is a
    model that was never compressed, written as MODEL is elsewhere.
    """
    if model is not None:
        original = model_at(model)
        network = sr.load(saved, model=original)
    elif has_architecture(Path(saved)):
        original, network = None, sr.load(saved)
    elif Path(saved).is_dir():
        raise OptionError(
            f"{saved} is a saved model, which holds no code; give the original with --model REF, "
            "or save with --architecture"
        )
    else:
        original, network = None, model_at(saved)
    exported = sr.export(
        network,
        out,
        batches_at(batches, "--batches"),
        format=format or format_of(out),
        quantize=cast(Precision | None, quantize),
        max_quant_drop=max_quant_drop,
        inputs=None if inputs is None else function_at(inputs, "--inputs"),
        outputs=outputs_at(outputs),
        likelihood=read_likelihood_option(likelihood),
        original=original,
        batch=batch,
        threads=threads,
    )
    if Path(saved).is_dir():
        exported = name_in_saved(exported, Path(saved))
    return Answer(text=exported.summary(), facts=exported_facts(exported))
