# SPDX-License-Identifier: Apache-2.0
import os
import pickle
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from slimrank import FileError, OptionError, ScoreError, UnknownNameError
from slimrank.plan import Structure, structure_of
from slimrank.scores import Scores
from specs import conv2d, linear, other

CONV = conv2d("conv", 64, 64, size=8, has_bias=True)
POINT = conv2d("point", 32, 16, 1, size=8, has_bias=True)
FC = linear("fc", 1000, 512)
OTHER = other("up", "ConvTranspose2d", (4, 4, 2, 2), reason="no method for it")


@dataclass
class Study:
    structure: Structure = field(default_factory=lambda: structure_of([CONV, POINT, FC, OTHER]))
    fingerprint: dict[str, str] = field(default_factory=lambda: {"structure": "s"})


def written(tmp_path: Path, content: object, protocol: int = 4) -> Path:
    file = tmp_path / "greedy_selection_eval_scores_dict.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_a_dictionary_of_decimals(protocol: int, tmp_path: Path) -> None:
    scores = {
        "fc": {Decimal("0.4"): 71.5, Decimal("0.8"): 73},
        "conv": {Decimal("0.5"): Decimal("70.25"), Decimal("0.9"): 72.0},
    }
    table = Scores.from_aimet(written(tmp_path, scores, protocol), Study(), method="weight_svd", baseline=75)
    # Worked out by hand from the costs of a rank: at each ratio AIMET takes the largest rank that fits.
    assert {name: [(e.form, e.rank, e.score) for e in own] for name, own in table.entries.items()} == {
        "conv": [("1x1_kxk", 28, 70.25), ("1x1_kxk", 51, 72.0)],
        "fc": [("linear", 135, 71.5), ("linear", 270, 73.0)],
    }
    assert table.entries["fc"][0].keep_ratio == float(Fraction(135 * 1512, 512 * 1000))
    assert list(table.entries) == ["conv", "fc"]
    assert table.candidates == (0.4, 0.5, 0.8, 0.9)
    assert (table.baseline, table.methods, table.notes) == (75.0, ("weight_svd",), ())
    assert table.fingerprint == {"structure": "s"}
    table.save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == table


def test_spatial_svd_takes_rows_first(tmp_path: Path) -> None:
    scores = {"conv": {Decimal(k) / 10: float(k) for k in range(1, 10)}}
    table = Scores.from_aimet(written(tmp_path, scores), Study(), method="spatial_svd")
    # 64 * 3 + 64 * 3 = 384 of 36 864 weights per rank.
    assert [(e.form, e.rank) for e in table.entries["conv"]] == [("v_h", 96 * k // 10) for k in range(1, 10)]
    assert table.baseline == 9.0
    assert "AIMET keeps no score of the untouched model; the best one in the file, 9" in table.notes[0]
    lower = Scores.from_aimet(written(tmp_path, scores), Study(), method="spatial_svd", lower_is_better=True)
    assert lower.baseline == 1.0


def test_ratios_of_one_rank_keep_the_score_of_the_largest(tmp_path: Path) -> None:
    scores = {"point": {Decimal("0.01"): 1.0, Decimal("0.05"): 2.0, Decimal("0.5"): 3.0}}
    table = Scores.from_aimet(written(tmp_path, scores), Study(), method="weight_svd")
    # 48 of 512 weights per rank; below rank 1 there is none.
    assert [(e.form, e.rank, e.score) for e in table.entries["point"]] == [
        ("kxk_1x1", 1, 2.0),
        ("kxk_1x1", 5, 3.0),
    ]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/slimrank-was-here",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_file_runs_nothing(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("it ran"))
    file = tmp_path / "scores.pkl"
    # By hand, since the patched function cannot be pickled by its name.
    file.write_bytes(b"cposix\nsystem\n(S'touch /tmp/slimrank-was-here'\ntR.")
    with pytest.raises(
        ScoreError, match=r"posix.system is refused: .*dict, str, float, int and Decimal only"
    ):
        Scores.from_aimet(file, Study(), method="weight_svd")
    monkeypatch.undo()
    file.write_bytes(pickle.dumps({"fc": {Decimal("0.5"): Hostile()}}, protocol=protocol))
    with pytest.raises(ScoreError, match=r"(posix|nt)\.system is refused"):
        Scores.from_aimet(file, Study(), method="weight_svd")
    assert not Path("/tmp/slimrank-was-here").exists()


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cdecimal\nlocalcontext\n(tR.", "decimal.localcontext"),
        (b"\x80\x04\x8c\x08builtins\x8c\x09dict.keys\x93.", "builtins.dict.keys"),
        (pickle.dumps({"fc": {Decimal("0.5"): np.float64(1.0)}}), "numpy.*"),
        (pickle.dumps({"fc": {Decimal("0.5"): Fraction(1, 2)}}), "fractions.Fraction"),
    ],
)
def test_other_classes_are_refused_by_name(name: bytes, refused: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.pkl"
    file.write_bytes(name)
    with pytest.raises(ScoreError, match=rf"{refused} is refused"):
        Scores.from_aimet(file, Study(), method="weight_svd")


def test_a_file_cut_short_at_any_byte(tmp_path: Path) -> None:
    whole = pickle.dumps({"fc": {Decimal("0.4"): 71.5, Decimal("0.8"): 73.0}})
    file = tmp_path / "scores.pkl"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ScoreError, match=r"no pickle of eval scores, or cut short"):
            Scores.from_aimet(file, Study(), method="weight_svd")
    with pytest.raises(FileError, match=r"cannot be read .*greedy_selection_eval_scores_dict.pkl"):
        Scores.from_aimet(tmp_path / "none.pkl", Study(), method="weight_svd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"it holds list, not a dictionary of layers"),
        ({}, r"it holds dict, not a dictionary of layers"),
        ({1: {Decimal("0.5"): 1.0}}, r"entry 1 is no layer name with a dictionary"),
        ({"fc": {}}, r"entry 'fc' is no layer name with a dictionary"),
        ({"fc": {Decimal("1.5"): 1.0}}, r"Decimal\('1.5'\) -> 1.0 is no ratio in \(0, 1\]"),
        ({"fc": {Decimal("0.5"): float("nan")}}, r"-> nan is no ratio in \(0, 1\] with a finite score"),
        ({"fc": {Decimal("NaN"): 1.0}}, r"is no ratio"),
        ({"fc": {True: 1.0}}, r"is no ratio"),
        ({"fc": {Decimal("0.5"): "1"}}, r"-> '1' is no ratio"),
    ],
)
def test_other_contents(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=message):
        Scores.from_aimet(written(tmp_path, content), Study(), method="weight_svd")


def test_names_and_methods_are_checked(tmp_path: Path) -> None:
    file = written(tmp_path, {"conf": {Decimal("0.5"): 1.0}})
    with pytest.raises(UnknownNameError, match=r"the model has no layer 'conf'; did you mean 'conv'"):
        Scores.from_aimet(file, Study(), method="weight_svd")
    with pytest.raises(UnknownNameError, match=r"method 'svd' does not exist; .*_svd'"):
        Scores.from_aimet(file, Study(), method="svd")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"baseline=inf; give the score of the untouched model"):
        Scores.from_aimet(file, Study(), method="weight_svd", baseline=float("inf"))
    for layer, cure in (("fc", "it can take 'weight_svd'"), ("up", "no method for it")):
        file = written(tmp_path, {layer: {Decimal("0.5"): 1.0}})
        with pytest.raises(OptionError, match=rf"spatial_svd does not apply to layer '{layer}' .*{cure}"):
            Scores.from_aimet(file, Study(), method="spatial_svd")
