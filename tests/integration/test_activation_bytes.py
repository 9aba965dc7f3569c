# SPDX-License-Identifier: Apache-2.0
"""Peaks of activations of plans and results, through the front door."""

import json
from pathlib import Path
from types import ModuleType

import pytest

import slimrank as sr
from slimrank.plan import Plan

# Bytes of one channel of the maps, 8 by 8 numbers.
MAP = 4 * 64


@pytest.fixture(scope="module")
def study(cnn_study: sr.Study) -> sr.Study:
    return cnn_study


def test_a_plan_is_counted_as_the_result_of_it_is(study: sr.Study) -> None:
    settings = [
        {},
        {"stem": ("channel_pruning", {"keep": 8})},
        {"conv": ("spatial_svd", {"rank": 4, "form": "v_h"}), "last": ("channel_pruning", {"keep": 12})},
        {"conv": ("weight_svd", {"rank": 8}), "fc": ("weight_svd", {"rank": 4})},
    ]
    peaks = []
    for setting in settings:
        plan = Plan.manual(study, setting)  # type: ignore[arg-type]
        planned, result = sr.activation_bytes(study, plan), study.apply(plan)
        assert planned == result.activation_bytes
        peaks.append(planned)
    assert peaks[0].before == peaks[0].after
    assert peaks[0].keep_ratio == 1.0
    assert len({peak.before for peak in peaks}) == 1
    assert all(peak.after % MAP == 0 for peak in peaks[:2])
    assert peaks[1].after < peaks[0].after
    assert sr.activation_bytes(study, Plan(steps=(), before=study.before, has_bias=True)) == peaks[0]


def test_the_peak_stands_beside_the_costs(study: sr.Study, tmp_path: Path) -> None:
    result = study.apply(Plan.manual(study, {"stem": ("channel_pruning", {"keep": 8})}))
    peak = result.activation_bytes
    assert peak is not None
    row = next(line for line in result.summary().splitlines() if line.startswith("peak of activations"))
    assert f"{peak.before / 1000:#.4g} kB" in row
    assert f"{peak.after / 1000:#.4g} kB" in row
    result.save(tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "manifest.json").read_text())["activation_bytes"]
    assert kept == {"before": peak.before, "after": peak.after}
    assert "peak of activations, one sample" in (tmp_path / "saved" / "report.html").read_text()


def test_of_several_steps_the_original_is_needed(study: sr.Study, nets: ModuleType) -> None:
    first = study.apply(Plan.manual(study, {"stem": ("channel_pruning", {"keep": 8})}))
    again = sr.study(first, nets.noise(1, 8, 8, n=4), progress=False)
    second = again.apply(Plan.manual(again, {"fc": ("weight_svd", {"rank": 2})}))
    assert second.activation_bytes is None
    assert "peak of activations" not in second.summary()
    assert first.activation_bytes is not None
    # A study of the first result starts from there.
    assert sr.activation_bytes(again, second.plan).before == first.activation_bytes.after


def test_bad_input_is_named(study: sr.Study, nets: ModuleType, tmp_path: Path) -> None:
    plan = Plan.manual(study, {})
    with pytest.raises(sr.OptionError, match="study is a str; give a Study"):
        sr.activation_bytes("study", plan)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="plan is a dict; give a Plan"):
        sr.activation_bytes(study, {})  # type: ignore[arg-type]
    other = sr.study(nets.mlp(), nets.noise(24), data_free=True, progress=False)
    with pytest.raises(sr.PlanError, match="missing in the model"):
        sr.activation_bytes(other, plan)
    study.save(tmp_path / "study")
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.activation_bytes(sr.Study.load(tmp_path / "study"), plan)
