# SPDX-License-Identifier: Apache-2.0
"""``slimrank compress``."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal, Unpack, cast

import click
from torch import nn

import slimrank as sr
from slimrank._errors import ExportError, SlimrankError
from slimrank._live_view import ADVICE, live_view
from slimrank._study import study_and_check
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._models import check_out, hook_at, model_to_compress, study_from_text
from slimrank.cli._options import (
    StudyText,
    after_option,
    architecture_option,
    budget_options,
    fix_option,
    memory_option,
    on_layer_option,
    overwrite_option,
    quiet_option,
    relative_to_option,
    serve_option,
    study_options,
    widths_options,
)
from slimrank.cli._references import batches_at, function_at
from slimrank.cli._save import exported_facts, name_in_saved, save_result, saved_facts
from slimrank.cli._typed import (
    read_budget,
    read_fixed,
    read_latency,
    read_multiple_of,
    refuse_given,
    split_names,
)
from slimrank.deploy import FORMATS, Precision, check_export, format_of
from slimrank.latency import BACKENDS, PRECISIONS
from slimrank.recipes import LATENCIES_FILE, check_split, checked_drop
from slimrank.records import Method, Metric
from slimrank.report import check_page_path

# Methods of --split where --methods names none: those of ``slimrank.search_split``.
_SPLIT: tuple[Method, Method] = ("spatial_svd", "weight_svd")


@click.command(cls=Command)
@click.argument("model")
@click.argument("batches")
@click.option("--out", type=PATH, required=True, help="Directory of the compressed model.")
@budget_options
@click.option(
    "--latency",
    metavar="RATIO|TIME",
    help="Keep ratio of the measured time, or a time such as 4.5ms: measured, planned, met in --backend.",
)
@click.option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    help=f"Of --latency: {' or '.join(BACKENDS)}.",
)
@click.option("--threads", type=int, default=1, show_default=True, help="Of --backend.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples in the batch that is timed.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help=f"Of the file that is timed: {' or '.join(PRECISIONS)}.",
)
@click.option("--max-drop", type=float, help="No budget: the smallest model that loses at most this.")
@click.option("--split", is_flag=True, help="One method, then the other of --methods: the best split.")
@click.option("--score", metavar="REF", help="With --max-drop or --split: function of the model.")
@click.option("--lower-is-better", is_flag=True, help="The --score is a loss or an error rate.")
@click.option(
    "--no-compete", "compete", flag_value=False, default=True, help="Build the optimal plan only: faster."
)
@study_options
@fix_option
@on_layer_option
@click.option("--run-dir", type=PATH, help="Keep what is measured here, so that it can be resumed.")
@click.option("--report", "report_path", type=PATH, help="Write the report here, too.")
@click.option(
    "--export",
    "export_path",
    type=PATH,
    metavar="FILE",
    help="Write the model to FILE, too, for another runtime; checked and timed there.",
)
@click.option(
    "--export-format",
    type=str,
    metavar="F",
    help=f"Of --export: one of {', '.join(FORMATS)}; else what the ending of FILE says.",
)
@click.option("--quantize", type=str, metavar="Q", help="Of --export: int8 or int8_weights; else float.")
@click.option("--max-quant-drop", type=float, help="Divergence per sample that --quantize may add.")
@after_option
@relative_to_option
@widths_options
@architecture_option
@overwrite_option
@memory_option
@serve_option
@quiet_option
@click.pass_context
def compress(
    ctx: click.Context,
    model: str,
    batches: str,
    out: Path,
    macs: str | None,
    params: str | None,
    bytes: str | None,
    activation_bytes: str | None,
    multiple_of: tuple[str, ...],
    latency: str | None,
    backend: str,
    threads: int,
    batch: int,
    precision: str,
    max_drop: float | None,
    split: bool,
    score: str | None,
    lower_is_better: bool,
    compete: bool,
    fixed: tuple[str, ...],
    on_layer: str | None,
    run_dir: Path | None,
    report_path: Path | None,
    export_path: Path | None,
    export_format: str | None,
    quantize: str | None,
    max_quant_drop: float | None,
    after: Path | None,
    relative_to: Literal["model", "original"],
    uniform_widths: bool,
    new_bias: bool,
    architecture: bool,
    overwrite: bool,
    memory: str | None,
    serve: bool,
    quiet: bool,
    **options: Unpack[StudyText],
) -> Answer:
    """Study, plan and apply in one: compress MODEL on BATCHES, and save it."""
    check_out(out, overwrite=overwrite)
    if report_path is not None:
        check_page_path(report_path)
    _check_export(ctx, out, export_path, export_format, quantize, max_quant_drop)
    network, previous = model_to_compress(model, after)
    if max_drop is None and not split:
        refuse_given(ctx, ("score", "lower_is_better"), "it judges what --max-drop or --split tries")
        result = sr.compress(
            network,
            batches_at(batches),
            macs=read_budget(macs),
            params=read_budget(params),
            bytes=read_budget(bytes),
            latency=read_latency(latency),
            activation_bytes=read_budget(activation_bytes),
            backend=backend,
            threads=threads,
            batch=batch,
            precision=precision,
            compete=compete,
            multiple_of=read_multiple_of(multiple_of),
            on_layer=hook_at(on_layer),
            run_dir=run_dir,
            progress=not quiet,
            serve=serve,
            memory=memory,
            previous=previous,
            fixed=read_fixed(fixed),
            relative_to=relative_to,
            uniform_widths=uniform_widths,
            new_bias=new_bias,
            **study_from_text(options),
        )
    else:
        refuse_given(
            ctx,
            (
                "on_layer",
                "compete",
                "relative_to",
                "activation_bytes",
                "latency",
                "backend",
                "threads",
                "batch",
                "precision",
            ),
            "--max-drop and --split try plans of their own",
        )
        # Before the study, which takes long.
        if max_drop is not None:
            refuse_given(ctx, ("macs", "params", "bytes", "split"), "--max-drop finds the budget itself")
            checked_drop(max_drop)
        else:
            refuse_given(
                ctx, ("uniform_widths", "new_bias", "fixed"), "--split makes plans of one method each"
            )
        held, rounding = read_fixed(fixed), read_multiple_of(multiple_of)
        both = cast(tuple[Method, Method], split_names(options["methods"]) or _SPLIT)
        budgets: dict[Metric, float | str | None] = {
            "macs": read_budget(macs),
            "params": read_budget(params),
            "bytes": read_budget(bytes),
        }

        # Refuses, before anything is measured, what no plan can be made with.
        check = (
            partial(check_split, methods=both, multiple_of=rounding, budgets=budgets)
            if split
            else partial(
                sr.Study.plan,
                macs=1.0,
                multiple_of=rounding,
                uniform_widths=uniform_widths,
                new_bias=new_bias,
                fixed=held,
            )
        )
        judge = None if score is None else cast(Callable[[nn.Module], float], function_at(score, "--score"))
        chosen = study_from_text(options)
        # One page for all that is done.
        with live_view(run_dir, ADVICE) if serve else nullcontext():
            measured = study_and_check(
                network,
                batches_at(batches),
                check,
                run_dir=run_dir,
                progress=not quiet,
                memory=memory,
                previous=previous,
                **chosen,
            )
            if max_drop is not None:
                result = sr.smallest(
                    measured,
                    max_drop=max_drop,
                    score_fn=judge,
                    lower_is_better=lower_is_better,
                    multiple_of=rounding,
                    uniform_widths=uniform_widths,
                    new_bias=new_bias,
                    fixed=held,
                )
            else:
                result = sr.search_split(
                    measured,
                    macs=budgets["macs"],
                    params=budgets["params"],
                    bytes=budgets["bytes"],
                    methods=both,
                    score_fn=judge,
                    lower_is_better=lower_is_better,
                    multiple_of=rounding,
                )
    # A latency was planned by a table, which tells the time of each layer.
    times = None if latency is None or run_dir is None else sr.Latencies.load(run_dir / LATENCIES_FILE)
    if report_path is not None:
        result.report(report_path, latencies=times)
    answer = save_result(result, out, overwrite=overwrite, architecture=architecture)
    if export_path is None:
        return answer
    try:
        exported = result.export(
            export_path,
            format=export_format or format_of(export_path),
            quantize=cast(Precision | None, quantize),
            max_quant_drop=max_quant_drop,
        )
    except SlimrankError as error:
        raise ExportError(
            f"the model is saved in {out}, but {export_path} was not written: {error}; slimrank export tries "
            "again, without compressing anew"
        ) from error
    exported = name_in_saved(exported, out)
    if report_path is not None:
        # Again, now that there is a file to name.
        result.report(report_path, latencies=times)
    text = f"{answer.text}\n{exported.summary()}"
    return Answer(text=text, facts={**saved_facts(result, out), "exported": exported_facts(exported)})


def _check_export(
    ctx: click.Context,
    out: Path,
    export_path: Path | None,
    export_format: str | None,
    quantize: str | None,
    max_quant_drop: float | None,
) -> None:
    """Refuses now what the export would refuse after all the work."""
    if export_path is None:
        refuse_given(
            ctx,
            ("export_format", "quantize", "max_quant_drop"),
            "it is about the file of --export FILE, which is not given",
        )
        return
    check_export(
        export_path,
        format=export_format or format_of(export_path),
        saved_in=out,
        quantize=quantize,
        max_quant_drop=max_quant_drop,
    )
