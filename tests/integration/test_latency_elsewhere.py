# SPDX-License-Identifier: Apache-2.0
"""Latency tables of another machine: prepared here, measured by a script alone, read back."""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import seams
import slimrank as sr
from slimrank.deploy import SCRIPT_PATH, write_timed
from slimrank.forward import as_batch
from slimrank.latency import build_variant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed"),
]

# Runs a script as a machine would on which neither is installed.
_BARE = """
import runpy, sys
for name in ("torch", "slimrank", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Is killed when it has told of two files.
_KILLED = """
import os, signal, sys
class Dying:
    lines = 0
    def write(self, line):
        self.lines += 1
        if self.lines == 2:
            os.kill(os.getpid(), signal.SIGKILL)
sys.stderr = Dying()
"""


def script(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the script of a folder in a process of its own."""
    command = [sys.executable, "-c", before + _BARE, str(folder / "measure.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def measured(cnn_study: sr.Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A folder that was measured by its script, which was killed after two files and run again.

    With what collecting said in between, and what the second run said.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "there"
    with pytest.MonkeyPatch.context() as patch:
        seams.measure_fewer_variants(patch)
        assert sr.prepare_latency(cnn_study, folder, batch=4, progress=False) == folder
    with pytest.raises(
        sr.LatencyError, match=r"measured.json is missing: nothing was measured yet; run measure"
    ):
        sr.collect_latency(cnn_study, folder)
    assert script(folder, _KILLED).returncode == -signal.SIGKILL
    with pytest.raises(sr.LatencyError) as refused:
        sr.collect_latency(cnn_study, folder)
    second = script(folder)
    assert second.returncode == 0, second.stderr
    return folder, second.stderr.splitlines(), str(refused.value)


Measured = tuple[Path, list[str], str]


@pytest.fixture
def copy(measured: Measured, tmp_path: Path) -> Path:
    """A copy of the folder, with what was measured."""
    return Path(shutil.copytree(measured[0], tmp_path / "copy"))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_script_that_was_killed_goes_on(measured: Measured) -> None:
    folder, said, refused = measured
    assert re.search(r"measured.json: 2 of 5 files are measured, 'variant0' is not; run measure.py", refused)
    assert re.fullmatch(r"goes on: 2 of 5 files are measured", said[0])
    assert "5 of 5, variant2: " in said[-2]
    assert "of the original's time (spread" in said[-2]
    assert said[-1].endswith("copy it back, and call slimrank.collect_latency")
    names = {"original", "step", "variant0", "variant1", "variant2"}
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.onnx" for name in names),
        *("input.npz", "step.npz", "prepared.json", "measured.json", "measure.py"),
    }
    assert set(json.loads((folder / "measured.json").read_text())["files"]) == names


def test_the_table_is_that_of_the_other_machine(copy: Path, cnn_study: sr.Study, tmp_path: Path) -> None:
    changed(copy / "measured.json", lambda content: content.update(machine="abacus", onnxruntime="9.9"))
    path = tmp_path / "table.json"
    table = sr.collect_latency(cnn_study, copy, path=path)
    assert sr.Latencies.load(path) == table
    assert (table.machine, table.versions["onnxruntime"]) == ("abacus", "9.9")
    assert table.versions["torch"] == torch.__version__
    assert (table.backend, table.threads, table.batch, table.precision) == ("onnxruntime", 1, 4, "float32")
    assert set(table.times.layers) == {"stem", "conv", "last", "fc"}
    plan = cnn_study.plan(latency=0.9, latencies=table)
    assert plan.latency is not None
    assert plan.latency.predicted <= 0.9


def test_a_study_without_its_model_collects(copy: Path, cnn_study: sr.Study, tmp_path: Path) -> None:
    cnn_study.save(tmp_path / "study")
    table = sr.collect_latency(sr.Study.load(tmp_path / "study"), copy)
    assert table == sr.collect_latency(cnn_study, copy)


def test_both_ways_find_the_same_parts(measured: Measured, cnn_study: sr.Study, tmp_path: Path) -> None:
    record = seams.record_of(sr.collect_latency(cnn_study, measured[0]))
    for number, entry in enumerate(record.variants):
        variant = entry.step(cnn_study.structure)
        network = build_variant(seams.original_of(cnn_study), variant, has_bias=True, seed=number)
        batch = as_batch(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        folder = tmp_path / str(number)
        here = seams.parts_of(
            write_timed(network, [batch], folder, format="onnx", batch=4, threads=1).nodes(), variant
        )
        assert set(here.others) == set(entry.parts.others)
        assert {name: len(times) for name, times in here.factors.items()} == {
            name: len(times) for name, times in entry.parts.factors.items()
        }
        assert entry.ratio > 0
        assert entry.parts.total > 0
    assert any(entry.settings for entry in record.variants)
    assert any(entry.kept for entry in record.variants)


def test_values_of_nodes_are_read_as_onnx_reads_them(measured: Measured) -> None:
    onnx = pytest.importorskip("onnx")
    for path in measured[0].glob("*.onnx"):
        nodes = onnx.load(path).graph.node
        assert len(nodes) > 3
        assert seams.values_by_node(path.read_bytes()) == {node.name: tuple(node.output) for node in nodes}
    with pytest.raises(ValueError, match="none of an ONNX file"):
        seams.values_by_node(b"\x07no file")


def test_the_script_runs_with_old_pythons_and_needs_two_packages() -> None:
    tree = ast.parse(SCRIPT_PATH.read_text(), feature_version=(3, 10))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    assert names.isdisjoint({"tomllib", "zoneinfo"})
    assert "from __future__ import annotations" in SCRIPT_PATH.read_text()


def test_the_oldest_onnxruntime_is_that_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["export"]
    assert f"onnxruntime>={seams.OLDEST_ONNXRUNTIME}" in extra


def measure(folder: Path, version: str | None = None) -> list[str]:
    """Runs the script's function in this process, with onnxruntime called another version."""
    ort = pytest.importorskip("onnxruntime")
    if version is not None:
        ort = SimpleNamespace(**{**vars(ort), "__version__": version})
    said: list[str] = []
    seams.measure_folder(folder, ort, said.append)
    return said


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda folder: (folder / "variant1.onnx").unlink(),
            r"variant1.onnx is missing; copy the whole folder",
        ),
        (
            lambda folder: (folder / "input.npz").write_bytes(b"cut"),
            r"input.npz has 3 bytes, not \d+; copy it",
        ),
        (
            lambda folder: (folder / "prepared.json").unlink(),
            r"prepared.json is missing; copy the whole folder",
        ),
        (
            lambda folder: (folder / "prepared.json").write_text("{"),
            r"prepared.json is damaged .*; copy the folder",
        ),
        (
            lambda folder: changed(folder / "prepared.json", lambda content: content.update(format=9)),
            "has format 9, and this script reads 2; take the measure.py that came with it",
        ),
        (
            lambda folder: (folder / "measured.json").write_text("{}"),
            "measured.json is damaged .*; delete it and",
        ),
        (
            lambda folder: changed(
                folder / "measured.json", lambda content: content.update(machine="abacus")
            ),
            r"with another machine \(abacus there, .*cores.* here\); delete it",
        ),
        (
            lambda folder: changed(
                folder / "measured.json", lambda content: content.update(onnxruntime="1.23")
            ),
            r"with another onnxruntime \(1.23 there, ",
        ),
    ],
)
def test_the_script_refuses_by_name(copy: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(copy)
    with pytest.raises(seams.MeasureError, match=told):
        measure(copy)


def test_the_script_refuses_an_old_onnxruntime_and_files_that_it_cannot_read(copy: Path) -> None:
    with pytest.raises(
        seams.MeasureError, match=r"onnxruntime 1.9.0 is too old; it takes 1.22 or later: pip"
    ):
        measure(copy, "1.9.0")
    (copy / "measured.json").unlink()
    path = copy / "original.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(seams.MeasureError, match=r"refuses original.onnx: .*; copy the folder anew, or pip"):
        measure(copy)
    assert not (copy / "measured.json").exists()


def test_the_script_tells_what_is_wrong_in_one_line(copy: Path) -> None:
    (copy / "step.npz").unlink()
    run = script(copy)
    assert run.returncode == 1
    told = f"measure.py: {copy / 'step.npz'} is missing; copy the whole folder that prepare_latency wrote\n"
    assert run.stderr == told


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (
            "measured",
            lambda content: content.update(format=9),
            "measured.json has format 9, this version reads 2",
        ),
        ("measured", lambda content: content.update(more=1), "measured.json: .*unknown key 'more'"),
        (
            "measured",
            lambda content: content.update(prepared="0"),
            "measured.json: it was measured in another fol",
        ),
        (
            "measured",
            lambda content: content["files"].pop("step"),
            "4 of 5 files are measured, 'step' is not",
        ),
        ("measured", lambda content: content["files"]["variant1"].pop("ratio"), r"\['variant1'\].*'ratio'"),
        (
            "measured",
            lambda content: content["files"]["variant1"].update(ratio=0),
            r"variant1'\]: it holds no times",
        ),
        (
            "measured",
            lambda content: content["files"]["step"].update(nodes=[]),
            r"step'\]: it holds no times",
        ),
        (
            "measured",
            lambda content: content["files"]["original"]["nodes"][0].update(nanoseconds="soon"),
            r"\['original'\]: \"soon\" is no number",
        ),
        (
            "prepared",
            lambda content: content.update(format=9),
            "prepared.json has format 9, this version reads 2",
        ),
        (
            "prepared",
            lambda content: content.update(seconds=9),
            "prepared.json: it was altered after it was written",
        ),
        ("prepared", lambda content: content.pop("files"), "prepared.json: .*'files'"),
    ],
)
def test_collecting_refuses_by_name(
    copy: Path, cnn_study: sr.Study, file: str, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    changed(copy / f"{file}.json", change)
    with pytest.raises(sr.LatencyError, match=told):
        sr.collect_latency(cnn_study, copy)


def test_collecting_refuses_what_is_cut_short_or_not_there(copy: Path, cnn_study: sr.Study) -> None:
    path = copy / "measured.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(sr.LatencyError, match=r"measured.json: .*"):
        sr.collect_latency(cnn_study, copy)
    (copy / "prepared.json").unlink()
    with pytest.raises(sr.FileError, match=r"prepared.json: cannot be read .*; give the folder that prepare"):
        sr.collect_latency(cnn_study, copy)
    with pytest.raises(sr.OptionError, match="study is a str; give what"):
        sr.collect_latency("study", copy)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="folder is a int; give a path"):
        sr.collect_latency(cnn_study, 3)  # type: ignore[arg-type]


def test_a_folder_of_another_study_is_named(measured: Measured, nets: ModuleType) -> None:
    other = sr.study(nets.mlp(), nets.noise(24), data_free=True, progress=False)
    with pytest.raises(
        sr.LatencyError, match=r"there: it was prepared for a study with other sizes of the inp"
    ):
        sr.collect_latency(other, measured[0])
    fewer = sr.study(
        nets.cnn(), nets.noise(1, 8, 8, n=4), methods=("weight_svd",), data_free=True, progress=False
    )
    with pytest.raises(
        sr.LatencyError, match=r"methods \(weight_svd, spatial_svd, .* there, weight_svd here\)"
    ):
        sr.collect_latency(fewer, measured[0])


def test_folders_that_cannot_be_are_refused_and_nothing_is_left(
    measured: Measured, cnn_study: sr.Study, tmp_path: Path
) -> None:
    with pytest.raises(sr.NotEmptyError, match="is not empty; give a new folder"):
        sr.prepare_latency(cnn_study, measured[0], progress=False)
    with pytest.raises(sr.FileError, match=r"cannot be written .*; give a new folder in an existing one"):
        sr.prepare_latency(cnn_study, tmp_path / "no" / "there", progress=False)
    with pytest.raises(sr.OptionError, match="batch=0; give a whole number"):
        sr.prepare_latency(cnn_study, tmp_path / "there", batch=0, progress=False)
    with pytest.raises(sr.OptionError, match="study is a str; give a Study"):
        sr.prepare_latency("study", tmp_path / "there", progress=False)  # type: ignore[arg-type]
    cnn_study.save(tmp_path / "study")
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.prepare_latency(sr.Study.load(tmp_path / "study"), tmp_path / "there", progress=False)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.view(8, 24)).relu()

    study = sr.study(Fixed().eval(), [torch.randn(8, 24)], data_free=True, progress=False)
    with pytest.raises(sr.SlimrankError, match=r"batch=3: .* takes batches of \d only; give batch=\d"):
        sr.prepare_latency(study, tmp_path / "there", batch=3, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def test_a_runtime_that_is_missing_here_is_named_with_the_line_for_pip(
    cnn_study: sr.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(sr.MissingPackageError, match=r"onnxruntime.*pip install 'slimrank\[export\]'"):
        sr.prepare_latency(cnn_study, tmp_path / "there", progress=False)


def test_both_steps_from_the_command_line(
    measured: Measured, copy: Path, cnn_study: sr.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn_study.save(tmp_path / "run")
    net = Path(__file__).parent / "nets.py"
    seams.measure_fewer_variants(monkeypatch)
    command = ["latency", str(tmp_path / "run")]

    def run(*more: str) -> Any:  # noqa: ANN401 - click's own
        return CliRunner().invoke(seams.cli, [*command, *more])

    there = str(tmp_path / "there")
    done = run("--model", f"{net}:cnn", "--prepare", there, "--batch", "4", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert "run `python measure.py` in it, copy measured.json back" in done.stdout
    # The draw is the same, so what was measured belongs to both but for the digest of the files.
    assert {path.name for path in Path(there).iterdir()} == {
        path.name for path in measured[0].iterdir() if path.name != "measured.json"
    }
    table = tmp_path / "table.json"
    done = run("--collect", str(copy), "--out", str(table))
    assert done.exit_code == 0, done.stderr
    assert f"Kept in {table}." in done.stdout
    assert sr.Latencies.load(table) == sr.collect_latency(cnn_study, copy)
    for options, told in [
        (["--prepare", there, "--collect", there], "are two steps; give one of them"),
        (["--prepare", there, "--out", "t.json"], "--prepare takes no --out"),
        (["--collect", there], "give --out T.json"),
        (["--out", "t.json"], "give --model REF"),
    ]:
        refused = run(*options)
        assert refused.exit_code == 2
        assert told in " ".join(refused.stderr.split())
