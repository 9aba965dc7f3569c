# SPDX-License-Identifier: Apache-2.0
"""``slimrank latency``."""

import json
from pathlib import Path

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import check_after, loss_at, model_to_compress, outputs_at
from slimrank.cli._options import after_option, as_studied_options, memory_option, quiet_option, serve_option
from slimrank.cli._references import batches_at, function_at
from slimrank.cli._typed import refuse_given, writable
from slimrank.latency import BACKENDS, PRECISIONS

# Options of a measurement, without effect where one is read.
_OF_MEASURING = (
    "model", "batches", "backend", "threads", "batch", "precision", "inputs", "outputs", "loss", "memory",
    "serve",
)  # fmt: skip


@click.command(cls=Command)
@click.argument("study_dir", metavar="RUN", type=PATH)
@click.option("--model", metavar="REF", help="The model of the study; --collect needs none.")
@click.option("--batches", metavar="REF", help="The study's data; else the inputs that it kept.")
@click.option("--out", "latency_path", type=PATH, help="Table (JSON); resumed.")
@click.option(
    "--prepare",
    type=PATH,
    metavar="DIR",
    help="Measure nothing: write a new folder with measure.py, for another machine.",
)
@click.option(
    "--collect",
    type=PATH,
    metavar="DIR",
    help="Read the table that another machine measured in such a folder.",
)
@click.option(
    "--backend", default="onnxruntime", show_default=True, help=f"Runtime: {' or '.join(BACKENDS)}."
)
@click.option("--threads", type=int, default=1, show_default=True, help="Of the runtime.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples in the batch that is timed.")
@click.option(
    "--precision", default="float32", show_default=True, help=f"Of the files: {' or '.join(PRECISIONS)}."
)
@click.option("--inputs", metavar="REF", help="As in the study, for --batches.")
@as_studied_options
@after_option
@memory_option
@serve_option
@quiet_option
@click.pass_context
def latency(
    ctx: click.Context,
    study_dir: Path,
    model: str | None,
    batches: str | None,
    latency_path: Path | None,
    prepare: Path | None,
    collect: Path | None,
    backend: str,
    threads: int,
    batch: int,
    precision: str,
    inputs: str | None,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    memory: str | None,
    serve: bool,
    quiet: bool,
) -> Answer:
    """Measure what every layer of the model of RUN takes in a runtime, here, in every form of a plan.

    The table is written after every variant of the network: a command that was stopped goes on where it was.

    For another machine: --prepare DIR here, `python measure.py` in a copy of DIR there (it needs numpy and
    onnxruntime alone), measured.json back into DIR, --collect DIR --out T.json here.
    """
    if prepare is not None and collect is not None:
        raise click.UsageError("--prepare and --collect are two steps; give one of them")
    if prepare is not None and (
        latency_path is not None or backend != "onnxruntime" or precision != "float32"
    ):
        raise click.UsageError("--prepare takes no --out, no --backend and no --precision")
    check_after(study_dir, after)

    def loaded() -> sr.Study:
        if model is None:
            raise click.UsageError("give --model REF, the model of the study")
        network, _ = model_to_compress(model, after)
        return sr.Study.load(
            study_dir,
            model=network,
            batches=None if batches is None else batches_at(batches, "--batches"),
            inputs=None if inputs is None else function_at(inputs, "--inputs"),
            outputs=outputs_at(outputs),
            loss=loss_at(loss),
            run_dir=writable(study_dir),
            progress=not quiet,
            memory=memory,
        )

    if prepare is not None:
        if serve:
            raise click.UsageError("--serve shows what is measured here; --prepare measures nothing")
        folder = sr.prepare_latency(loaded(), prepare, threads=threads, batch=batch, progress=not quiet)
        return Answer(
            text=f"Copy {folder} to the machine, run `python measure.py` in it, copy measured.json back, and "
            f"run `slimrank latency {study_dir} --collect {folder} --out T.json`.",
            facts={"folder": str(folder)},
        )
    if latency_path is None:
        raise click.UsageError("give --out T.json, where the table is written")
    if collect is not None:
        refuse_given(ctx, _OF_MEASURING, "the folder of --collect says under what conditions was measured")
        table = sr.collect_latency(sr.Study.load(study_dir), collect, path=latency_path)
        return _answer(table, latency_path)
    table = sr.measure_latency(
        loaded(),
        backend=backend,
        threads=threads,
        batch=batch,
        precision=precision,
        path=latency_path,
        progress=not quiet,
        serve=serve,
    )
    return _answer(table, latency_path)


def _answer(table: sr.Latencies, path: Path) -> Answer:
    """The table that was written to a file."""
    return Answer(text=f"{table.summary()}\nKept in {path}.", facts=json.loads(path.read_text()))
