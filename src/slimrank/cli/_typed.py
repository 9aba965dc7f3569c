# SPDX-License-Identifier: Apache-2.0
"""Typed text to values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import click
from torch import nn

import slimrank as sr
from slimrank._errors import OptionError
from slimrank.cli._options import Fit, FitText, Measure, StudyText
from slimrank.cli._references import function_at, model_at, user_errors
from slimrank.deploy import PLAN_FILE, check_target
from slimrank.fitting import check_on_layer
from slimrank.forward import OutputChoice
from slimrank.records import Method
from slimrank.survey import has_previous_plan


def hook_at(reference: str | None) -> Callable[[nn.Module, str], object] | None:
    """The function of --on-layer; what it raises is reported as an error of the user's code."""
    if reference is None:
        return None
    function = function_at(reference, "--on-layer")
    check_on_layer(function)

    def hook(model: nn.Module, name: str) -> object:
        with user_errors(f"--on-layer {reference!r}, layer {name!r}"):
            return function(model, name)

    return hook


def check_after(study_dir: Path, after: Path | None) -> None:
    """Refuses a study of a second step where the model of the first one is not named."""
    if after is None and has_previous_plan(study_dir):
        raise OptionError(
            f"{study_dir} is a study of a model that had been compressed before; name the directory it was "
            "saved in with --after"
        )


def model_to_compress(model: str, after: Path | None) -> tuple[nn.Module, sr.Plan | None]:
    """The model to compress, and the plan that made it where it was compressed before."""
    network = model_at(model)
    if after is None:
        return network, None
    return sr.load(after, model=network), sr.Plan.load(after / PLAN_FILE)


def fit_from_text(options: FitText) -> Fit:
    """How data are read, from what was typed."""
    inputs = options["inputs"]
    return {
        "inputs": None if inputs is None else function_at(inputs, "--inputs"),
        "outputs": outputs_at(options["outputs"]),
        "likelihood": options["likelihood"],
        "fisher": options["fisher"],
        "draws": options["draws"],
        "holdout": options["holdout"],
        "seed": options["seed"],
    }


def study_from_text(options: StudyText) -> Measure:
    """What a study measures, from what was typed."""
    return {
        **fit_from_text(options),
        "methods": split_names(options["methods"]) or sr.METHODS,
        "skip": options["skip"],
        "data_free": options["data_free"],
        "channel_order": options["channel_order"],
    }


def split_names(names: Iterable[str]) -> tuple[Method, ...]:
    """Names given one by one or with commas between them; the library checks that they exist."""
    parts = [part.strip() for name in names for part in name.split(",")]
    return cast(tuple[Method, ...], tuple(part for part in parts if part))


def outputs_at(text: str | None) -> OutputChoice:
    """A key, an index, or where a colon stands in it the function that a reference names."""
    if text is None or ":" not in text:
        return int(text) if text is not None and text.removeprefix("-").isdecimal() else text
    return function_at(text, "--outputs")


def read_multiple_of(entries: Sequence[str]) -> int | Mapping[str, int]:
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


def refuse_given(ctx: click.Context, names: Sequence[str], why: str) -> None:
    """Refuses options that would be without effect."""
    given = [
        param.opts[0]
        for param in ctx.command.params
        if param.name in names
        and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise OptionError(f"{', '.join(given)}: {why}")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses now what saving would refuse after all the work."""
    check_target(out, overwrite=overwrite, where="--out", how_to_overwrite="--overwrite")
