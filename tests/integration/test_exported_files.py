# SPDX-License-Identifier: Apache-2.0
"""Results and saved models name the files that they were exported to."""

import copy
import json
import pickle
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import stored_net
import torch
from click.testing import CliRunner
from torch import nn

import seams
import slimrank as sr

_NAMES = {"model.safetensors", "plan.json", "manifest.json", "report.html"}


def _exports(directory: Path) -> list[dict[str, object]]:
    facts: list[dict[str, object]] = json.loads((directory / "manifest.json").read_text())["exports"]
    return facts


def _report(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def result(cnn_result: sr.Result) -> sr.Result:
    """A copy that was not exported yet: a result keeps what it was exported to."""
    return replace(copy.deepcopy(cnn_result), _exports=[])


class TestResults:
    def test_manifest_and_report_name_the_files(
        self, result: sr.Result, nets: ModuleType, tmp_path: Path
    ) -> None:
        exported = result.export(tmp_path / "model.pt2", format="torch", batch=2)
        result.save(tmp_path / "saved")
        (named,) = _exports(tmp_path / "saved")
        assert (named["file"], named["format"], named["bytes"]) == ("../model.pt2", "torch", exported.bytes)
        for key in ("before_bytes", "max_error", "agreement", "before_ms", "after_ms", "batch", "threads"):
            assert named[key] == getattr(exported, key)
        assert "<th>../model.pt2</th>" in _report(tmp_path / "saved")
        assert str(tmp_path) not in (tmp_path / "saved" / "manifest.json").read_text()
        assert str(tmp_path) not in _report(tmp_path / "saved")
        assert {path.name for path in (tmp_path / "saved").iterdir()} == _NAMES
        assert isinstance(sr.load(tmp_path / "saved", model=nets.cnn()), nn.Module)

    @pytest.mark.slow
    def test_the_size_of_the_original_is_known(
        self, result: sr.Result, nets: ModuleType, tmp_path: Path
    ) -> None:
        exported = result.export(tmp_path / "model.onnx")
        alone = sr.export(nets.cnn(), tmp_path / "first.onnx", nets.noise(1, 8, 8))
        assert exported.before_bytes == (tmp_path / "first.onnx").stat().st_size
        assert f" MB, original {alone.bytes / 1e6:.3f} MB\n" in exported.summary()
        assert alone.before_bytes is None
        assert "original" not in alone.summary().replace(str(tmp_path), "")

    @pytest.mark.slow
    def test_a_report_names_them_from_its_own_folder(self, result: sr.Result, tmp_path: Path) -> None:
        result.export(tmp_path / "model.pt2", format="torch")
        result.report(tmp_path / "page.html")
        assert "<th>model.pt2</th>" in (tmp_path / "page.html").read_text()

    def test_the_working_directory_may_change(
        self, result: sr.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result.export("model.pt2", format="torch")
        Path("inner").mkdir()
        monkeypatch.chdir("inner")
        result.save("saved")
        assert _exports(Path("saved"))[0]["file"] == "model.pt2"

    @pytest.mark.slow
    def test_the_same_file_again_takes_its_place(self, result: sr.Result, tmp_path: Path) -> None:
        for batch in (1, 3):
            result.export(tmp_path / "model.pt2", format="torch", batch=batch)
        result.export(tmp_path / "model.onnx")
        result.save(tmp_path / "saved")
        assert [(file["file"], file["batch"]) for file in _exports(tmp_path / "saved")] == [
            ("../model.pt2", 3),
            ("../model.onnx", 1),
        ]

    def test_a_deleted_file_breaks_nothing(self, result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        result.export(tmp_path / "model.pt2", format="torch")
        (tmp_path / "model.pt2").unlink()
        result.save(tmp_path / "saved")
        assert len(_exports(tmp_path / "saved")) == 1
        sr.load(tmp_path / "saved", model=nets.cnn())

    def test_a_failed_export_is_not_named(self, result: sr.Result, tmp_path: Path) -> None:
        with pytest.raises(sr.ExportError):
            result.export(tmp_path / "model.pt2", format="onnx")
        result.save(tmp_path / "saved")
        assert _exports(tmp_path / "saved") == []

    @pytest.mark.slow
    def test_copies_know_them_and_other_weights_do_not(self, result: sr.Result, tmp_path: Path) -> None:
        result.export(tmp_path / "model.pt2", format="torch")
        restored: sr.Result = pickle.loads(pickle.dumps(result))
        noted = result.with_notes([], {})
        trained = result.with_model(copy.deepcopy(result.model))
        noted.export(tmp_path / "more.onnx")
        for number, (known, wanted) in enumerate([(result, 1), (restored, 1), (noted, 2), (trained, 0)]):
            known.save(tmp_path / str(number))
            assert len(_exports(tmp_path / str(number))) == wanted
        assert "exports" not in repr(result)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory holds names_net.py, for references."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = (Path(__file__).parent / "nets.py").read_text(encoding="utf-8")
    Path("names_net.py").write_text(f"{text}\ndef batches():\n    return noise(1, 8, 8)\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "names_net", raising=False)


def _run(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(seams.cli, args, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return " ".join((done.stdout if code == 0 else done.stderr).split())


def _export(file: str, *options: str, net: str = "names_net.py:cnn") -> str:
    options = ("--model", net, "--batches", "names_net.py:batches", "--format", "torch", *options)
    return _run("export", "small", file, *options)


class TestExportCommand:
    @pytest.fixture(autouse=True)
    def saved(self, folder: None, result: sr.Result) -> None:
        result.save("small")

    def test_the_saved_model_names_the_file(self, nets: ModuleType) -> None:
        before = _contents(Path("small"))
        assert "does not name" not in _export("small.pt2")
        (named,) = _exports(Path("small"))
        assert named["file"] == "../small.pt2"
        assert named["bytes"] == Path("small.pt2").stat().st_size
        assert "<th>../small.pt2</th>" in _report(Path("small"))
        after = _contents(Path("small"))
        assert after.keys() == _NAMES
        assert all(after[name] == before[name] for name in ("model.safetensors", "plan.json"))
        sr.load("small", model=nets.cnn())

    @pytest.mark.slow
    def test_again_and_into_the_directory(self) -> None:
        _export("small.pt2")
        _export("small/inner.pt2")
        _export("small.pt2", "--batch", "3")
        assert [(file["file"], file["batch"]) for file in _exports(Path("small"))] == [
            ("inner.pt2", 1),
            ("../small.pt2", 3),
        ]
        assert _report(Path("small")).count("<h2>Exported files</h2>") == 1

    def test_without_a_report_the_manifest_names_it(self) -> None:
        Path("small/report.html").unlink()
        assert "does not name" not in _export("small.pt2")
        assert len(_exports(Path("small"))) == 1
        assert not Path("small/report.html").exists()

    def test_a_manifest_of_before(self) -> None:
        manifest = json.loads(Path("small/manifest.json").read_text())
        del manifest["exports"]
        Path("small/manifest.json").write_text(json.dumps(manifest))
        _export("small.pt2")
        assert len(_exports(Path("small"))) == 1

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("report.html", "<p>mine</p>", "no page that slimrank wrote"),
            ("report.html", b"\xff", "no text"),
            ("manifest.json", {"exports": 3}, "exports: 3 is no list"),
            ("manifest.json", {"exports": [{"file": "a"}]}, "'format' is missing"),
        ],
    )
    def test_what_cannot_be_changed_stays_and_is_told(
        self, name: str, text: object, message: str, nets: ModuleType
    ) -> None:
        path = Path("small") / name
        if isinstance(text, dict):
            text = json.dumps({**json.loads(path.read_text()), **text})
        path.write_bytes(text if isinstance(text, bytes) else str(text).encode())
        before = _contents(Path("small"))
        said = _export("small.pt2")
        assert "small: the saved model does not name this file, and is as it was: " in said
        assert message in said
        assert Path("small.pt2").is_file()
        assert _contents(Path("small")) == before
        sr.load("small", model=nets.cnn())

    def test_a_manifest_of_another_version_is_refused_before_the_work(self) -> None:
        path = Path("small/manifest.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
        before = _contents(Path("small"))
        options = ("--model", "names_net.py:cnn", "--batches", "names_net.py:batches")
        assert "format 2" in _run("export", "small", "small.onnx", *options, code=2)
        assert _contents(Path("small")) == before
        assert not Path("small.onnx").exists()

    @pytest.mark.parametrize("refused", ["report.html", "manifest.json"])
    def test_a_directory_that_cannot_be_written_is_as_it_was(
        self, refused: str, nets: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = Path.replace

        def no_rights(path: Path, target: Path) -> Path:
            if Path(target).name == refused:
                raise PermissionError(13, "Permission denied", str(target))
            return plain(path, target)

        before = _contents(Path("small"))
        monkeypatch.setattr(Path, "replace", no_rights)
        said = _export("small.pt2")
        assert "does not name this file, and is as it was" in said
        assert "Permission denied" in said
        assert _contents(Path("small")) == before
        assert torch.export.load("small.pt2").module()(nets.noise(1, 8, 8)[0]) is not None
        sr.load("small", model=nets.cnn())


def test_a_directory_of_an_earlier_version_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stored_net.STORED / "model", "small")
    model = sr.load("small", model=stored_net.stored_model())
    exported = sr.export(model, "model.pt2", stored_net.stored_batches(), format="torch")
    seams.add_export(Path("small"), exported)
    assert _exports(Path("small"))[0]["file"] == "../model.pt2"
    sr.load("small", model=stored_net.stored_model())


class TestCompressCommand:
    _COMPRESS: Sequence[str] = (
        *("compress", "names_net.py:cnn", "names_net.py:batches", "--out", "small", "--quiet", "--macs"),
        *("0.8", "--no-compete", "--methods", "weight_svd", "--export", "m.pt2", "--export-format", "torch"),
    )

    @pytest.mark.slow
    def test_saved_model_report_and_json_name_the_file(self, folder: None) -> None:
        facts = json.loads(
            CliRunner().invoke(seams.cli, [*self._COMPRESS, "--report", "page.html", "--json"]).stdout
        )
        (named,) = _exports(Path("small"))
        assert named["file"] == "../m.pt2"
        assert [file["file"] for file in facts["exports"]] == ["../m.pt2"]
        assert facts["exported"]["before_bytes"] == named["before_bytes"] > named["bytes"]  # type: ignore[operator]
        assert "<th>../m.pt2</th>" in _report(Path("small"))
        assert "<th>m.pt2</th>" in Path("page.html").read_text()

    def test_a_directory_that_cannot_be_changed_any_more_is_told(
        self, folder: None, nets: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_room(*_: object) -> None:
            raise sr.FileError("small/manifest.json cannot be written (no room)")

        seams.break_update(monkeypatch, no_room)
        said = _run(*self._COMPRESS)
        assert "does not name this file, and is as it was: small/manifest.json cannot be written" in said
        assert Path("m.pt2").is_file()
        assert _exports(Path("small")) == []
        sr.load("small", model=nets.cnn())
