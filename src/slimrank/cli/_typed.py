# SPDX-License-Identifier: Apache-2.0
"""Typed text to values."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

import click
from torch import nn

import slimrank as sr
from slimrank._errors import OptionError
from slimrank._names import nearest
from slimrank.calibrate import OwnLossFn
from slimrank.cli._options import Fit, FitText, Measure, StudyText
from slimrank.cli._references import function_at, model_at, user_errors
from slimrank.deploy import PLAN_FILE, check_target
from slimrank.fitting import check_on_layer
from slimrank.forward import OutputChoice, OutputKey
from slimrank.measured import has_previous_plan
from slimrank.plan import MultipleOf, SettingLike
from slimrank.records import LIKELIHOODS, LikelihoodChoice, LikelihoodName, Method, Weights

_Value = TypeVar("_Value")

_FIX_FORMS = (
    "e.g. fc=weight_svd:0.4, fc=weight_svd:rank=32, conv1=channel_pruning:keep=24, layer4.1=drop or fc=none"
)
_FIX_READERS: Mapping[str, Callable[[str], int | float]] = {
    "": float,
    "ratio": float,
    "rank": int,
    "keep": int,
}


def read_fixed(texts: Sequence[str]) -> dict[str, SettingLike] | None:
    """What --fix says: name -> setting, a list where a name is given twice; None where it is not given."""
    found: dict[str, SettingLike] = {}
    for text in texts:
        name, equals, typed = text.partition("=")
        if not (equals and name and typed):
            raise OptionError(f"--fix {text!r}: give NAME=SETTING, {_FIX_FORMS}")
        setting = _read_setting(text, typed)
        known = found.get(name)
        if name not in found:
            found[name] = setting
        elif isinstance(known, tuple) and isinstance(setting, tuple):
            found[name] = [known, setting]
        else:
            raise OptionError(
                f"--fix {text!r}: {name!r} is fixed twice; only a pair and channels go together"
            )
    return found or None


def _read_setting(text: str, typed: str) -> SettingLike:
    """A setting as --fix takes it."""
    if typed == "drop":
        return "drop"
    if typed == "none":
        return None
    method, colon, amount = typed.partition(":")
    key, equals, number = amount.rpartition("=")
    if not (colon and method and number and bool(equals) == bool(key)) or key not in _FIX_READERS:
        raise OptionError(f"--fix {text!r}: {typed!r} is no setting; give {_FIX_FORMS}")
    try:
        value = _FIX_READERS[key](number)
    except ValueError as error:
        raise OptionError(f"--fix {text!r}: {number!r} is no number; give {_FIX_FORMS}") from error
    return (method, value if not key else {key: value})


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


def writable(study_dir: Path) -> Path | None:
    """The directory of a study, for the events of later work; None where nothing can be written to it."""
    return study_dir if os.access(study_dir, os.W_OK) else None


def model_to_compress(model: str, after: Path | None) -> tuple[nn.Module, sr.Plan | None]:
    """The model to compress, and the plan that made it where it was compressed before."""
    network = model_at(model)
    if after is None:
        return network, None
    return sr.load(after, model=network), sr.Plan.load(after / PLAN_FILE)


def model_of_study(study_dir: Path, model: str, after: Path | None) -> nn.Module:
    """The model that a study is of; that of a second step is built by ``after``, which must be named."""
    check_after(study_dir, after)
    network, _ = model_to_compress(model, after)
    return network


def fit_from_text(options: FitText) -> Fit:
    """How data are read, from what was typed."""
    inputs = options["inputs"]
    return {
        "inputs": None if inputs is None else function_at(inputs, "--inputs"),
        "outputs": outputs_at(options["outputs"]),
        "likelihood": read_likelihood_option(options["likelihood"]),
        "weights": read_weights(options["weights"]),
        "loss": loss_at(options["loss"]),
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
        "effort": options["effort"],
    }


def split_names(names: Iterable[str]) -> tuple[Method, ...]:
    """Names given one by one or with commas between them; the library checks that they exist."""
    parts = [part.strip() for name in names for part in name.split(",")]
    return cast(tuple[Method, ...], tuple(part for part in parts if part))


def outputs_at(texts: Sequence[str]) -> OutputChoice:
    """A key, an index, a list of them, or where a colon stands in the only text the function it names."""
    functions = [text for text in texts if ":" in text]
    if functions and len(texts) > 1:
        raise OptionError(
            f"--outputs {functions[0]!r} is a function, which picks all outputs that matter; give it alone, "
            "or keys and indices only"
        )
    if functions:
        return function_at(functions[0], "--outputs")
    if not texts:
        return None
    return _key(texts[0]) if len(texts) == 1 else tuple(_key(text) for text in texts)


def _key(text: str) -> OutputKey:
    if not text:
        raise OptionError("--outputs is empty; give a key or an index of what the model returns")
    return int(text) if text.removeprefix("-").isdecimal() else text


def read_likelihood_option(entries: Sequence[str]) -> LikelihoodChoice:
    """One family, or one for each output that is named."""
    families = [entry for entry in entries if "=" not in entry]
    if families and len(entries) > 1:
        why = (
            "has several families" if len(families) > 1 else "mixes a family for all outputs with NAME=FAMILY"
        )
        raise OptionError(
            f"--likelihood {why} ({', '.join(entries)}); give one FAMILY, or NAME=FAMILY for each output"
        )
    if families:
        return _family(families[0], families[0])
    return _by_name(entries, "--likelihood", _family) or "auto"


def _family(text: str, entry: str) -> LikelihoodName:
    if text not in LIKELIHOODS:
        raise OptionError(
            f"--likelihood {entry!r} is no family; give one of {', '.join(LIKELIHOODS)}, or NAME=FAMILY with "
            "one of these"
        )
    return text


def read_weights(entries: Sequence[str]) -> Weights:
    """Weights by the output they name; the library checks their range."""
    return _by_name(entries, "--weight", _number) or None


def _number(text: str, entry: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(
            f"--weight {entry!r} is no number; give --weight NAME=VALUE, e.g. --weight boxes=2"
        ) from error


def _by_name(entries: Sequence[str], option: str, read: Callable[[str, str], _Value]) -> dict[str, _Value]:
    """Values of NAME=VALUE by name; names may hold "=" themselves."""
    found: dict[str, _Value] = {}
    for entry in entries:
        name, _, text = entry.rpartition("=")
        if not name or not text:
            raise OptionError(f"{option} {entry!r} names no output and value; give {option} NAME=VALUE")
        if name in found:
            raise OptionError(f"{option} names {name!r} twice; name each output once")
        found[name] = read(text, entry)
    return found


def loss_at(reference: str | None) -> OwnLossFn | None:
    """The function of --loss."""
    return None if reference is None else cast(OwnLossFn, function_at(reference, "--loss"))


def read_multiple_of(entries: Sequence[str], *, default: int | Literal["auto"] = "auto") -> MultipleOf:
    """One number or "auto", or globs in their order; a number among globs is for all other layers.

    Args:
        entries: as typed.
        default: where nothing was typed.

    Returns:
        For ``Study.plan``.

    Raises:
        OptionError: something else was typed.
    """
    by_glob: dict[str, int | Literal["auto"]] = {}
    others: int | Literal["auto"] | None = None
    for entry in entries:
        glob, _, text = entry.rpartition("=")
        if text != "auto" and not text.isdecimal():
            raise OptionError(
                f"--multiple-of {entry!r} is no number; give N or GLOB=N, e.g. 8 or 'layer*=16', or auto "
                f"in place of N; {nearest(text, ('auto',))}"
            )
        number: int | Literal["auto"] = "auto" if text == "auto" else int(text)
        if glob:
            by_glob[glob] = number
        elif others is not None:
            raise OptionError(f"--multiple-of has two numbers, {others} and {text}; give one, and GLOB=N")
        else:
            others = number
    if not by_glob:
        return default if others is None else others
    return by_glob if others is None else {**by_glob, "*": others}


def read_budget(text: str | None) -> float | str | None:
    """A whole number, a ratio, or any other text as it was typed, for ``Study.plan``; None for nothing."""
    if text is None:
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def read_latency(text: str | None) -> float | str | None:
    """A ratio, or a time as it was typed, for ``Study.plan``; None where nothing was typed."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


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
