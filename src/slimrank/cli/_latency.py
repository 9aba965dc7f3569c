# SPDX-License-Identifier: Apache-2.0
"""``slimrank latency``."""

import json
from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import Answer, Command
from slimrank.cli._options import PATH, after_option, memory_option, quiet_option
from slimrank.cli._references import batches_at, function_at
from slimrank.cli._typed import check_after, loss_at, model_to_compress, outputs_at
from slimrank.latency import BACKENDS, PRECISIONS


@click.command(cls=Command)
@click.argument("study_dir", metavar="RUN", type=PATH)
@click.option("--model", metavar="REF", required=True, help="The model of the study.")
@click.option("--batches", metavar="REF", help="The study's data; else the inputs that it kept.")
@click.option("--out", "latency_path", type=PATH, required=True, help="Table (JSON); resumed.")
@click.option(
    "--backend", default="onnxruntime", show_default=True, help=f"Runtime: {' or '.join(BACKENDS)}."
)
@click.option("--threads", type=int, default=1, show_default=True, help="Of the runtime.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples in the batch that is timed.")
@click.option(
    "--precision", default="float32", show_default=True, help=f"Of the files: {' or '.join(PRECISIONS)}."
)
@click.option("--inputs", metavar="REF", help="As in the study, for --batches.")
@click.option(
    "--outputs",
    multiple=True,
    metavar="KEY|REF",
    help="As in the study, where it was made with a function.",
)
@click.option("--loss", metavar="REF", help="As in the study, where it was made with one.")
@after_option
@memory_option
@quiet_option
def latency(
    study_dir: Path,
    model: str,
    batches: str | None,
    latency_path: Path,
    backend: str,
    threads: int,
    batch: int,
    precision: str,
    inputs: str | None,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    memory: str | None,
    quiet: bool,
) -> Answer:
    """Measure what every layer of the model of RUN takes in a runtime, here, in every form of a plan.

    The table is written after every variant of the network: a command that was stopped goes on where it was.
    """
    check_after(study_dir, after)
    network, _ = model_to_compress(model, after)
    measured = sr.Study.load(
        study_dir,
        model=network,
        batches=None if batches is None else batches_at(batches, "--batches"),
        inputs=None if inputs is None else function_at(inputs, "--inputs"),
        outputs=outputs_at(outputs),
        loss=loss_at(loss),
        progress=not quiet,
        memory=memory,
    )
    table = sr.measure_latency(
        measured,
        backend=backend,
        threads=threads,
        batch=batch,
        precision=precision,
        path=latency_path,
        progress=not quiet,
    )
    return Answer(
        text=f"{table.summary()}\nKept in {latency_path}.", facts=json.loads(latency_path.read_text())
    )
