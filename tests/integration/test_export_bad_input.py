# SPDX-License-Identifier: Apache-2.0
"""What cannot be exported is refused, in Python and on the command line, and nothing is left behind."""

import copy
import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr

_NET = """
import torch
from torch import nn


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.linear, self.result = nn.Linear(24, 4), result

    def forward(self, x):
        y = self.linear(x)
        return y if self.result is Returns else self.result


class Inner(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x[:, None] * x[:, :, None])


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.inner = nn.Linear(24, 4), Inner()

    def forward(self, x):
        return self.inner(self.linear(x))


def net(): return Returns(Returns)
def word(): return Returns("word")
def none(): return Returns(None)
def number(): return Returns(3.5)
def outer(): return Outer()
def half(): return net().bfloat16()
def batches(): return [torch.randn(6, 24) for _ in range(2)]
def halves(): return [batch.bfloat16() for batch in batches()]
def nothing(): return []
def empty(): return [torch.randn(6, 24), torch.randn(0, 24)]
def once(): return (batch for batch in batches())
def shorter(): return [torch.randn(6, 23)]
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module ``bad_net``; with it lie a file ``old.onnx`` and a folder ``folder.onnx``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_net", raising=False)
    Path("bad_net.py").write_text(_NET, encoding="utf-8")
    Path("old.onnx").write_text("earlier")
    Path("folder.onnx").mkdir()
    return importlib.import_module("bad_net")


def _files() -> dict[str, str]:
    """What lies in the working directory, but for what Python keeps of modules."""
    return {
        path.name: path.read_text() if path.is_file() else "folder"
        for path in Path().iterdir()
        if path.name != "__pycache__"
    }


# Model, file, batches, other options, error, message.
_CASES: Mapping[str, tuple[str, str, str, Mapping[str, object], type[Exception], str]] = {
    "no batch": (
        "net",
        "m.onnx",
        "nothing",
        {},
        sr.BatchesError,
        r"batches is empty; give at least one batch",
    ),
    "an empty batch": (
        "net",
        "m.onnx",
        "empty",
        {},
        sr.BatchesError,
        r"batch 1 holds no sample; leave empty",
    ),
    "batches once": ("net", "m.onnx", "once", {}, sr.BatchesError, r"generator .*; pass list\(batches\)"),
    "other sizes": ("net", "m.onnx", "shorter", {}, sr.BatchesError, r"Returns refuses"),
    "batch 0": (
        "net",
        "m.onnx",
        "batches",
        {"batch": 0},
        sr.OptionError,
        r"batch=0; give a whole number from 1",
    ),
    "threads 0": (
        "net",
        "m.onnx",
        "batches",
        {"threads": 0},
        sr.OptionError,
        r"threads=0; give a whole number",
    ),
    "threads -1": ("net", "m.onnx", "batches", {"threads": -1}, sr.OptionError, r"threads=-1; give a whole"),
    "no suffix": ("net", "m", "batches", {}, sr.ExportError, r"end in \.onnx; give m\.onnx"),
    "a name alone": ("net", ".", "batches", {}, sr.ExportError, r"give a file that ends in \.onnx"),
    "a folder": ("net", "folder.onnx", "batches", {}, sr.FileError, r"is a folder; give the path of a file"),
    "no folder": ("net", "no/m.onnx", "batches", {}, sr.FileError, r"there is no folder no; make it first"),
    "a file as folder": (
        "net",
        "old.onnx/m.onnx",
        "batches",
        {},
        sr.FileError,
        r"there is no folder old\.onnx",
    ),
    "a format": ("net", "m.onnx", "batches", {"format": "onxx"}, sr.UnknownNameError, r"did you mean 'onnx'"),
    "a word": (
        "word",
        "m.onnx",
        "batches",
        {},
        sr.OutputError,
        r"returns a str that holds no tensor.*wrap the",
    ),
    "None": ("none", "m.onnx", "batches", {}, sr.OutputError, r"returns a NoneType that holds no tensor"),
    "a number": ("number", "m.onnx", "batches", {}, sr.OutputError, r"returns a float that holds no tensor"),
    "an operator": (
        *("outer", "old.onnx", "batches", {}, sr.ExportError),
        r"ONNX has no translation of aten\.\S*svd\S* in module inner at .*; take format='torch'",
    ),
    "bfloat16": (
        "half",
        "old.onnx",
        "halves",
        {},
        sr.ExportError,
        r"export model\.float\(\), or take format='torch'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
def test_bad_input_is_refused(case: str, net: ModuleType) -> None:
    model, file, batches, options, error, message = _CASES[case]
    built, there = getattr(net, model)(), _files()
    with pytest.raises(error, match=message):
        sr.export(built, file, getattr(net, batches)(), **options)  # type: ignore[arg-type]
    assert _files() == there


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
def test_the_command_line_refuses_it_too(case: str, net: ModuleType) -> None:
    model, file, batches, options, _, message = _CASES[case]
    there = _files()
    typed = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    args = ["export", f"bad_net:{model}", file, "--batches", f"bad_net:{batches}", *typed]
    done = CliRunner().invoke(seams.cli, args, catch_exceptions=False)
    assert done.exit_code == 2
    assert done.stdout == ""
    said = " ".join(done.stderr.split())
    # There, options are called as they are typed.
    typed_as = re.sub(r"\b(threads|batch|format)=", r"--\1 ", message)
    assert re.search(typed_as, said), said
    assert "Traceback" not in said
    assert _files() == there


@pytest.mark.parametrize("format", seams.FORMATS)
def test_a_missing_package_is_told_with_the_line_for_pip(
    format: str, net: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, there = seams.FORMATS[format], _files()
    for package in row.packages[-1:]:
        monkeypatch.setitem(sys.modules, package, None)
        args = ["bad_net:net", f"m{row.suffix}", "--batches", "bad_net:batches", "--format", format]
        done = CliRunner().invoke(seams.cli, ["export", *args], catch_exceptions=False)
        assert done.exit_code == 2
        assert f"pip install 'slimrank[{row.extra}]'" in " ".join(done.stderr.split())
    assert _files() == there


def test_a_folder_without_rights(net: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rights(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    # As a user without rights sees it: for root, who may run this test, there is no such folder.
    there = _files()
    monkeypatch.setattr(tempfile, "mkdtemp", no_rights)
    with pytest.raises(sr.FileError, match=r"old\.onnx cannot be written .*Permission denied.*with rights"):
        sr.export(net.net(), "old.onnx", net.batches())
    args = ["bad_net:net", "old.onnx", "--batches", "bad_net:batches"]
    done = CliRunner().invoke(seams.cli, ["export", *args], catch_exceptions=False)
    assert (done.exit_code, "Permission denied" in done.stderr) == (2, True)
    assert _files() == there


@pytest.mark.slow
def test_a_batch_of_more_than_there_is(net: ModuleType) -> None:
    exported = sr.export(net.net(), "m.onnx", net.batches(), batch=50)
    assert exported.batch == 50
    session = onnxruntime.InferenceSession("m.onnx")
    assert session.run(None, {"x": torch.zeros(1, 24).numpy()})[0].shape == (1, 4)


@pytest.mark.slow
def test_float16_that_the_runtime_takes(net: ModuleType) -> None:
    exported = sr.export(net.net().half(), "m.onnx", [batch.half() for batch in net.batches()])
    assert 0 <= exported.max_error < 4 * torch.finfo(torch.float16).eps


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_in_train_mode_stays_so(
    format: str, tmp_path: Path, snapshot: Callable[[nn.Module], object]
) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    torch.manual_seed(0)
    model = Trained()
    # Part of a model in eval mode is common while the rest is trained.
    model.body[1].eval()
    before = snapshot(model)
    path = tmp_path / f"m{seams.FORMATS[format].suffix}"
    exported = sr.export(model, path, [torch.randn(6, 24)], format=format)
    assert snapshot(model) == before
    assert (model.training, model.body[1].training, model.body[2].training) == (True, False, True)
    # The file is of eval mode: nothing is dropped.
    assert exported.max_error < 1e-5
    if format == "onnx":
        (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": torch.ones(2, 24).numpy()})
        expected = copy.deepcopy(model).eval()(torch.ones(2, 24))
        torch.testing.assert_close(torch.from_numpy(found), expected.detach(), rtol=1e-4, atol=1e-5)
