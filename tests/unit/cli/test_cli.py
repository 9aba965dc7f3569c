# SPDX-License-Identifier: Apache-2.0
"""The command line without a study: references, options, exit codes."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import seams
import slimrank as sr

_CODE = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 4))
data = [torch.ones(2, 4)]

def build():
    print("building")
    return net

def batches():
    return data

def needs(size):
    return nn.Linear(size, size)

def breaks():
    raise RuntimeError("no such checkpoint")

def leaves():
    raise SystemExit(3)

def number():
    return 3

class Holder:
    build = staticmethod(build)
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """References load modules and lengthen ``sys.path``, as a process may and a test may not."""
    (tmp_path / "user_net.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _run(*args: str) -> Result:
    return CliRunner().invoke(seams.cli, list(args), prog_name="slimrank")


def _refused(*args: str) -> str:
    """The one line on stderr of a command that must be refused."""
    done = _run(*args)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("slimrank: ")
    return line


@pytest.mark.parametrize(
    "reference",
    [
        "user_net.py:build",
        "./user_net.py:build",
        "user_net:build",
        "user_net:net",
        "user_net.py:net",
        "user_net:Holder.build",
    ],
)
def test_a_model_is_found_by_file_or_module_built_or_taken(reference: str) -> None:
    assert type(seams.model_at(reference)).__name__ == "Sequential"


@pytest.mark.parametrize("reference", ["user_net.py:batches", "user_net.py:data"])
def test_batches_are_made_or_taken(reference: str) -> None:
    (batch,) = seams.batches_at(reference)
    assert batch.shape == (2, 4)  # type: ignore[attr-defined]


def test_two_references_to_a_file_run_it_once(tmp_path: Path) -> None:
    first = seams.named_reference("user_net.py:net", "MODEL")
    assert seams.named_reference(f"{tmp_path}/user_net.py:net", "MODEL") is first


def test_a_file_named_like_a_loaded_module_is_still_the_file(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("value = [1]\n")
    assert seams.named_reference("json.py:value", "BATCHES") == [1]
    assert json.loads("[2]") == [2]


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "beside_this.py").write_text("value = [4]\n")
    (tmp_path / "deep" / "user_data.py").write_text("from beside_this import value\n")
    assert seams.named_reference("deep/user_data.py:value", "BATCHES") == [4]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("user_net.py", "MODEL 'user_net.py' names nothing; write package.module:name or path/to/file.py"),
        ("user_net.py:", "names nothing"),
        (":build", "names nothing"),
        ("usr_net.py:build", "MODEL: usr_net.py does not exist; did you mean 'user_net.py'?"),
        ("usr_net:build", "no module 'usr_net' is installed or lies in"),
        ("usr_net:build", "did you mean 'user_net'?"),
        ("user_net.py:biuld", "MODEL: user_net.py has no 'biuld'; did you mean 'build'?"),
        ("user_net:Holder.bild", "has no 'Holder.bild'; did you mean 'build'?"),
        ("user_net.py:breaks", "raised RuntimeError: no such checkpoint (--traceback shows where)"),
        ("user_net.py:leaves", "raised SystemExit: 3"),
        ("user_net.py:needs", "needs arguments (size); name a function without"),
        ("user_net.py:number", "MODEL 'user_net.py:number' gives a int; give a torch.nn.Module"),
        ("user_net.py:data", "gives a list; give a torch.nn.Module"),
    ],
)
def test_a_wrong_model_reference_is_one_line_and_exit_code_2(reference: str, message: str) -> None:
    assert message in _refused("study", reference, "user_net.py:batches", "--out", "run")


def test_wrong_batches_and_functions_are_named() -> None:
    line = _refused("study", "user_net:net", "user_net:number", "--out", "run")
    assert "BATCHES 'user_net:number' gives a int; give batches, as a list or a DataLoader" in line
    line = _refused("study", "user_net:net", "user_net:data", "--out", "run", "--inputs", "user_net:data")
    assert "--inputs 'user_net:data' is a list; name a function" in line


def test_a_file_that_fails_to_import_is_named(tmp_path: Path) -> None:
    (tmp_path / "user_bad.py").write_text("def (:\n")
    (tmp_path / "user_lacks.py").write_text("import surely_not_installed\n")
    assert "MODEL: user_bad.py raised SyntaxError" in _refused("study", "user_bad.py:x", "b:b", "--out", "r")
    line = _refused("study", "user_lacks:x", "b:b", "--out", "r")
    assert "MODEL: user_lacks imports surely_not_installed, which is not installed" in line
    assert "user_bad" not in sys.modules


def test_traceback_shows_where_the_users_code_broke() -> None:
    done = _run("study", "user_net:breaks", "user_net:data", "--out", "run", "--traceback")
    assert done.exit_code == 2
    assert 'raise RuntimeError("no such checkpoint")' in done.stderr


def test_a_bug_keeps_its_traceback_and_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sr, "study", broken)
    done = _run("study", "user_net:net", "user_net:data", "--out", "run")
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), "auto"),
        (("auto",), "auto"),
        (("8",), 8),
        (("a*=4", "8", "b=2"), {"a*": 4, "b": 2, "*": 8}),
        (("a*=4", "auto"), {"a*": 4, "*": "auto"}),
        (("a=auto",), {"a": "auto"}),
        (("a=b=4",), {"a=b": 4}),
    ],
)
def test_multiple_of_is_a_number_or_globs_in_order(entries: tuple[str, ...], expected: object) -> None:
    assert seams.multiple_of_option(entries) == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("x",), "'x' is no number; give N or GLOB=N"),
        (("a=atuo",), "'a=atuo' is no number.*; did you mean 'auto'"),
        (("8", "auto"), "two numbers, 8 and auto"),
        (("a*=",), "no number"),
        (("8", "4"), "two numbers, 8 and 4"),
    ],
)
def test_a_wrong_multiple_of_is_refused(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(sr.OptionError, match=message):
        seams.multiple_of_option(entries)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), None),
        (("logits",), "logits"),
        (("0",), 0),
        (("-1",), -1),
        (("a.b",), "a.b"),
        (("boxes", "scores"), ("boxes", "scores")),
        (("0", "-1", "cls.0"), (0, -1, "cls.0")),
    ],
)
def test_outputs_are_keys_or_indices(texts: tuple[str, ...], expected: object) -> None:
    assert seams.outputs_option(texts) == expected


def test_outputs_may_be_a_function() -> None:
    assert callable(seams.outputs_option(("user_net:build",)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("0", "user_net:build"), "'user_net:build' is a function, .*; give it alone, or keys and indices"),
        (("user_net:build", "user_net:batches"), "'user_net:build' is a function"),
        (("",), "--outputs is empty; give a key or an index"),
        (("user_net:net", "0"), "'user_net:net' is a function"),
        (("user_net:number_of",), "user_net has no 'number_of'; did you mean 'number'?"),
        (("user_net:data",), "--outputs 'user_net:data' is a list; name a function"),
    ],
)
def test_wrong_outputs_are_refused(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises((sr.OptionError, sr.UnknownNameError), match=message):
        seams.outputs_option(texts)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), "auto"),
        (("gaussian",), "gaussian"),
        (("boxes=gaussian",), {"boxes": "gaussian"}),
        (("boxes=gaussian", "cls.0=auto"), {"boxes": "gaussian", "cls.0": "auto"}),
        (("a=b=bernoulli",), {"a=b": "bernoulli"}),
    ],
)
def test_a_likelihood_is_of_all_outputs_or_of_each(entries: tuple[str, ...], expected: object) -> None:
    assert seams.likelihood_option(entries) == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("poisson",), "--likelihood 'poisson' is no family; give one of auto, categorical, bernoulli"),
        (("boxes=poisson",), "--likelihood 'boxes=poisson' is no family"),
        (("gaussian", "boxes=categorical"), "mixes a family for all outputs with NAME=FAMILY"),
        (("boxes=categorical", "gaussian"), "mixes a family for all outputs with NAME=FAMILY"),
        (("gaussian", "categorical"), "has several families .*; give one FAMILY, or NAME=FAMILY for each"),
        (("=gaussian",), "--likelihood '=gaussian' names no output and value; give --likelihood NAME=VALUE"),
        (("boxes=",), "'boxes=' names no output and value"),
        (("boxes=gaussian", "boxes=auto"), "--likelihood names 'boxes' twice; name each output once"),
    ],
)
def test_a_wrong_likelihood_is_refused(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(sr.OptionError, match=message):
        seams.likelihood_option(entries)


def test_weights_are_of_each_output() -> None:
    assert seams.weights_option(()) is None
    assert seams.weights_option(("boxes=2", "cls.0=0.5")) == {"boxes": 2.0, "cls.0": 0.5}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("2",), "--weight '2' names no output and value; give --weight NAME=VALUE"),
        (
            ("boxes=much",),
            "--weight 'boxes=much' is no number; give --weight NAME=VALUE, e.g. --weight boxes=2",
        ),
        (("boxes=1", "boxes=2"), "--weight names 'boxes' twice"),
        (("boxes=",), "names no output and value"),
    ],
)
def test_wrong_weights_are_refused(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(sr.OptionError, match=message):
        seams.weights_option(entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--likelihood", "poisson"), "--likelihood 'poisson' is no family"),
        (("--weight", "0=0"), "weights['0']=0.0; give a positive number"),
        (("--weight", "0=nan"), "weights['0']=nan; give a positive number"),
        (("--weight", "0=1", "--loss", "user_net:build"), "loss cannot be called with two values"),
        (("--loss", "user_net:data"), "--loss 'user_net:data' is a list; name a function"),
        (("--loss", "user_net:lost"), "--loss: user_net has no 'lost'"),
        (("--loss", "mse"), "--loss 'mse' names nothing; write package.module:name"),
        (
            ("--outputs", "boxes"),
            "--outputs 'boxes': the model returns one tensor [",
        ),
        (("--outputs", "0", "--outputs", "0"), "names an output twice"),
    ],
)
@pytest.mark.parametrize("command", ["study", "compress"])
def test_wrong_options_for_outputs_are_one_line(command: str, options: tuple[str, ...], message: str) -> None:
    budget = ("--macs", "0.5") if command == "compress" else ()
    line = _refused(command, "user_net:net", "user_net:data", "--out", "run", *budget, *options, "--quiet")
    assert message in line


def test_methods_may_be_repeated_or_joined() -> None:
    assert seams.split_option(["weight_svd, spatial_svd"]) == seams.split_option(
        ["weight_svd", "spatial_svd"]
    )


def test_a_full_directory_is_refused_before_the_work(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    command = ("compress", "user_net:net", "user_net:data", "--macs", "0.5", "--out", "full")
    assert "--out full is not empty; give another directory or --overwrite" in _refused(*command)
    assert "--out full holds files but no saved model to replace" in _refused(*command, "--overwrite")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    assert "--out model holds files but no saved model to replace" in _refused("demo", "--out", ".")
    assert "--out full/thesis.txt is a file; give a directory" in _refused(*command[:-1], "full/thesis.txt")
    assert (full / "thesis.txt").read_text() == "mine"


def test_env_says_what_a_bug_report_needs() -> None:
    done = _run("env", "--json")
    facts = json.loads(done.stdout)
    assert facts["slimrank"] == sr.__version__
    assert {"python", "torch", "numpy", "scipy", "safetensors", "platform", "threads", "cuda"} <= set(facts)
    text = _run("env").stdout
    assert all(name in text for name in facts)


def test_version() -> None:
    assert _run("--version").stdout == f"slimrank {sr.__version__}\n"


def test_python_runs_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["slimrank", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("slimrank", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"slimrank {sr.__version__}\n"
    program = [sys.executable, "-m", "slimrank"]
    done = subprocess.run([*program, "stduy"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: slimrank [OPTIONS]")


def test_every_command_has_help_and_the_common_flags() -> None:
    for name in seams.command_names():
        done = _run(name, "--help")
        assert done.exit_code == 0
        assert "--json" in done.stdout
        assert "--traceback" in done.stdout


def test_the_help_lists_each_command_with_the_first_sentence_of_its_own_help() -> None:
    for name in seams.command_names():
        assert seams.told_help(name) == seams.command(name).get_short_help_str(limit=1000)
    listed = _run("--help").stdout.partition("Commands:")[2].splitlines()[1:]
    assert [line.split()[0] for line in listed] == sorted(seams.command_names())


def test_help_imports_no_torch_and_commands_let_waiting_threads_sleep(tmp_path: Path) -> None:
    # Torch that tells, when it is imported, how OpenMP is to wait.
    (tmp_path / "torch.py").write_text("import os\nraise SystemExit(os.environ['OMP_WAIT_POLICY'])\n")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    for policy in ("PASSIVE", "ACTIVE"):
        environment |= {"PYTHONPATH": path} | ({} if policy == "PASSIVE" else {"OMP_WAIT_POLICY": policy})
        program = [sys.executable, "-m", "slimrank"]
        shown = subprocess.run([*program, "--help"], capture_output=True, check=False, env=environment)
        assert (shown.returncode, shown.stderr) == (0, b"")
        done = subprocess.run([*program, "env"], capture_output=True, check=False, text=True, env=environment)
        assert (done.returncode, done.stderr.strip()) == (1, policy)


def test_plans_are_compared_without_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    study = sr.study(model, [torch.randn(4, 8)] * 2, data_free=True, progress=False)
    for name, macs in (("a.json", 0.9), ("b.json", 0.6)):
        study.plan(macs=macs, multiple_of=1).save(tmp_path / name)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = subprocess.run(
        [sys.executable, "-m", "slimrank", "diff", "a.json", "b.json"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.json (this), b.json (other)" in done.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    done = _run("stduy")
    assert done.exit_code == 2
    assert "No such command 'stduy'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("args", [("--help",), ("plan", "--help"), ("env",)])
def test_a_closed_pipe_is_quiet_and_no_bug(args: tuple[str, ...]) -> None:
    unread, written = os.pipe()
    os.close(unread)
    done = subprocess.run(
        [sys.executable, "-m", "slimrank", *args],
        stdout=written,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(written)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_pipe_of_an_error_is_no_bug() -> None:
    unread, written = os.pipe()
    os.close(unread)
    done = subprocess.run(
        [sys.executable, "-m", "slimrank", "explain", "no_run", "fc"],
        stdout=subprocess.PIPE,
        stderr=written,
        check=False,
    )
    os.close(written)
    assert (done.returncode, done.stdout) == (141, b"")


def test_another_closed_pipe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise BrokenPipeError(32, "of a worker")

    monkeypatch.setattr(sr.Study, "load", breaks)
    done = _run("pareto", "run")
    assert done.exit_code == 1
    assert "of a worker" in done.stderr
