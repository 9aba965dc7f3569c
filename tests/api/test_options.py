# SPDX-License-Identifier: Apache-2.0
"""The options of a study stand in several signatures; all agree with the one list, and none is lost."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.measured import Options

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
    "weights": {"0": 2.0},
    "effort": "fast",
}
# The same on the command line; what may be given several times is empty by default.
TYPED: Mapping[str, tuple[str, ...]] = {
    "methods": ("--methods", "weight_svd", "--methods", "spatial_svd"),
    "skip": ("--skip", "2"),
    "likelihood": ("--likelihood", "gaussian"),
    "fisher": ("--no-fisher",),
    "draws": ("--draws", "2"),
    "holdout": ("--holdout", "0.5"),
    "data_free": ("--data-free",),
    "channel_order": ("--channel-order", "magnitude"),
    "seed": ("--seed", "3"),
    "weights": ("--weight", "0=2"),
    "effort": ("--effort", "fast"),
}
SEVERAL = ("methods", "skip", "likelihood", "weights")


def test_this_file_knows_every_option() -> None:
    assert OTHERS.keys() == TYPED.keys() == DEFAULTS.keys()
    assert not [name for name in OTHERS if OTHERS[name] == DEFAULTS[name]]


@pytest.mark.parametrize(
    ("call", "left_out"),
    [
        (sr.study, set()),
        (sr.compress, set()),
        # A plan says what is done, so these would be without effect.
        (sr.apply, {"methods", "skip", "data_free", "channel_order", "effort"}),
    ],
)
def test_calls_take_the_options_with_their_defaults(call: Callable[..., object], left_out: set[str]) -> None:
    parameters = inspect.signature(call).parameters
    keywords = {name: parameters[name].default for name in DEFAULTS if name in parameters}
    assert keywords == {name: default for name, default in DEFAULTS.items() if name not in left_out}
    assert {type(default) for default in keywords.values()} <= {tuple, str, bool, int, float, type(None)}
    # Of the data, not of what is measured; a loss stands beside the likelihood all the same.
    assert parameters["loss"].default is None


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("study", set()),
        ("compress", set()),
        ("apply", {"methods", "skip", "data_free", "channel_order", "effort"}),
    ],
)
def test_commands_take_the_options_with_their_defaults(name: str, left_out: set[str]) -> None:
    typed = seams.command(name).make_context(name, ["model", "batches", "--out", "out"]).params
    found = {option: typed[option] for option in DEFAULTS if option in typed}
    # Texts that may be given several times: none given stands for the default.
    assert [found.pop(option) for option in SEVERAL if option in found] == [()] * len({*SEVERAL} - left_out)
    expected = DEFAULTS.keys() - left_out - {*SEVERAL}
    assert found == {option: DEFAULTS[option] for option in expected}
    assert typed["loss"] is None


class TwoOutputs(nn.Sequential):
    """Two tensors, so that each can have a weight of its own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y[:, :8], y[:, 8:]


def _model() -> nn.Module:
    model = TwoOutputs(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def _batches() -> list[Tensor]:
    return [torch.randn(6, 12, generator=torch.Generator().manual_seed(1))] * 2


def _loss(outputs: tuple[Tensor, Tensor], original: tuple[Tensor, Tensor]) -> Tensor:
    return (outputs[0] - original[0]).square().sum(1)


def _expected(name: str) -> Options:
    options = replace(Options(), **{name: OTHERS[name]})
    # Methods count in the order of the table, however they were typed.
    return replace(options, methods=tuple(method for method in sr.METHODS if method in options.methods))


def _check(study: sr.Study, name: str) -> None:
    """The option is in the study and in what ties it to its files; all others are as by default."""
    expected = _expected(name)
    assert seams.session_of(study).options == expected
    assert study.fingerprint["options"] == hashlib.sha256(repr(expected).encode()).hexdigest()
    default = sr.study(_model(), _batches(), progress=False).fingerprint
    differing = {topic for topic in default if study.fingerprint[topic] != default[topic]}
    # How outputs are read is a part of them; weights, which came later, are a part of nothing else.
    assert differing - {"outputs"} == ({"options"} if name != "weights" else set())
    assert name != "weights" or differing == {"outputs"}


@pytest.mark.parametrize("name", OTHERS)
def test_every_option_reaches_the_study(name: str) -> None:
    _check(sr.study(_model(), _batches(), progress=False, **{name: OTHERS[name]}), name)  # type: ignore[arg-type]


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
    # The file holds all of them, as they were given.
    _check(sr.Study.load(tmp_path, model=_model()), name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A command on the model and the batches of this file, in a directory of its own."""
    module = ModuleType("options_net")
    module.build, module.batches, module.loss = _model, _batches, _loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "options_net", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run_command(*args: str) -> None:
        done = CliRunner().invoke(seams.cli, [*args, "--quiet"], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    return run_command


@pytest.mark.parametrize("name", TYPED)
def test_every_option_of_the_command_line_reaches_the_study(name: str, run: Callable[..., None]) -> None:
    run("study", "options_net:build", "options_net:batches", "--out", "run", *TYPED[name])
    _check(sr.Study.load("run", model=_model()), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPED)
def test_every_option_of_the_compress_command_reaches_the_study(name: str, run: Callable[..., None]) -> None:
    command = ("compress", "options_net:build", "options_net:batches", "--macs", "0.95", "--no-compete")
    run(*command, "--out", "small", "--run-dir", "run", *TYPED[name])
    _check(sr.Study.load("run", model=_model()), name)


@pytest.mark.parametrize("name", ["likelihood", "fisher", "draws", "holdout", "seed", "weights", "loss"])
def test_every_option_of_the_apply_command_reaches_the_call(
    name: str, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sr.study(_model(), _batches(), progress=False).plan(macs=0.95).save("plan.json")
    given: dict[str, object] = {}
    apply = sr.apply

    def watched(*args: object, **keywords: object) -> sr.Result:
        given.update(keywords)
        return apply(*args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(sr, "apply", watched)
    typed = {**TYPED, "loss": ("--loss", "options_net:loss")}[name]
    run(
        "apply",
        "options_net:build",
        "plan.json",
        "--batches",
        "options_net:batches",
        "--out",
        "small",
        *typed,
    )
    defaults = {option: default for option, default in DEFAULTS.items() if option in given}
    expected = {**defaults, "loss": None, name: {**OTHERS, "loss": _loss}[name]}
    assert {option: given[option] for option in expected} == expected


@pytest.mark.parametrize("way", ["study", "compress", "command", "compress command"])
def test_a_loss_reaches_the_study(way: str, run: Callable[..., None]) -> None:
    command = ("options_net:build", "options_net:batches", "--loss", "options_net:loss")
    if way == "study":
        sr.study(_model(), _batches(), loss=_loss, run_dir="run", progress=False)
    elif way == "compress":
        sr.compress(_model(), _batches(), macs=0.95, compete=False, loss=_loss, run_dir="run", progress=False)
    elif way == "command":
        run("study", *command, "--out", "run")
    else:
        run("compress", *command, "--macs", "0.95", "--no-compete", "--out", "small", "--run-dir", "run")
    study = sr.Study.load("run", model=_model(), loss=_loss)
    used = seams.session_of(study).likelihood.loss
    assert used is not None
    assert used.function is _loss
    default = sr.study(_model(), _batches(), progress=False).fingerprint
    assert {topic for topic in default if study.fingerprint[topic] != default[topic]} == {"outputs"}
    with pytest.raises(sr.StudyError, match=r"made with loss=.*pass the same loss= again"):
        sr.Study.load("run", model=_model())
