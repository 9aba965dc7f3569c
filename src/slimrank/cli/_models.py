# SPDX-License-Identifier: Apache-2.0
"""Models, functions and how data are read, from what was typed: all of it needs torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, cast

from torch import nn

import slimrank as sr
from slimrank._errors import OptionError
from slimrank._study import Asked
from slimrank.calibrate import OwnLossFn
from slimrank.cli._options import FitText, StudyText
from slimrank.cli._references import function_at, model_at, user_errors
from slimrank.cli._typed import read_likelihood_option, read_weights, split_names
from slimrank.deploy import PLAN_FILE, check_target
from slimrank.fitting import check_on_layer
from slimrank.forward import OutputChoice, OutputKey
from slimrank.measured import has_previous_plan
from slimrank.records import LikelihoodChoice, Weights


class Fit(TypedDict):
    """How data are read."""

    inputs: Callable[[object], object] | None
    outputs: OutputChoice
    likelihood: LikelihoodChoice
    weights: Weights
    loss: OwnLossFn | None
    fisher: bool
    draws: int
    holdout: float
    seed: int


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


def study_from_text(options: StudyText) -> Asked:
    """What a study measures, from what was typed."""
    return {
        **fit_from_text(options),
        "methods": split_names(options["methods"]) or sr.METHODS,
        "skip": options["skip"],
        "data_free": options["data_free"],
        "channel_order": options["channel_order"],
        "effort": options["effort"],
    }


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


def loss_at(reference: str | None) -> OwnLossFn | None:
    """The function of --loss."""
    return None if reference is None else cast(OwnLossFn, function_at(reference, "--loss"))


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses now what saving would refuse after all the work."""
    check_target(out, overwrite=overwrite, where="--out", how_to_overwrite="--overwrite")
