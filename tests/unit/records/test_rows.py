# SPDX-License-Identifier: Apache-2.0
import copy
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import ModuleType

import pytest
import torch
from torch import nn

import slimrank as sr
from slimrank.scores import ScoreEntry


@pytest.fixture(scope="module")
def study() -> sr.Study:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 6)
        )
    images = [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    return sr.study(model.eval(), images, effort="fast", progress=False)


class Frame:
    """As much of a pandas table as slimrank uses: it is made of columns of one length."""

    def __init__(self, columns: Mapping[str, Sequence[object]]) -> None:
        assert len({len(values) for values in columns.values()}) == 1
        self.columns = columns

    def __getitem__(self, name: str) -> Sequence[object]:
        return self.columns[name]


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package where it is installed, else what stands in for it."""
    try:
        import pandas  # noqa: F401, PLC0415
    except ImportError:
        module = ModuleType("pandas")
        module.DataFrame = Frame  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pandas", module)


def test_curves_answer_by_layer(study: sr.Study) -> None:
    of_conv = study.curves["2"]
    assert of_conv == tuple(curve for curve in study.curves if curve.layer == "2")
    assert {curve.method for curve in of_conv} == {"weight_svd", "spatial_svd"}
    assert of_conv["2"] == of_conv
    assert study.group_curves["0"].group == "0"
    assert study.layers["4"].kind == "linear"


def test_names_that_do_not_exist(study: sr.Study) -> None:
    with pytest.raises(sr.UnknownNameError, match=r"no curve of a layer 'conv'; known are '0', '2', '4'"):
        study.curves["conv"]
    with pytest.raises(sr.UnknownNameError, match=r"no curve of a group 'conv'; known are '0'"):
        study.group_curves["conv"]
    with pytest.raises(sr.UnknownNameError, match=r"no layer 'conv'; known are '0', '2', '4'"):
        study.layers["conv"]


def _values(row: object) -> dict[str, str]:
    """All that a row holds, arrays in full."""
    return {known.name: repr(getattr(row, known.name)) for known in fields(row)}  # type: ignore[arg-type]


def test_a_curve_shows_itself_in_a_line(study: sr.Study) -> None:
    curve, pruned = study.curves["2"][0], study.group_curves["0"]
    first, last = (f"{damage:.3g}" for damage in curve.damage[[0, -1]])
    shown = f"Curve('2', weight_svd {curve.form}: 7 ranks from 1 to 7, damage {first} to {last}, "
    assert str(curve) == repr(curve) == f"{shown}{len(curve.anchors)} measured)"
    high, low = (f"{damage:.3g}" for damage in pruned.damage[[0, -1]])
    kept = f"GroupCurve('0', of 8 units: 7 widths from 1 to 7, damage {high} to {low}, "
    assert str(pruned) == repr(pruned) == f"{kept}{len(pruned.anchors)} measured)"


def test_a_curve_of_one_choice_and_of_none(study: sr.Study) -> None:
    curve = study.curves["4"][0]
    alone = replace(curve, ranks=curve.ranks[:1], damage=curve.damage[:1], anchors={})
    assert repr(alone) == f"Curve('4', weight_svd linear: rank 1, damage {curve.damage[0]:.3g}, 0 measured)"
    bare = replace(curve, ranks=curve.ranks[:0], damage=curve.damage[:0])
    assert repr(bare) == "Curve('4', weight_svd linear: no rank saves anything)"


def test_rows_show_themselves_one_a_line(study: sr.Study) -> None:
    of_layer = study.curves["2"]
    assert str(of_layer).splitlines() == [f"Curves({len(of_layer)}):", *(f"  {row!r}" for row in of_layer)]
    assert "array(" not in f"{study.curves}{study.group_curves}"
    assert str(type(study.group_curves)()) == "GroupCurves(0)"


def test_of_many_rows_both_ends_are_shown(study: sr.Study) -> None:
    many = type(study.curves)(list(study.curves) * 10)
    lines = str(many).splitlines()
    assert lines[0] == f"Curves({len(many)}):"
    assert lines[9] == f"  ... {len(many) - 16} more; to_dataframe() has all ..."
    assert [line.strip() for line in lines[1:9] + lines[10:]] == [repr(row) for row in many[:8] + many[-8:]]


def test_they_are_tuples_in_every_other_way(study: sr.Study) -> None:
    for rows in (study.curves, study.group_curves, study.layers):
        plain = tuple(rows)
        assert isinstance(rows, tuple)
        assert rows == plain
        assert hash(rows) == hash(plain)
        assert (rows[0], rows[-1], rows[:1]) == (plain[0], plain[-1], plain[:1])
        assert (len(rows), list(rows)) == (len(plain), list(plain))
        again = pickle.loads(pickle.dumps(rows))
        assert type(again) is type(rows)
        assert [_values(row) for row in again] == [_values(row) for row in plain]
        assert copy.copy(rows) == rows


@pytest.mark.usefixtures("pandas")
def test_tables_hold_every_value(study: sr.Study) -> None:
    curves = study.curves.to_dataframe()
    points = [(c.layer, c.form, int(rank)) for c in study.curves for rank in c.ranks]
    assert list(zip(curves["layer"], curves["form"], curves["rank"], strict=True)) == points
    assert list(curves["damage"]) == [float(damage) for c in study.curves for damage in c.damage]
    assert list(curves["bytes"]) == [int(size) for c in study.curves for size in c.bytes]
    groups = study.group_curves.to_dataframe()
    assert list(groups["kept"]) == [int(kept) for c in study.group_curves for kept in c.kept]
    assert set(groups["units"]) == {8}
    layers = study.layers.to_dataframe()
    assert list(layers["name"]) == ["0", "2", "4"]
    assert sum(layers["macs"]) == study.before.macs
    assert list(layers["methods"])[2] == ", ".join(study.layers["4"].methods)


@pytest.mark.usefixtures("pandas")
def test_a_table_of_scores() -> None:
    entry = ScoreEntry(method="weight_svd", form="linear", rank=16, keep_ratio=0.5, score=0.75)
    slim = ScoreEntry(method="channel_pruning", form="channels", rank=4, keep_ratio=0.5, score=0.5)
    table = sr.Scores(
        fingerprint={},
        baseline=0.875,
        lower_is_better=False,
        methods=("weight_svd", "channel_pruning"),
        candidates=(0.5,),
        entries={"fc": (entry,)},
        groups={"fc": (slim,)},
    ).to_dataframe()
    assert list(table["name"]) == ["fc", "fc"]
    assert list(table["kind"]) == ["layer", "group"]
    assert list(table["loss"]) == [0.125, 0.375]
    assert list(table["rank"]) == [16, 4]


def test_without_pandas(study: sr.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for rows in (study.curves, study.group_curves, study.layers):
        with pytest.raises(sr.MissingPackageError, match=r"needs pandas.*pip install 'slimrank\[pandas\]'"):
            rows.to_dataframe()
