# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, one call, text or JSON out. The only file that prints.

Every command returns an ``_Answer``; ``_Command`` prints it and turns errors into exit codes:
0 done, 1 a bug (with its traceback), 2 something to correct (one line), 130 Ctrl-C.
"""

import contextlib
import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeVar, Unpack, cast

import click
import torch
from torch import nn

import slimrank as sr
from slimrank._errors import NotEmptyError, OptionError, SlimrankError
from slimrank._references import batches_at, function_at, model_at, told
from slimrank._scoring import PREFIX_CACHE
from slimrank.calibrate import LikelihoodChoice
from slimrank.demo import run_demo
from slimrank.fitting import check_on_layer
from slimrank.forward import OutputChoice
from slimrank.plan import SettingLike, read_settings
from slimrank.records import METRICS, ChannelOrder, Cost, Measurement, Method, Metric
from slimrank.report import render_plan
from slimrank.store import Json

STOPPED = 130  # 128 + SIGINT, as shells count
REFUSED = 2
_PACKAGES = ("torch", "numpy", "scipy", "safetensors", "rich", "click")
# Decided when a study is made; without effect on a table that is done.
_FIXED = ("batches", "inputs", "likelihood", "fisher", "draws", "holdout", "seed")
_ONLY_MEASURED = ("layers", "candidates", "workers", "no_prefix_cache", "outputs", "after")
_SPLIT: tuple[Method, Method] = ("spatial_svd", "weight_svd")
_Function = TypeVar("_Function", bound=Callable[..., "_Answer"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a command says.

    Attributes:
        text: for people.
        facts: for ``--json``.
        code: exit code.
    """

    text: str
    facts: Mapping[str, Json]
    code: int = 0


class _Command(click.Command):
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
        try:
            with guard:
                answer: _Answer = super().invoke(ctx)
        except SlimrankError as error:
            if with_traceback:
                traceback.print_exception(error)
            click.echo(f"slimrank: {' '.join(str(error).split())}", err=True)
            ctx.exit(REFUSED)
        except KeyboardInterrupt:
            click.echo(f"\nslimrank: stopped; {_how_to_go_on(ctx)}", err=True)
            ctx.exit(STOPPED)
        click.echo(json.dumps(answer.facts, indent=1) if as_json else answer.text.rstrip("\n"))
        ctx.exit(answer.code)


def _how_to_go_on(ctx: click.Context) -> str:
    places = ("run_dir", "scores_path", "study_dir")
    kept = next((ctx.params[name] for name in places if ctx.params.get(name)), None)
    if kept is None:
        return "nothing was kept"
    if not Path(kept).exists():
        return "nothing was measured yet"
    return f"what was measured is kept in {kept}: the same command goes on from there"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sr.__version__, message="slimrank %(version)s")
def cli() -> None:
    """Makes trained PyTorch models smaller and faster, and keeps their accuracy.

    MODEL, BATCHES and REF are written package.module:name or path/to/file.py:name. A function named
    so is called without arguments and gives the model, or the batches; an object is taken as it is.

    Exit codes: 0 done, 1 a bug, 2 something to correct, 130 stopped by Ctrl-C.
    """


cli.command_class = _Command


# --- options that several commands share ---


class _FitText(TypedDict):
    """How data are read, as typed."""

    inputs: str | None
    outputs: str | None
    likelihood: LikelihoodChoice
    fisher: bool
    draws: int
    holdout: float
    seed: int


class _StudyText(_FitText):
    """What a study measures, as typed."""

    methods: tuple[str, ...]
    skip: tuple[str, ...]
    data_free: bool
    channel_order: ChannelOrder


class _Fit(TypedDict):
    """How data are read."""

    inputs: Callable[[object], object] | None
    outputs: OutputChoice
    likelihood: LikelihoodChoice
    fisher: bool
    draws: int
    holdout: float
    seed: int


class _Measure(_Fit):
    """What a study measures."""

    methods: Sequence[Method]
    skip: Sequence[str]
    data_free: bool
    channel_order: ChannelOrder


class _Budgets(TypedDict):
    """Keep ratios, and how ranks are rounded, as typed."""

    macs: float | None
    params: float | None
    bytes: float | None
    multiple_of: tuple[str, ...]
    select: NotRequired[Literal["optimal", "greedy", "uniform"]]


def _together(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Several options as one decorator, shown in this order."""

    def add(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_existing = click.Path(path_type=Path)
_quiet = click.option("--quiet", is_flag=True, help="No progress bars.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace a model that was saved in --out.")
_methods = click.option("--methods", multiple=True, help=f"Only these: {', '.join(sr.METHODS)}.")
_skip = click.option("--skip", multiple=True, metavar="GLOB", help="Layers to leave alone.")
_after = click.option(
    "--after",
    type=_existing,
    metavar="DIR",
    help="Compress the model saved in DIR once more; MODEL is the original.",
)
_relative_to = click.option(
    "--relative-to",
    type=click.Choice(["model", "original"]),
    default="model",
    show_default=True,
    help="What keep ratios are shares of, after an earlier compression.",
)
_on_layer = click.option(
    "--on-layer", metavar="REF", help="Function of (model, layer name), called after each compressed layer."
)
_fit_options = _together(
    click.option("--inputs", metavar="REF", help="Function of one batch that gives the model's inputs."),
    click.option("--outputs", metavar="REF|KEY", help="Outputs that matter: a function, key or index."),
    click.option(
        "--likelihood",
        type=click.Choice(["auto", "categorical", "bernoulli", "gaussian"]),
        default="auto",
        show_default=True,
        help="How outputs are read.",
    ),
    click.option(
        "--no-fisher", "fisher", flag_value=False, default=True, help="Use no output gradients, inputs only."
    ),
    click.option("--draws", type=int, default=4, show_default=True, help="Label-free draws per sample."),
    click.option("--holdout", type=float, default=0.2, show_default=True, help="Share kept out of fits."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything drawn."),
)
_study_options = _together(
    _fit_options,
    _methods,
    _skip,
    click.option("--data-free", is_flag=True, help="Use weights only; batches then only tell shapes."),
    click.option(
        "--channel-order",
        type=click.Choice(("obs", "magnitude", "random")),
        default="obs",
        show_default=True,
        help="By what channels of a group go first.",
    ),
)
_budget_options = _together(
    click.option("--macs", type=float, help="Keep ratio of the MACs, in (0, 1]."),
    click.option("--params", type=float, help="Keep ratio of the parameters."),
    click.option("--bytes", type=float, help="Keep ratio of the weight bytes."),
    click.option(
        "--multiple-of",
        multiple=True,
        metavar="N|GLOB=N",
        help="Ranks and widths are multiples of N; per layer or group with GLOB=N, the first match wins.",
    ),
)


# --- commands ---


@cli.command()
@click.option("--out", type=_existing, default=Path("slimrank-demo"), show_default=True, help="Directory.")
@click.option("--macs", type=float, default=0.5, show_default=True, help="Keep ratio of the MACs.")
@_quiet
def demo(out: Path, macs: float, quiet: bool) -> _Answer:
    """Compress the bundled network on bundled images.

    Writes OUT/model: weights, plan, manifest and report.html.
    """
    directory = out / "model"
    _check_out(directory, overwrite=True)
    run = run_demo(directory, macs=macs, progress=not quiet)
    same = "bit for bit the same" if run.loads_equal else "DIFFERENT"
    text = (
        f"{run.result.summary(run.measurements)}\n"
        f"Saved in {directory}; loaded again with slimrank.load, its outputs are {same}.\n"
        f"Report: {directory / 'report.html'}\n"
        f"{run.seconds:.0f} seconds in all."
    )
    facts = {
        **_result_facts(run.result, directory, run.measurements),
        "loads_equal": run.loads_equal,
        "wall_seconds": run.seconds,
    }
    return _Answer(text=text, facts=facts, code=0 if run.loads_equal else 1)


@cli.command()
@click.argument("model")
@click.argument("batches")
@click.option("--out", "run_dir", type=_existing, required=True, help="Directory of the study; resumed.")
@_study_options
@click.option("--groups", "with_groups", is_flag=True, help="Also show the channel groups.")
@_after
@_quiet
def study(
    model: str,
    batches: str,
    run_dir: Path,
    with_groups: bool,
    after: Path | None,
    quiet: bool,
    **options: Unpack[_StudyText],
) -> _Answer:
    """Measure what every layer and channel group of MODEL can lose on BATCHES.

    All of it is kept in --out as it is measured: a command that was stopped goes on where it was.
    """
    network, previous = _start(model, after)
    data = batches_at(batches)
    measured = sr.study(
        network, data, run_dir=run_dir, progress=not quiet, previous=previous, **_read_study(options)
    )
    layers: list[Json] = [
        {
            "name": spec.name,
            "kind": spec.kind,
            "weight_shape": list(spec.weight_shape),
            "macs": spec.macs,
            "params": spec.params,
            "methods": list(spec.methods),
            "reason": spec.reason,
        }
        for spec in measured.layers
    ]
    facts: dict[str, Json] = {
        "study": str(run_dir),
        "before": _cost_facts(measured.before),
        "unit": measured.unit,
        "layers": layers,
        **_channel_facts(measured),
        "notes": [str(note) for note in measured.notes],
        "seconds": dict(measured.seconds),
    }
    parts = [
        measured.summary(),
        *([measured.groups()] if with_groups else []),
        f"Kept in {run_dir}. Next: slimrank plan {run_dir} --macs 0.5 --out plan.json",
    ]
    return _Answer(text="\n".join(parts), facts=facts)


@cli.command()
@click.argument("study_dir", metavar="DIR", type=_existing)
@_budget_options
@click.option(
    "--select",
    type=click.Choice(["optimal", "greedy", "uniform"]),
    default="optimal",
    show_default=True,
    help="How ranks are chosen.",
)
@_methods
@_skip
@click.option("--scores", "table", type=_existing, help="Choose by this eval-score table.")
@click.option("--monotonic", is_flag=True, help="Make each layer's scores monotone first.")
@click.option("--interpolate", is_flag=True, help="Offer ranks between the scored ones, too.")
@_relative_to
@click.option("--manual", type=_existing, help="No budget: take the settings of this CSV or JSON file.")
@click.option("--base", type=_existing, help="With --manual: the plan that those settings change.")
@click.option("--diff", "other", type=_existing, help="Show what this plan does otherwise than that one.")
@click.option("--out", type=_existing, help="Plan file (JSON); without it the plan is only shown.")
def plan(
    study_dir: Path,
    methods: tuple[str, ...],
    skip: tuple[str, ...],
    table: Path | None,
    monotonic: bool,
    interpolate: bool,
    relative_to: Literal["model", "original"],
    manual: Path | None,
    base: Path | None,
    other: Path | None,
    out: Path | None,
    **budgets: Unpack[_Budgets],
) -> _Answer:
    """Choose ranks, channels and blocks under a budget, from the study in DIR.

    Needs no model and takes under a second.
    """
    measured = sr.Study.load(study_dir)
    multiple_of = _multiple_of(budgets["multiple_of"])
    ratios = {metric: budgets[metric] for metric in METRICS}
    if manual is not None:
        _refuse_beside_manual(ratios, table, methods, skip)
        chosen = _manual_plan(measured, manual, base, multiple_of)
    else:
        if base is not None:
            raise OptionError(
                "--base is what the settings of --manual change; give --manual, or leave it out"
            )
        chosen = measured.plan(
            macs=budgets["macs"],
            params=budgets["params"],
            bytes=budgets["bytes"],
            select=budgets["select"],
            multiple_of=multiple_of,
            methods=_split(methods) or None,
            skip=skip,
            scores=None if table is None else sr.Scores.load(table),
            monotonic=monotonic,
            interpolate=interpolate,
            relative_to=relative_to,
        )
    difference = None if other is None else sr.Plan.load(other).diff(chosen)
    if out is not None:
        chosen.save(out)
    settings: dict[str, Json] = {
        name: {"method": setting.method, "form": setting.form, "rank": setting.rank}
        for name, setting in chosen.settings.items()
    }
    facts: dict[str, Json] = {
        "plan": None if out is None else str(out),
        "select": chosen.select,
        "before": _cost_facts(chosen.before),
        "after": _cost_facts(chosen.after),
        "keep_ratio": {metric: chosen.keep_ratio(metric) for metric in METRICS},
        "damage": chosen.damage,
        "unit": measured.unit,
        "score_loss": chosen.score_loss,
        "gap": chosen.gap,
        "settings": settings,
        "groups": {name: list(kept) for name, kept in chosen.groups.items()},
        "dropped": list(chosen.dropped),
        "diff": difference,
    }
    parts = [
        render_plan(chosen, measured.unit),
        *([] if difference is None else [f"{other} (this) and the new plan (other):\n{difference}\n"]),
        f"Saved as {out}." if out is not None else "Not saved; --out plan.json saves it.",
    ]
    return _Answer(text="\n".join(parts), facts=facts)


def _refuse_beside_manual(
    ratios: Mapping[Metric, float | None], table: Path | None, methods: Sequence[str], skip: Sequence[str]
) -> None:
    given = [f"--{metric}" for metric, ratio in ratios.items() if ratio is not None]
    given += [
        name for name, value in (("--scores", table), ("--methods", methods), ("--skip", skip)) if value
    ]
    if given:
        raise OptionError(f"--manual says all; leave out {', '.join(given)}")


def _manual_plan(
    measured: sr.Study, manual: Path, base: Path | None, multiple_of: int | Mapping[str, int]
) -> sr.Plan:
    """The settings of a file, over those of another plan where one is given."""
    if base is None:
        return sr.Plan.manual(measured, manual, multiple_of=multiple_of)
    settings = {**_as_settings(sr.Plan.load(base)), **read_settings(manual)}
    return sr.Plan.manual(measured, settings, multiple_of=multiple_of)


def _as_settings(chosen: sr.Plan) -> dict[str, SettingLike]:
    """All that a plan does, as ``Plan.manual`` takes it."""
    settings: dict[str, SettingLike] = dict(chosen.settings)
    for name, kept in chosen.groups.items():
        pair = chosen.settings.get(name)
        width = ("channel_pruning", {"channels_kept": kept})
        settings[name] = width if pair is None else [pair, width]
    for block in chosen.dropped:
        settings[block] = "drop"
    return settings


@cli.command()
@click.argument("model", required=False)
@click.argument("score_fn", required=False)
@click.option("--study", "study_dir", type=_existing, required=True, help="Study of MODEL.")
@click.option("--out", "scores_path", type=_existing, required=True, help="Table (JSON); resumed.")
@_methods
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
@click.option("--outputs", metavar="REF|KEY", help="As in the study, where it was made with a function.")
@_after
@click.option("--report", "report_path", type=_existing, help="Write the table as an HTML page, too.")
@click.option("--from-aimet", type=_existing, metavar="FILE", help="Read AIMET's pickled table instead.")
@click.option("--baseline", type=float, help="With --from-aimet: score of the original.")
@_quiet
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
    outputs: str | None,
    after: Path | None,
    report_path: Path | None,
    from_aimet: Path | None,
    baseline: float | None,
    quiet: bool,
) -> _Answer:
    """Score MODEL with each layer compressed to each candidate ratio: AIMET's eval-score table.

    SCORE_FN is a function of the model that returns a number, higher is better. The table is written after
    every evaluation: a command that was stopped goes on where it was.
    """
    if from_aimet is not None:
        if model or score_fn:
            raise OptionError("--from-aimet reads a table that is done; leave out MODEL and SCORE_FN")
        _refuse_given(ctx, _ONLY_MEASURED, "a table of AIMET's is done; leave it out")
        table = _from_aimet(study_dir, from_aimet, _split(methods), baseline, lower_is_better)
        table.save(scores_path)
    else:
        if model is None or score_fn is None:
            raise OptionError(
                "give MODEL and SCORE_FN, e.g. net.py:build net.py:accuracy, or --from-aimet FILE"
            )
        if baseline is not None:
            raise OptionError("--baseline is for --from-aimet; otherwise the original is evaluated")
        function = function_at(score_fn, "SCORE_FN")
        _check_after(study_dir, after)
        network, _ = _start(model, after)
        measured = sr.Study.load(study_dir, model=network, outputs=_outputs(outputs), progress=not quiet)
        table = sr.measure_scores(
            measured,
            cast(Callable[[nn.Module], float], function),
            methods=_split(methods) or None,
            layers=layers or None,
            candidates=_candidates(candidates),
            path=scores_path,
            lower_is_better=lower_is_better,
            workers=workers,
            prefix_cache=0 if no_prefix_cache else PREFIX_CACHE,
            progress=not quiet,
        )
    if report_path is not None:
        table.report(report_path)
    closing = f"Kept in {scores_path}. Next: slimrank plan {study_dir} --scores {scores_path} --macs 0.5"
    return _Answer(text=f"{table.summary()}\n{closing}", facts=json.loads(scores_path.read_text()))


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
    try:
        if text.isdecimal():
            return int(text)
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--candidates {text!r}: {error}; give a number, or ratios like 0.3,0.5") from error


@cli.command()
@click.argument("model")
@click.argument("plan_path", metavar="PLAN", type=_existing)
@click.option("--out", type=_existing, required=True, help="Directory of the compressed model.")
@click.option("--study", "study_dir", type=_existing, help="Fit to the inputs that this study kept.")
@click.option("--batches", metavar="REF", help="Fit to these; without data factors come from weights alone.")
@_fit_options
@_on_layer
@_after
@_overwrite
@_quiet
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
    overwrite: bool,
    quiet: bool,
    **options: Unpack[_FitText],
) -> _Answer:
    """Compress MODEL as PLAN says, and save it."""
    _check_out(out, overwrite=overwrite)
    chosen = sr.Plan.load(plan_path)
    fit = _read_fit(options)
    hook = _hook(on_layer)
    if study_dir is None:
        if after is not None:
            raise OptionError(
                "--after goes with the --study of that model; without one, PLAN replays every step"
            )
        network = model_at(model)
        data = None if batches is None else batches_at(batches, "--batches")
        result = sr.apply(network, chosen, data, on_layer=hook, progress=not quiet, **fit)
    else:
        _refuse_given(ctx, _FIXED, "fixed when the study was made; leave it out, or leave out --study")
        _check_after(study_dir, after)
        network, _ = _start(model, after)
        measured = sr.Study.load(
            study_dir, model=network, outputs=fit["outputs"], run_dir=study_dir, progress=not quiet
        )
        result = measured.apply(chosen, on_layer=hook)
    return _saved(result, out, overwrite)


@cli.command()
@click.argument("model")
@click.argument("batches")
@click.option("--out", type=_existing, required=True, help="Directory of the compressed model.")
@_budget_options
@click.option("--max-drop", type=float, help="No budget: the smallest model that loses at most this.")
@click.option("--split", is_flag=True, help="One method, then the other of --methods: the best split.")
@click.option("--score", metavar="REF", help="With --max-drop or --split: function of the model.")
@click.option("--lower-is-better", is_flag=True, help="The --score is a loss or an error rate.")
@click.option(
    "--no-compete", "compete", flag_value=False, default=True, help="Build the optimal plan only: faster."
)
@_study_options
@_on_layer
@click.option("--run-dir", type=_existing, help="Keep what is measured here, so that it can be resumed.")
@click.option("--report", "report_path", type=_existing, help="Write the report here, too.")
@_after
@_relative_to
@_overwrite
@_quiet
@click.pass_context
def compress(
    ctx: click.Context,
    model: str,
    batches: str,
    out: Path,
    macs: float | None,
    params: float | None,
    bytes: float | None,
    multiple_of: tuple[str, ...],
    max_drop: float | None,
    split: bool,
    score: str | None,
    lower_is_better: bool,
    compete: bool,
    on_layer: str | None,
    run_dir: Path | None,
    report_path: Path | None,
    after: Path | None,
    relative_to: Literal["model", "original"],
    overwrite: bool,
    quiet: bool,
    **options: Unpack[_StudyText],
) -> _Answer:
    """Study, plan and apply in one: compress MODEL on BATCHES, and save it."""
    _check_out(out, overwrite=overwrite)
    network, previous = _start(model, after)
    if max_drop is None and not split:
        _refuse_given(ctx, ("score", "lower_is_better"), "it judges what --max-drop or --split tries")
        result = sr.compress(
            network,
            batches_at(batches),
            macs=macs,
            params=params,
            bytes=bytes,
            compete=compete,
            multiple_of=_multiple_of(multiple_of),
            on_layer=_hook(on_layer),
            run_dir=run_dir,
            progress=not quiet,
            previous=previous,
            relative_to=relative_to,
            **_read_study(options),
        )
    else:
        _refuse_given(
            ctx, ("on_layer", "compete", "relative_to"), "--max-drop and --split try plans of their own"
        )
        judge = None if score is None else cast(Callable[[nn.Module], float], function_at(score, "--score"))
        chosen = _read_study(options)
        measured = sr.study(
            network, batches_at(batches), run_dir=run_dir, progress=not quiet, previous=previous, **chosen
        )
        rounding = _multiple_of(multiple_of)
        if max_drop is not None:
            _refuse_given(ctx, ("macs", "params", "bytes", "split"), "--max-drop finds the budget itself")
            result = sr.smallest(
                measured,
                max_drop=max_drop,
                score_fn=judge,
                lower_is_better=lower_is_better,
                multiple_of=rounding,
            )
        else:
            result = sr.search_split(
                measured,
                macs=macs,
                params=params,
                bytes=bytes,
                methods=cast(tuple[Method, Method], _split(options["methods"]) or _SPLIT),
                score_fn=judge,
                lower_is_better=lower_is_better,
                multiple_of=rounding,
            )
    if report_path is not None:
        result.report(report_path)
    return _saved(result, out, overwrite)


@cli.command()
@click.argument("study_dir", metavar="DIR", type=_existing)
@click.option("--out", type=_existing, required=True, help="HTML file.")
def report(study_dir: Path, out: Path) -> _Answer:
    """Write the study in DIR as one HTML page; a saved model has its report.html already."""
    if (study_dir / "manifest.json").is_file() and (study_dir / "report.html").is_file():
        raise OptionError(f"{study_dir} is a saved model; its report is {study_dir / 'report.html'}")
    sr.Study.load(study_dir).report(out)
    return _Answer(text=f"Report: {out}", facts={"report": str(out)})


@cli.command()
def env() -> _Answer:
    """Show what a bug report needs."""
    devices: list[Json] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, Json] = {
        "slimrank": sr.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": devices,
    }
    shown = {**facts, "cuda": facts["cuda"] or "none", "cuda_devices": ", ".join(map(str, devices)) or "none"}
    return _Answer(text="\n".join(f"{name:<13} {value}" for name, value in shown.items()), facts=facts)


# --- typed text to values ---


def _hook(reference: str | None) -> Callable[[nn.Module, str], object] | None:
    """The function of --on-layer; what it raises is told as the user's own error."""
    if reference is None:
        return None
    function = function_at(reference, "--on-layer")
    check_on_layer(function)

    def hook(model: nn.Module, name: str) -> object:
        with told(f"--on-layer {reference!r}, layer {name!r}"):
            return function(model, name)

    return hook


def _check_after(study_dir: Path, after: Path | None) -> None:
    """Refuses a study of a second step where the model of the first one is not named."""
    if after is None and (study_dir / "previous_plan.json").is_file():
        raise OptionError(
            f"{study_dir} is a study of a model that had been compressed before; name the directory it was "
            "saved in with --after"
        )


def _start(model: str, after: Path | None) -> tuple[nn.Module, sr.Plan | None]:
    """The model to compress, and the plan that made it where it was compressed before."""
    network = model_at(model)
    if after is None:
        return network, None
    return sr.load(after, model=network), sr.Plan.load(after / "plan.json")


def _read_fit(options: _FitText) -> _Fit:
    inputs = options["inputs"]
    return {
        "inputs": None if inputs is None else function_at(inputs, "--inputs"),
        "outputs": _outputs(options["outputs"]),
        "likelihood": options["likelihood"],
        "fisher": options["fisher"],
        "draws": options["draws"],
        "holdout": options["holdout"],
        "seed": options["seed"],
    }


def _read_study(options: _StudyText) -> _Measure:
    return {
        **_read_fit(options),
        "methods": _split(options["methods"]) or sr.METHODS,
        "skip": options["skip"],
        "data_free": options["data_free"],
        "channel_order": options["channel_order"],
    }


def _split(names: Iterable[str]) -> tuple[Method, ...]:
    """Names given one by one or with commas between them; the library checks that they exist."""
    parts = [part.strip() for name in names for part in name.split(",")]
    return cast(tuple[Method, ...], tuple(part for part in parts if part))


def _outputs(text: str | None) -> OutputChoice:
    if text is None or ":" not in text:
        return int(text) if text is not None and text.removeprefix("-").isdecimal() else text
    return function_at(text, "--outputs")


def _multiple_of(entries: Sequence[str]) -> int | Mapping[str, int]:
    """One number, or globs in their order; a number among globs is for all other layers."""
    by_glob: dict[str, int] = {}
    default: int | None = None
    for entry in entries:
        glob, _, text = entry.rpartition("=")
        if not text.isdecimal():
            raise OptionError(
                f"--multiple-of {entry!r} is no number; give N or GLOB=N, e.g. 8 or 'layer*=16'"
            )
        if glob:
            by_glob[glob] = int(text)
        elif default is not None:
            raise OptionError(f"--multiple-of has two numbers, {default} and {text}; give one, and GLOB=N")
        else:
            default = int(text)
    if not by_glob:
        return 1 if default is None else default
    return by_glob if default is None else {**by_glob, "*": default}


def _refuse_given(ctx: click.Context, names: Sequence[str], why: str) -> None:
    """Refuses options that would be without effect."""
    given = [
        param.opts[0]
        for param in ctx.command.params
        if param.name in names
        and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise OptionError(f"{', '.join(given)}: {why}")


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses now what saving would refuse after all the work, and never replaces foreign files."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise NotEmptyError(f"--out {out} is not empty; give another directory or --overwrite")
    if not (out / "manifest.json").is_file():
        raise NotEmptyError(
            f"--out {out} holds something else than a saved model; give a directory of its own"
        )


# --- values to JSON ---


def _saved(result: sr.Result, out: Path, overwrite: bool) -> _Answer:
    result.save(out, overwrite=overwrite)
    text = f"{result.summary()}\nSaved in {out}; report: {out / 'report.html'}"
    return _Answer(text=text, facts=_result_facts(result, out))


def _result_facts(result: sr.Result, out: Path, measurements: Sequence[Measurement] = ()) -> dict[str, Json]:
    layers: list[Json] = [
        {
            "name": layer.name,
            "before": _cost_facts(layer.before),
            "after": _cost_facts(layer.after),
            "setting": None if layer.setting is None else asdict(layer.setting),
            "slimmed": layer.slimmed,
            "damage": layer.damage,
            "fit": layer.fit,
            "reason": layer.reason,
        }
        for layer in result.layers
    ]
    return {
        "model": str(out),
        "before": _cost_facts(result.before),
        "after": _cost_facts(result.after),
        "keep_ratio": {metric: result.keep_ratio(metric) for metric in METRICS},
        "divergence": result.divergence,
        "damage": result.damage,
        "unit": result.unit,
        "damage_unit": result.damage_unit,
        "measurements": [asdict(measured) for measured in measurements],
        "layers": layers,
        "notes": [str(note) for note in result.notes],
        "seconds": dict(result.seconds),
    }


def _channel_facts(measured: sr.Study) -> dict[str, Json]:
    channels = measured.structure.channels
    damages = {one.block: one.damage for one in measured.block_damages}
    groups: list[Json] = [
        {
            "name": group.name,
            "units": group.units,
            "unit_width": group.unit_width,
            "producers": list(group.producers),
            "consumers": list(group.consumers),
            "sizes": [list(size) for size in group.sizes],
            "reason": group.reason,
        }
        for group in channels.groups.values()
    ]
    blocks: list[Json] = [
        {
            "name": block.name,
            "macs": block.macs,
            "params": block.params,
            "bytes": block.bytes,
            "damage": damages.get(block.name),
        }
        for block in channels.blocks.values()
    ]
    return {"groups": groups, "blocks": blocks}


def _cost_facts(cost: Cost) -> dict[str, Json]:
    return {metric: cost.metric(metric) for metric in METRICS}


def main() -> None:
    """The program ``slimrank``."""
    cli(prog_name="slimrank")
