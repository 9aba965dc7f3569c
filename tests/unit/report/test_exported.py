# SPDX-License-Identifier: Apache-2.0
"""Exported files on pages, and as JSON that is read back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import seams
import slimrank as sr
from slimrank.files import Json
from slimrank.records import Exported, Int8, Note, Summary
from slimrank.report import (
    export_facts,
    exports_from_facts,
    named_in,
    render_page,
    result_data,
    result_facts,
    with_exported,
    with_file,
)

_FILE = Exported(
    path=Path("a <b>.onnx"),
    format="onnx",
    bytes=761_000,
    before_bytes=1_597_000,
    max_error=3.2e-7,
    agreement=0.99999,
    before_ms=4.994,
    after_ms=2.616,
    before_spread=0.05,
    after_spread=0.07,
    batch=16,
    threads=1,
    notes=(Note(where="x", text="this argument is <2>", is_warning=True),),
)
_ALONE = replace(
    _FILE,
    path=Path("b.pt2"),
    before_bytes=None,
    agreement=None,
    before_ms=None,
    before_spread=None,
    threads=2,
    notes=(),
)
_INT8 = replace(
    _ALONE,
    path=Path("c.onnx"),
    int8=Int8(
        precision="int8",
        divergence=0.002,
        noise_db=31.26,
        layers=("a", "b"),
        kept=("c",),
        left=("d",),
        float_bytes=3_000_000,
        float_ms=1.5,
        float_spread=0.1,
    ),
)


def test_int8_is_told_and_read_back() -> None:
    assert "c.onnx (onnx, int8): 0.761 MB" in _INT8.summary()
    line = "signal over noise 31.3 dB, divergence 0.002, 2 layers in int8, 1 kept in float, in float 3.000 MB"
    assert f"{line}, 1.500 ms (spread 10%)" in _INT8.summary()
    facts = json.loads(json.dumps(export_facts([_ALONE, _INT8])))
    assert "int8" not in facts[0]
    assert exports_from_facts(facts, "here") == (_ALONE, _INT8)
    assert _INT8.int8 is not None
    exact = replace(_INT8, int8=replace(_INT8.int8, noise_db=float("inf"), divergence=None))
    assert exports_from_facts(export_facts([exact]), "here") == (exact,)
    ruined = replace(
        _INT8,
        max_error=float("inf"),
        int8=replace(_INT8.int8, noise_db=float("-inf"), divergence=float("inf")),
    )
    written = json.dumps(export_facts([ruined]), allow_nan=False)
    assert exports_from_facts(json.loads(written), "here") == (ruined,)
    del facts[1]["int8"]["kept"]
    with pytest.raises(sr.FileError, match=r"here\[1\]\.int8: 'kept' is missing"):
        exports_from_facts(facts, "here")


def test_a_page_names_exported_files(summary: Summary) -> None:
    html = _page(replace(summary, exports=(_FILE, _ALONE, _INT8)))
    section = html.partition("<h2>Exported files</h2>")[2].partition("</details>")[0]
    for text in (
        "a &lt;b&gt;.onnx",
        "761 kB",
        "onnx, int8",
        "1.60 MB",
        "3.2e-07",
        "99.99 %",
        "2.616 ms, spread 7%",
        "4.994 ms, spread 5%",
        "batch 16, 1 thread<",
        "batch 16, 2 threads<",
        "this argument is &lt;2&gt;",
    ):
        assert text in section, text
    assert section.count('<td class="n">-</td>') == 6


def test_a_page_without_exported_files_has_no_section(summary: Summary) -> None:
    assert "Exported files" not in _page(summary)


def test_a_page_that_is_changed_is_the_page_that_would_be_written(summary: Summary) -> None:
    without = _page(summary)
    first = with_exported(without, export_facts([_FILE]))
    assert first == _page(replace(summary, exports=(_FILE,)))
    assert with_exported(first, export_facts([_FILE, _ALONE])) == _page(
        replace(summary, exports=(_FILE, _ALONE))
    )
    assert with_exported(first, []) == without


def test_a_page_of_before_gets_the_section_at_its_end() -> None:
    old = "<html>\n<section>\n<h2>Notes</h2>\n</section>\n<footer>Written by slimrank.</footer>\n</html>"
    new = with_exported(old, export_facts([_FILE]))
    assert new.count("<h2>Exported files</h2>") == 1
    assert new.index("<h2>Notes</h2>") < new.index("<h2>Exported files</h2>") < new.index("<footer>")
    again = with_exported(new, export_facts([_ALONE]))
    assert "a &lt;b&gt;.onnx" not in again
    assert again.count("<h2>Exported files</h2>") == 1
    assert with_exported(new, export_facts([_FILE])) == new


def _page(summary: Summary) -> str:
    return render_page(result_data(summary))


@pytest.mark.parametrize("html", ["", "<p>mine</p>", seams.EXPORTED_MARKS[0] + "\n<footer>"])
def test_no_page_of_slimrank_is_refused(html: str) -> None:
    with pytest.raises(sr.FileError, match=r"no page that slimrank wrote, or was changed; save"):
        with_exported(html, export_facts([_FILE]))


def test_json_is_read_back() -> None:
    facts = json.loads(json.dumps(export_facts([_FILE, _ALONE])))
    assert exports_from_facts(facts, "here") == (_FILE, _ALONE)


def test_facts_of_a_result_have_them(summary: Summary) -> None:
    (facts,) = result_facts(replace(summary, exports=(_FILE,)))["exports"]  # type: ignore[misc,union-attr]
    assert facts["file"] == "a <b>.onnx"  # type: ignore[index,call-overload]
    assert result_facts(summary)["exports"] == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("file", 3, r"here\[0\]\.file: 3 is no text"),
        ("bytes", "1", r"here\[0\]\.bytes: \"1\" is no whole number"),
        ("after_ms", None, r"here\[0\]\.after_ms: null is no number"),
        ("notes", [{}], r"here\[0\]\.notes\[0\]: 'where' is missing"),
        ("bits", 8, r"here\[0\]: unknown key 'bits'"),
    ],
)
def test_other_json_is_refused(key: str, value: Json, message: str) -> None:
    (facts,) = export_facts([_FILE])
    assert isinstance(facts, dict)
    with pytest.raises(sr.FileError, match=message):
        exports_from_facts([{**facts, key: value}], "here")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("saved/m.onnx", "m.onnx"),
        ("saved/files/m.onnx", "files/m.onnx"),
        ("m.onnx", "../m.onnx"),
        ("files/m.onnx", "../files/m.onnx"),
        ("../elsewhere/m.onnx", "m.onnx"),
    ],
)
def test_names_tell_nothing_of_folders_elsewhere(
    file: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for path in (Path(file), home / file):
        assert named_in(Path("saved"), replace(_FILE, path=path)).path.as_posix() == name
        assert named_in(None, replace(_FILE, path=path)).path == Path("m.onnx")


def test_a_file_takes_the_place_of_an_earlier_one() -> None:
    other = replace(_FILE, bytes=1)
    assert with_file((_FILE, _ALONE), other) == (_ALONE, other)
