# SPDX-License-Identifier: Apache-2.0
"""``slimrank plan``."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import click

import slimrank as sr
from slimrank._errors import OptionError
from slimrank.cli._command import PATH, Answer, Command
from slimrank.cli._options import (
    Budgets,
    after_option,
    as_studied_options,
    budget_options,
    fix_option,
    methods_option,
    relative_to_option,
    skip_option,
    widths_options,
)
from slimrank.cli._typed import (
    read_budget,
    read_fixed,
    read_latency,
    read_multiple_of,
    refuse_given,
    split_names,
)
from slimrank.files import Json, Store
from slimrank.measured import StudyRecord, read_study
from slimrank.planning import choose_plan, edit_plan
from slimrank.records import METRICS, Metric
from slimrank.report import plan_facts, render_plan


@click.command(cls=Command)
@click.argument("study_dir", metavar="DIR", type=PATH)
@budget_options
@click.option(
    "--select",
    type=click.Choice(["optimal", "greedy", "uniform"]),
    default="optimal",
    show_default=True,
    help="How ranks are chosen.",
)
@click.option(
    "--latency",
    metavar="RATIO|TIME",
    help="Keep ratio of the measured time, or a time such as 4.5ms; with --latencies.",
)
@click.option("--latencies", "times", type=PATH, help="Table of measured times, of slimrank latency.")
@click.option("--model", metavar="REF", help="The model, for --activation-bytes.")
@as_studied_options
@after_option
@methods_option
@skip_option
@fix_option
@click.option("--scores", "table", type=PATH, help="Choose by this eval-score table.")
@click.option("--monotonic", is_flag=True, help="Make each layer's scores monotone first.")
@click.option("--interpolate", is_flag=True, help="Offer ranks between the scored ones, too.")
@relative_to_option
@widths_options
@click.option(
    "--manual",
    type=PATH,
    help="No budget: take the settings of this CSV or JSON file; --multiple-of is 1 then.",
)
@click.option("--base", type=PATH, help="With --manual: the plan that those settings change.")
@click.option("--diff", "other_path", type=PATH, help="Show what this plan does otherwise than that one.")
@click.option("--out", type=PATH, help="Plan file (JSON); without it the plan is only shown.")
@click.pass_context
def plan(
    ctx: click.Context,
    study_dir: Path,
    model: str | None,
    outputs: tuple[str, ...],
    loss: str | None,
    after: Path | None,
    latency: str | None,
    times: Path | None,
    methods: tuple[str, ...],
    skip: tuple[str, ...],
    fixed: tuple[str, ...],
    table: Path | None,
    monotonic: bool,
    interpolate: bool,
    relative_to: Literal["model", "original"],
    uniform_widths: bool,
    new_bias: bool,
    manual: Path | None,
    base: Path | None,
    other_path: Path | None,
    out: Path | None,
    **budgets: Unpack[Budgets],
) -> Answer:
    """Choose ranks, channels and blocks under a budget, from the study in DIR.

    Needs no model and takes under a second, but for --activation-bytes.
    """
    if budgets["activation_bytes"] is None:
        refuse_given(
            ctx,
            ("model", "outputs", "loss", "after"),
            "only --activation-bytes needs the model; give that, too, or leave it out",
        )
    elif model is None:
        raise OptionError("--activation-bytes counts activations; give the model, too: --model module:build")
    ratios = {metric: budgets[metric] for metric in METRICS}
    if manual is not None:
        _refuse_beside_manual(
            ratios,
            {
                "--activation-bytes": budgets["activation_bytes"],
                "--scores": table,
                "--latency": latency,
                "--latencies": times,
                "--fix": fixed,
                "--uniform-widths": uniform_widths,
                "--no-new-bias": not new_bias,
            },
            methods,
            skip,
        )
        record = read_study(Store(study_dir))
        unit, chosen = record.unit, _manual_plan(record, manual, base, budgets["multiple_of"])
    else:
        if base is not None:
            raise OptionError(
                "--base is what the settings of --manual change; give --manual, or leave it out"
            )
        unit, choose = _chooser(study_dir, model, outputs, loss, after, budgets["activation_bytes"])
        chosen = choose(
            macs=read_budget(budgets["macs"]),
            params=read_budget(budgets["params"]),
            bytes=read_budget(budgets["bytes"]),
            latency=read_latency(latency),
            latencies=None if times is None else sr.Latencies.load(times),
            select=budgets["select"],
            multiple_of=read_multiple_of(budgets["multiple_of"]),
            methods=split_names(methods) or None,
            skip=skip,
            scores=None if table is None else sr.Scores.load(table),
            monotonic=monotonic,
            interpolate=interpolate,
            relative_to=relative_to,
            fixed=read_fixed(fixed),
            uniform_widths=uniform_widths,
            new_bias=new_bias,
        )
    difference = None if other_path is None else sr.Plan.load(other_path).diff(chosen)
    if out is not None:
        chosen.save(out)
    facts: dict[str, Json] = {
        "plan": None if out is None else str(out),
        **plan_facts(chosen, unit),
        "diff": difference,
    }
    parts = [
        render_plan(chosen, unit, width=None),
        *([] if difference is None else [f"{other_path} (this) and the new plan (other):\n{difference}\n"]),
        f"Saved as {out}." if out is not None else "Not saved; --out plan.json saves it.",
    ]
    return Answer(text="\n".join(parts), facts=facts)


def _chooser(
    study_dir: Path,
    model: str | None,
    outputs: Sequence[str],
    loss: str | None,
    after: Path | None,
    activation_bytes: str | None,
) -> tuple[str, Callable[..., sr.Plan]]:
    """The unit of damages, and what chooses a plan: from the files of the study, or with its model."""
    if model is None:
        record = read_study(Store(study_dir))
        return record.unit, partial(choose_plan, record)
    # Here, since all of it needs torch.
    from slimrank.cli._models import loss_at, model_of_study, outputs_at  # noqa: PLC0415

    network = model_of_study(study_dir, model, after)
    study = sr.Study.load(study_dir, model=network, outputs=outputs_at(outputs), loss=loss_at(loss))
    return study.unit, partial(study.plan, activation_bytes=read_budget(activation_bytes))


def _refuse_beside_manual(
    ratios: Mapping[Metric, str | None],
    others: Mapping[str, object],
    methods: Sequence[str],
    skip: Sequence[str],
) -> None:
    given = [f"--{metric}" for metric, ratio in ratios.items() if ratio is not None]
    given += [name for name, value in {**others, "--methods": methods, "--skip": skip}.items() if value]
    if given:
        raise OptionError(f"--manual says all; leave out {', '.join(given)}")


def _manual_plan(
    record: StudyRecord, manual: Path, base: Path | None, multiple_of: tuple[str, ...]
) -> sr.Plan:
    """The settings of a file, over those of another plan where one is given."""
    if base is None:
        # Settings typed by hand are taken as they are, unless asked otherwise.
        return sr.Plan.manual(record, manual, multiple_of=read_multiple_of(multiple_of, default=1))
    if multiple_of:
        raise OptionError("--base brings the multiples of its plan; leave out --multiple-of")
    return edit_plan(record, sr.Plan.load(base), manual)
