# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from slimrank import FileError, ScoreError
from slimrank.records import PRUNING
from slimrank.scores import CHANNELS, ScoreEntry, Scores, check_scores

FINGERPRINT = {"structure": "a", "weights": "b", "inputs": "c"}


def entry(rank: int, keep_ratio: float, score: float) -> ScoreEntry:
    return ScoreEntry(method="weight_svd", form="linear", rank=rank, keep_ratio=keep_ratio, score=score)


TABLE = Scores(
    fingerprint=FINGERPRINT,
    baseline=0.875,
    lower_is_better=False,
    methods=("weight_svd",),
    candidates=(0.25, 0.5),
    # Not in the order of the alphabet: the order of execution must live through the sorted file.
    entries={"second": (entry(2, 0.25, 0.5), entry(4, 0.5, 0.75)), "first": (entry(1, 0.4, 0.875),)},
    notes=("a remark",),
)


def units(count: int, score: float) -> ScoreEntry:
    return ScoreEntry(method=PRUNING, form=CHANNELS, rank=count, keep_ratio=count / 8, score=score)


# A group has the name of a layer; "second" is both.
WITH_GROUPS = replace(
    TABLE,
    methods=("weight_svd", PRUNING),
    groups={"second": (units(2, 0.25), units(4, 0.625)), "first": (units(3, 0.5),)},
)


def test_a_file_gives_the_table_back(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "scores.json")
    loaded = Scores.load(tmp_path / "scores.json")
    assert loaded == TABLE
    assert list(loaded.entries) == ["second", "first"]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["format"] == 1
    assert list(content) == sorted(content)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_groups_stand_beside_layers_of_the_same_name(tmp_path: Path) -> None:
    WITH_GROUPS.save(tmp_path / "scores.json")
    loaded = Scores.load(tmp_path / "scores.json")
    assert loaded == WITH_GROUPS
    assert list(loaded.groups) == ["second", "first"]
    assert loaded.entries["second"] == TABLE.entries["second"]
    TABLE.save(tmp_path / "layers.json")
    # As files were before there were groups.
    assert "groups" not in json.loads((tmp_path / "layers.json").read_text())
    assert Scores.load(tmp_path / "layers.json").groups == {}
    assert (
        WITH_GROUPS.summary()
        .splitlines()[0]
        .startswith(
            "score with only this layer at this share of its MACs, or this channel group at this share of its"
        )
    )
    assert WITH_GROUPS.summary().splitlines()[-3:] == [
        "second          channel_pruning    0.2500  0.6250",
        "first           channel_pruning  (0.5000)  0.5000",
        "- a remark",
    ]
    assert repr(WITH_GROUPS) == "Scores(6 scores of 2 layers and 2 groups, baseline 0.875)"


def test_the_page_has_a_chart_for_every_group(tmp_path: Path) -> None:
    WITH_GROUPS.report(tmp_path / "scores.html")
    page = (tmp_path / "scores.html").read_text()
    assert page.count("<figure>") == 4
    assert "<title>4 units: 0.625</title>" in page
    assert 'aria-label="second, channel_pruning"' in page
    assert 'aria-label="second, weight_svd"' in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"group": "second"',
            '"group": "first"',
            r"groups: group 'first' stands twice; delete one of the two",
        ),
        ('"group": "second"', '"grp": "second"', r"groups\[0\]: unknown key 'grp'"),
        ('"form": "channels"', '"form": "v_h"', r"channel_pruning has no form 'v_h'; known are 'channels'"),
        ('"rank": 3', '"rank": 0', r"groups\['first'\]\[0\]: rank 0 and keep_ratio"),
        (
            '"rank": 4, "score": 0.625',
            '"rank": 2, "score": 0.625',
            r"channels 2 stands twice",
        ),
        (
            '"form": "channels", "keep_ratio": 0.25, "method": "channel_pruning"',
            '"form": "linear", "keep_ratio": 0.25, "method": "weight_svd"',
            r"groups\['second'\]: 'channel_pruning' belongs to groups and no other method does; move it",
        ),
    ],
)
def test_groups_that_no_table_is_read_from(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    WITH_GROUPS.save(file)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ScoreError, match=message):
        Scores.load(file)


def test_summary_shows_layers_by_candidates() -> None:
    assert TABLE.summary().splitlines() == [
        "score with only this layer at this share of its MACs; untouched 0.8750, higher is better",
        "layer   method          0.25    0.50",
        "------------------------------------",
        "second  weight_svd    0.5000  0.7500",
        "first   weight_svd  (0.8750)  0.8750",
        "- a remark",
    ]
    assert "lower is better" in replace(TABLE, lower_is_better=True).summary()
    assert repr(TABLE) == "Scores(3 scores of 2 layers, baseline 0.875)"


def test_loss_counts_against_the_baseline() -> None:
    assert TABLE.loss(entry(2, 0.25, 0.5)) == 0.375
    assert replace(TABLE, lower_is_better=True).loss(entry(2, 0.25, 0.5)) == -0.375


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"a number is not finite .*; measure it again"):
        replace(TABLE, baseline=math.nan).save(tmp_path / "scores.json")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be read .*give a file that measure_scores wrote"):
        Scores.load(tmp_path / "scores.json")
    with pytest.raises(FileError, match=r"score table .*cannot be written .*existing folder"):
        TABLE.save(tmp_path / "none" / "scores.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"notes"', '"nots"', r"unknown key 'nots'; did you mean 'notes'"),
        (
            '"format": 1',
            '"format": 2',
            r"has format 2, this version reads 1; give a file that measure_sc",
        ),
        ('"format": 1', '"format": true', r"has format True, this version reads 1"),
        ('"weight_svd"\n', '"weight_svx"\n', r"no JSON"),
        ('["weight_svd"]', '["weight_svx"]', r"methods: unknown method 'weight_svx'; did you mean"),
        ('"form": "linear"', '"form": "v_h"', r"weight_svd has no form 'v_h'; known are 'linear'"),
        ('"rank": 2', '"rank": 0', r"rank 0 and keep_ratio 0.25 must be above 0"),
        ('"rank": 2', '"rank": 2.5', r"2.5 is no whole number"),
        ('"score": 0.5', '"score": 1e999', r"inf is not finite"),
        ('"score": 0.5', '"score": NaN', r"NaN is no number that such a file may hold"),
        ('"score": 0.5', '"score": 0.5, "rang": 1', r"unknown key 'rang'; did you mean 'rank'"),
        ('["second", "first"]', '["second"]', r"order and entries do not hold the same layers \('first'\)"),
        ('["second", "first"]', '["second", "first", "first"]', r"one stands twice"),
        ('"baseline": 0.875', '"baseline": "high"', r"is no number"),
    ],
)
def test_files_that_no_table_is_read_from(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    TABLE.save(file)
    text = file.read_text()
    file.write_text(text.replace(old, new, 1) if old in text else text[: len(text) // 2])
    with pytest.raises(ScoreError, match=message):
        Scores.load(file)


def test_a_file_cut_short_or_foreign(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    TABLE.save(file)
    file.write_text(file.read_text()[:200])
    with pytest.raises(ScoreError, match=r"no JSON, or cut short"):
        Scores.load(file)
    file.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ScoreError, match=r"no text .*measure_scores wrote"):
        Scores.load(file)
    file.write_text('{"steps": []}')
    with pytest.raises(ScoreError, match=r"has format None, this version reads 1"):
        Scores.load(file)


def test_a_table_of_another_study_is_named() -> None:
    check_scores(TABLE, dict(FINGERPRINT))
    with pytest.raises(ScoreError, match=r"with other weights and inputs than this study"):
        check_scores(TABLE, {**FINGERPRINT, "weights": "x", "inputs": "y"})
    with pytest.raises(ScoreError, match=r"with other previous than"):
        check_scores(TABLE, {**FINGERPRINT, "previous": "x"})
