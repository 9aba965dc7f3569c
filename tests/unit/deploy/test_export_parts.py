# SPDX-License-Identifier: Apache-2.0
"""Parts of an export: drafts that are moved, times that take turns."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import seams
import slimrank as sr


def _filled(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_text(f"new {name}")
    return [folder / name for name in names]


def test_several_files_are_moved_together(tmp_path: Path) -> None:
    target = tmp_path / "model.xml"
    target.write_text("old")
    with seams.draft_folder(target) as draft:
        seams.move_into_place(_filled(draft, "model.xml", "model.bin"), target)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.xml": "new model.xml",
        "model.bin": "new model.bin",
    }


def test_where_one_file_cannot_be_moved_all_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "model.xml", Path.replace

    def refuse(file: Path, final: Path) -> Path:
        # The last step: the other file has been replaced by then.
        if final == target and file.read_text().startswith("new"):
            assert (tmp_path / "model.bin").read_text() == "new model.bin"
            raise PermissionError(13, "Permission denied")
        return replace(file, final)

    _filled(tmp_path, "model.xml", "model.bin")
    for file in tmp_path.iterdir():
        file.write_text("old")
    with seams.draft_folder(target) as draft:
        files = _filled(draft, "model.bin", "model.xml")
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(sr.FileError, match=r"cannot be written \(.*Permission denied"):
            seams.move_into_place(files, target)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.xml": "old",
        "model.bin": "old",
    }


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("has_old", [False, True])
def test_an_interrupt_while_files_are_moved_leaves_all_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_old: bool, step: int, is_done: bool
) -> None:
    target, replace = tmp_path / "model.xml", Path.replace
    # Four steps: each old file goes, each new one comes; where there are no old ones, two.
    last = 3 if has_old else 1
    if has_old:
        for file in _filled(tmp_path, "model.xml", "model.bin"):
            file.write_text("old")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    steps = [0]

    def interrupt(file: Path, final: Path) -> Path:
        steps[0] += 1
        if steps[0] != min(step, last) + 1:
            return replace(file, final)
        if is_done:
            replace(file, final)
        raise KeyboardInterrupt

    with seams.draft_folder(target) as draft:
        files = _filled(draft, "model.bin", "model.xml")
        monkeypatch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            seams.move_into_place(files, target)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_where_a_single_file_cannot_be_moved_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")

    def refuse(file: Path, final: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    with seams.draft_folder(target) as draft:
        files = _filled(draft, "model.onnx")
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(sr.FileError, match=r"cannot be written \(.*Permission denied"):
            seams.move_into_place(files, target)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    target = tmp_path / "model.xml"
    _filled(tmp_path, "model.xml")
    with seams.draft_folder(target) as draft:
        files = _filled(draft, "model.bin", "model.xml")
        (tmp_path / "model.bin").mkdir()
        with pytest.raises(sr.FileError, match=r"model\.bin is a folder; give another name"):
            seams.move_into_place(files, target)
    assert sorted((path.name, path.is_dir()) for path in tmp_path.iterdir()) == [
        ("model.bin", True),
        ("model.xml", False),
    ]


def test_a_folder_without_rights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with (
        pytest.raises(sr.FileError, match=r"Permission denied.*give a file in a folder with rights"),
        seams.draft_folder(tmp_path / "model.onnx"),
    ):
        pytest.fail("there is no draft")


def test_a_draft_is_gone_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with seams.draft_folder(tmp_path / "model.onnx") as draft:
            _filled(draft, "model.onnx")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_times_are_medians_of_runs_that_take_turns() -> None:
    now, order = [0.0], []

    def run(name: str, seconds: list[float]) -> Callable[[], None]:
        def one() -> None:
            order.append(name)
            now[0] += seconds[order.count(name) % len(seconds)]

        return one

    before, after = seams.time_in_turns(
        [run("before", [0.04]), run("after", [0.02, 0.04, 0.06])], clock=lambda: now[0]
    )
    assert order[:4] == ["before", "after", "before", "after"]
    assert before.milliseconds == pytest.approx(40)
    assert before.spread == pytest.approx(0)
    # In each turn they are run twice, and the second counts.
    assert order[6:10] == ["before", "before", "after", "after"]
    assert after.milliseconds == pytest.approx(40)
    # From 20 to 60, over 40.
    assert after.spread == pytest.approx(1)


@pytest.mark.parametrize(("after_ms", "is_told"), [(1.2, True), (1.04, False), (0.7, False)])
def test_a_slower_file_is_told_with_what_to_try(after_ms: float, is_told: bool) -> None:
    times = [seams.Times(milliseconds=ms, spread=0.0) for ms in (1.0, after_ms)]
    notes = seams.timing_notes(times, "onnx")
    assert bool(notes) is is_told
    assert not is_told or "plan with a larger multiple_of" in notes[0].text
    assert seams.timing_notes(times[1:], "onnx") == []


def test_times_that_cannot_be_relied_on_are_told() -> None:
    quiet, noisy = (seams.Times(milliseconds=1.0, spread=spread) for spread in (0.1, 0.8))
    assert seams.timing_notes([quiet, quiet], "onnx") == []
    (note,) = seams.timing_notes([noisy, quiet], "onnx")
    assert "times spread by 80%" in note.text
