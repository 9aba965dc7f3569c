# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from slimrank import FileError, ScoreError
from slimrank.records import PRUNING, Method
from slimrank.scores import CHANNELS, ScoreEntry, ScoreJournal, Scores


def journal(
    path: Path | None,
    *,
    weights: str = "w",
    methods: tuple[Method, ...] = ("weight_svd", "spatial_svd"),
    candidates: tuple[float, ...] = (0.25, 0.5),
    lower: bool = False,
) -> ScoreJournal:
    return ScoreJournal(
        path,
        fingerprint={"structure": "s", "weights": weights},
        methods=methods,
        candidates=candidates,
        lower_is_better=lower,
        layers=["first", "second"],
        groups=["second", "third"],
    )


def entry(rank: int, keep_ratio: float, method: Method = "weight_svd") -> ScoreEntry:
    form = "kxk_1x1" if method == "weight_svd" else "v_h"
    return ScoreEntry(method=method, form=form, rank=rank, keep_ratio=keep_ratio, score=1.0)


def test_every_score_stands_in_the_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    under_way = journal(file)
    assert not under_way.is_started
    with pytest.raises(ScoreError, match=r"the untouched model has no score; measure it first"):
        under_way.finished()
    under_way.start(0.5)
    assert Scores.load(file).baseline == 0.5
    under_way.add("second", entry(4, 0.5))
    under_way.add("second", entry(3, 0.5, "spatial_svd"))
    under_way.add("second", entry(2, 0.25))
    under_way.add("first", entry(1, 0.25))
    assert Scores.load(file) == under_way.finished()
    # In the order of execution, then of methods, then of cost: as if nothing had come late.
    assert list(under_way.finished().entries) == ["first", "second"]
    assert [one.rank for one in under_way.finished().entries["second"]] == [2, 4, 3]
    again = journal(file)
    assert again.is_started
    assert again.known("second") == {("kxk_1x1", 2, None), ("kxk_1x1", 4, None), ("v_h", 3, None)}
    assert again.known("third") == frozenset()


def test_groups_and_layers_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    def units(count: int) -> ScoreEntry:
        return ScoreEntry(method=PRUNING, form=CHANNELS, rank=count, keep_ratio=count / 8, score=0.5)

    file = tmp_path / "scores.json"
    under_way = journal(file, methods=("weight_svd", PRUNING))
    assert under_way.known_counts("second") == frozenset()
    under_way.start(0.5)
    other = journal(file, methods=("weight_svd", PRUNING))
    under_way.add("third", units(4))
    under_way.add("second", entry(4, 0.5))
    under_way.add("second", units(3))
    # Two runs on one file lose nothing of each other.
    other.add("second", units(2))
    assert other.finished() == Scores.load(file)
    assert list(other.finished().groups) == ["second", "third"]
    assert other.finished().groups["second"] == (units(2), units(3))
    assert other.known_counts("second") == {2, 3}
    assert other.known("second") == {("kxk_1x1", 4, None)}
    assert other.known("third") == frozenset()


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    under_way = journal(None)
    under_way.start(0.5)
    under_way.add("first", entry(1, 0.25))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weights": "x"}, r"other weights; give another path, or delete the file"),
        ({"methods": ("weight_svd",)}, r"other methods \(\('weight_svd', 'spatial_svd'\) there, \('weight"),
        ({"candidates": (0.5,)}, r"other candidates \(\(0.25, 0.5\) there, \(0.5,\) here\)"),
        ({"lower": True, "weights": "x"}, r"other weights and lower_is_better \(False there, True here\)"),
    ],
)
def test_a_table_of_something_else_is_refused(other: dict[str, object], message: str, tmp_path: Path) -> None:
    journal(tmp_path / "scores.json").start(0.5)
    with pytest.raises(ScoreError, match=rf"scores.json: it was measured with {message}"):
        journal(tmp_path / "scores.json", **other)  # type: ignore[arg-type]


def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "scores.json"):
        with pytest.raises(FileError, match=r"cannot be written; give a file in an existing folder"):
            journal(path)
