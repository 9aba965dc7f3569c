# SPDX-License-Identifier: Apache-2.0
"""What the pages promise: the quick start runs, links lead somewhere, no error is missing."""

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import slimrank
from slimrank import _errors

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md")])


def _run_in(folder: Path, code: str) -> list[str]:
    """What a script prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _quick_start(page: str) -> str:
    text = (_ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"## Quick start\s+```python\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None, f"{page} has no quick start"
    return block[1]


def test_readme_and_docs_show_the_same_quick_start() -> None:
    assert _quick_start("README.md") == _quick_start("docs/index.md")


def test_quick_start_is_short() -> None:
    assert len(_quick_start("docs/index.md").splitlines()) <= 20


@pytest.mark.slow
def test_quick_start_runs(tmp_path: Path) -> None:
    code = _quick_start("docs/index.md")
    # Less data, one method and a coarser search: the same in a tenth of the time.
    for call, faster in (
        ("calibration_batches()  ", "calibration_batches(16)[:2]"),
        ("study(model, batches)", "study(model, batches, effort='fast', methods=('weight_svd',))"),
        ("max_drop=0.02)", "max_drop=0.5, tolerance=0.5)"),
    ):
        assert call in code
        code = code.replace(call, faster)
    *_, half, small = _run_in(tmp_path, code)
    assert float(half.split()[0]) <= 0.5
    assert 0 < float(small.split()[0]) <= 1
    assert (tmp_path / "compressed" / "model.safetensors").is_file()
    assert (tmp_path / "report.html").is_file()


def _blocks(page: str) -> list[str]:
    text = (_ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def _export_blocks() -> list[str]:
    """Those that need no OpenVINO."""
    return [block for block in _blocks("export.md") if "openvino" not in block]


# Less data and one plan only: the same in a tenth of the time.
_FAST_EXPORT = """
import slimrank as sr
from slimrank.demo import build, calibration_batches

result = sr.compress(build(), calibration_batches()[:1], macs=0.5, compete=False, methods=("weight_svd",))
"""


def test_readme_and_page_show_the_same_way_to_a_file() -> None:
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## From a model to a file\s.*?```python\n(.*?)```", readme, flags=re.DOTALL)
    assert block is not None
    assert block[1] == _export_blocks()[0]
    assert len(block[1].splitlines()) <= 10


@pytest.mark.slow
def test_examples_of_export_run(tmp_path: Path) -> None:
    code = "\n".join(_export_blocks())
    # Less data and one plan only: the same in a tenth of the time.
    for call, faster in (
        ("calibration_batches()  ", "calibration_batches()[:1]"),
        ("macs=0.5)", "macs=0.5, compete=False, methods=('weight_svd',))"),
    ):
        assert call in code
        code = code.replace(call, faster)
    said = _run_in(tmp_path, code)
    assert said[0].startswith("model.onnx (onnx): ")
    assert said[-3:] == ["torch.Size([64, 47])", "images ['batch', 1, 32, 32] tensor(float)", "(5, 47)"]
    assert (tmp_path / "model.pt2").is_file()
    # What serve.py prints is what the page says that it printed.
    page = (_ROOT / "docs" / "howto" / "export.md").read_text(encoding="utf-8")
    assert "\n".join(said[-2:]) in page


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_the_example_of_openvino_runs(tmp_path: Path) -> None:
    (block,) = [block for block in _blocks("export.md") if "openvino" in block]
    export = 'result.export("model.xml", format="openvino")\n'
    said = _run_in(tmp_path, _FAST_EXPORT + export + block)
    page = (_ROOT / "docs" / "howto" / "export.md").read_text(encoding="utf-8")
    assert len(said) == 2
    assert "\n".join(said) in page


@pytest.mark.slow
def test_the_example_of_int8_runs(tmp_path: Path) -> None:
    (block,) = _blocks("quantize.md")
    call = "sr.compress(build(), calibration_batches(), macs=0.5)"
    assert call in block
    # Less data and one plan only: the same in a tenth of the time.
    fast = call.replace("calibration_batches()", "calibration_batches()[:1]").replace(
        "macs=0.5", "macs=0.5, compete=False, methods=('weight_svd',)"
    )
    said = _run_in(tmp_path, block.replace(call, fast))
    assert said[0].startswith("model.onnx (onnx, int8): ")
    assert float(said[-1].split()[0]) > 20


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_the_example_of_a_gpu_runs(tmp_path: Path) -> None:
    (block,) = _blocks("gpu.md")
    export = 'result.export("model.pt2", format="torch")\nresult.save("small")\n'
    said = _run_in(tmp_path, _FAST_EXPORT + export + block)
    assert [line.split() for line in said] in ([["cpu", "True"]] * 2, [["cuda", "True"]] * 2)


@pytest.mark.slow
def test_examples_of_outputs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (_ROOT / "docs" / "howto" / "outputs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/howto/outputs.md", "exec"), names)
    shown = capsys.readouterr().out
    # The notes on the page are those that the study writes.
    notes = re.search(r"```\n(outputs: .*?)```", page, flags=re.DOTALL)
    assert notes is not None
    assert notes[1] in shown
    for keyword in ("outputs=", "likelihood=", "weights=", "loss=", ".agreement"):
        assert any(keyword in block for block in blocks), keyword
    # Each weight moved the error the way the page says.
    light, heavy = re.findall(r"^{'cls': [\d.]+} {'cls': ([\d.]+), 'box': [\d.]+}$", shown, re.MULTILINE)
    assert float(heavy) < float(light)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(_ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_error_is_on_its_page_with_its_standard_type() -> None:
    rows = (_ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    listed = {
        name: bases for name, bases in re.findall(r"^\| `(\w+)` \| (.+?) \|", "\n".join(rows), re.MULTILINE)
    }
    errors = {name: error for name, error in inspect.getmembers(_errors, inspect.isclass)}
    assert set(listed) == set(errors)
    for name, error in errors.items():
        bases = {base.__name__ for base in error.__bases__} - {"SlimrankError"}
        assert set(re.findall(r"`(\w+)`", listed[name])) == bases, name


def _args(call: Callable[..., object]) -> set[str]:
    """Parameters that a docstring explains itself."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(call) or "", re.MULTILINE | re.DOTALL)
    assert section is not None, f"{call} explains no parameter"
    return set(re.findall(r"^    (\w+): ", section[1], re.MULTILINE))


def _explained_in(call: Callable[..., object], other: str) -> set[str]:
    """Parameters that a docstring leaves to another one."""
    text = " ".join((inspect.getdoc(call) or "").split())
    sentence = re.search(rf"These(?: arguments)? are explained in ``{re.escape(other)}``: ([\w`, ]+)\.", text)
    return set() if sentence is None else set(re.findall(r"``(\w+)``", sentence[1]))


@pytest.mark.parametrize("call", [slimrank.study, slimrank.compress, slimrank.apply, slimrank.Study.plan])
def test_every_argument_is_explained_once(call: Callable[..., object]) -> None:
    parameters = inspect.signature(call).parameters
    by_study, by_plan = _explained_in(call, "slimrank.study"), _explained_in(call, "Study.plan")
    assert sorted([*_args(call), *by_study, *by_plan]) == sorted(parameters.keys() - {"self"})
    for names, other in ((by_study, slimrank.study), (by_plan, slimrank.Study.plan)):
        theirs = inspect.signature(other).parameters
        assert names <= _args(other)
        assert [name for name in names if parameters[name].default != theirs[name].default] == []
