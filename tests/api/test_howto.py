# SPDX-License-Identifier: Apache-2.0
"""The code on the how-to pages runs, with less data than the pages say."""

import re
from pathlib import Path

import pytest

import slimrank as sr
from slimrank import demo

_PAGES = Path(__file__).parents[2] / "docs" / "howto"
# The same in a tenth of the time.
_LESS = (
    ("calibration_batches()", "calibration_batches()[:1]"),
    ("in test_batches()", "in test_batches()[:1]"),
    ("max_drop=0.01, score_fn=accuracy", "max_drop=0.01, score_fn=accuracy, tolerance=0.3"),
)


def _blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (_PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def _run(page: str, blocks: list[str], names: dict[str, object]) -> None:
    code = "\n".join(blocks)
    for all_data, less in _LESS:
        code = code.replace(all_data, less)
    exec(compile(code, page, "exec"), names)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a page may use of the code around it."""
    monkeypatch.chdir(tmp_path)
    return {"model": demo.build(), "batches": demo.calibration_batches()[:1], "build": demo.build}


@pytest.mark.slow
def test_the_page_on_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    _run("classifier.md", _blocks("classifier.md"), names)
    result = names["result"]
    assert isinstance(result, sr.Result)
    assert result.keep_ratio("macs") <= 0.5
    assert (tmp_path / "half" / "model.safetensors").is_file()


def test_the_page_on_maps(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    _run("maps.md", _blocks("maps.md"), names)
    result = names["result"]
    assert isinstance(result, sr.Result)
    assert result.agreement is not None
    assert list(result.agreement) == ["classes", "depth"]
    rows = capsys.readouterr().out.splitlines()
    # What the page says: the share of equal pixels of classes, the cosine of numbers.
    (_, _, top1, no_cosine), (_, _, no_top1, cosine) = (row.split() for row in rows)
    assert (no_cosine, no_top1) == ("None", "None")
    assert 0 < float(top1) <= 1
    assert 0 < float(cosine) <= 1


@pytest.mark.slow
def test_the_page_on_a_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    _run("transformer.md", _blocks("transformer.md"), names)
    result, study = names["result"], names["study"]
    assert isinstance(result, sr.Result)
    assert isinstance(study, sr.Study)
    assert result.keep_ratio("macs") <= 0.5
    shown = capsys.readouterr().out
    # Heads and neurons form groups, and the stream between the blocks stays because of its norms.
    assert "self_attn" in shown
    assert "linear1" in shown
    assert "layer_norm" in shown.split("Stay whole")[1]


@pytest.mark.slow
def test_the_page_on_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    _run("own_evaluation.md", _blocks("own_evaluation.md"), names)
    small = names["small"]
    assert isinstance(small, sr.Result)
    before, *_ = capsys.readouterr().out.split()
    assert names["accuracy"](small.model) >= float(before) - 0.01  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["torch_pruning.md", "nncf.md"])
def test_the_half_of_slimrank_runs_on_pages_for_others(page: str, names: dict[str, object]) -> None:
    blocks = _blocks(page)
    for block in blocks:
        compile(block, page, "exec")
    ours = [block for block in blocks if block.startswith("# slimrank")]
    # Side by side: every call of theirs has one of ours.
    assert len(ours) == len(blocks) / 2
    _run(page, ours, names)
    assert isinstance(names["result"], sr.Result)
