# SPDX-License-Identifier: Apache-2.0
"""The options of a study stand in several signatures; all agree with the one list, and none is lost."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.survey import Options

DEFAULTS: Mapping[str, object] = {field.name: field.default for field in fields(Options)}
OTHERS: Mapping[str, object] = {
    "methods": ("spatial_svd", "weight_svd"),
    "skip": ("2",),
    "likelihood": "gaussian",
    "fisher": False,
    "draws": 2,
    "holdout": 0.5,
    "data_free": True,
    "channel_order": "magnitude",
    "seed": 3,
}


def test_this_file_knows_every_option() -> None:
    assert OTHERS.keys() == DEFAULTS.keys()
    assert not [name for name in OTHERS if OTHERS[name] == DEFAULTS[name]]


@pytest.mark.parametrize(
    ("call", "left_out"),
    [
        (sr.study, set()),
        (sr.compress, set()),
        # A plan says what is done, so these would be without effect.
        (sr.apply, {"methods", "skip", "data_free", "channel_order"}),
    ],
)
def test_calls_take_the_options_with_their_defaults(call: Callable[..., object], left_out: set[str]) -> None:
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(call).parameters.items()
        if name in DEFAULTS
    }
    assert keywords == {name: default for name, default in DEFAULTS.items() if name not in left_out}
    assert {type(default) for default in keywords.values()} <= {tuple, str, bool, int, float}


@pytest.mark.parametrize("name", ["study", "compress"])
def test_commands_take_the_options_with_their_defaults(name: str) -> None:
    required = ["model", "batches", "--out", "out"]
    typed = seams.cli.commands[name].make_context(name, required).params
    found = {name: typed[name] for name in DEFAULTS}
    # Texts that may be given several times: none given stands for all methods.
    assert found.pop("methods") == ()
    assert found == {name: default for name, default in DEFAULTS.items() if name != "methods"}


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def _batches() -> list[Tensor]:
    return [torch.randn(6, 12, generator=torch.Generator().manual_seed(1))] * 2


def _expected(name: str) -> str:
    options = replace(Options(), **{name: OTHERS[name]})
    # Methods count in the order of the table, however they were typed.
    ordered = tuple(method for method in sr.METHODS if method in options.methods)
    return hashlib.sha256(repr(replace(options, methods=ordered)).encode()).hexdigest()


@pytest.mark.parametrize("name", OTHERS)
def test_every_option_reaches_the_study(name: str) -> None:
    study = sr.study(_model(), _batches(), progress=False, **{name: OTHERS[name]})  # type: ignore[arg-type]
    assert study.fingerprint["options"] == _expected(name)


@pytest.mark.parametrize("name", OTHERS)
def test_every_option_of_compress_reaches_its_study(name: str, tmp_path: Path) -> None:
    sr.compress(
        _model(),
        _batches(),
        macs=0.95,
        compete=False,
        run_dir=tmp_path,
        progress=False,
        **{name: OTHERS[name]},  # type: ignore[arg-type]
    )
    study = sr.Study.load(tmp_path)
    assert study.fingerprint["options"] == _expected(name)
    # The file holds all of them, as they were given.
    again = sr.Study.load(tmp_path, model=_model())
    assert again.fingerprint["options"] == _expected(name)
