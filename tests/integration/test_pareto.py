# SPDX-License-Identifier: Apache-2.0
"""``Study.pareto``: plans over their cost, built and measured."""

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from invented_times import Machine, table_on


def _nets() -> ModuleType:
    return sys.modules["nets"]


@pytest.fixture(scope="module")
def study() -> sr.Study:
    return sr.study(_nets().mlp(), _nets().noise(24, n=3), progress=False)


def score(model: nn.Module) -> float:
    assert not model.training
    with torch.no_grad():
        return -float(model(torch.ones(2, 24)).square().mean())


def test_points_ascend_and_are_measured_on_what_is_built(study: sr.Study) -> None:
    curve = study.pareto(points=5)
    assert curve.metric == "macs"
    assert 3 <= len(curve.points) <= 5
    assert all(lower.cost < higher.cost for lower, higher in pairwise(curve.points))
    for point in curve.points:
        assert point.cost <= point.budget
        assert point.cost == point.plan.keep_ratio("macs")
        assert point.predicted == point.plan.damage
        assert type(point.budget) is type(point.cost) is type(point.measured) is float
    assert curve.points[0].budget < 0.2
    assert curve.points[-1].budget > 0.9
    middle = curve.points[2]
    assert study.apply(middle.plan).divergence == pytest.approx(middle.measured)
    assert curve.knee() in curve.points
    assert curve.measured_unit == study.unit
    assert curve.baseline is None


@pytest.mark.parametrize("metric", ["params", "bytes"])
def test_predictions_alone_need_no_model(study: sr.Study, metric: str, tmp_path: Path) -> None:
    study.save(tmp_path)
    loaded = sr.Study.load(tmp_path)
    curve = loaded.pareto(metric, measure=False, points=4)
    assert len(curve.points) > 1
    assert {point.measured for point in curve.points} == {None}
    assert all(point.cost == point.plan.keep_ratio(metric) <= point.budget for point in curve.points)
    with pytest.raises(sr.StudyError, match=r"pareto: .*without a model.*measure=False for predictions"):
        loaded.pareto()


def test_more_points_than_plans_are_merged() -> None:
    small = sr.study(_nets().two_layers(), _nets().noise(12, n=3), methods=("weight_svd",), progress=False)
    curve = small.pareto(measure=False, points=60)
    assert 1 < len(curve.points) < 60
    settings = [dict(point.plan.settings) for point in curve.points]
    assert all(settings.count(setting) == 1 for setting in settings)


def test_a_score_is_measured_beside_that_of_the_original(study: sr.Study) -> None:
    curve = study.pareto(points=3, score_fn=score)
    assert curve.baseline == score(seams.original_of(study))
    assert curve.measured_unit == "score"
    last = curve.points[-1]
    assert last.measured == score(study.apply(last.plan).model.eval())


def test_latency_is_counted_by_a_table(study: sr.Study) -> None:
    table = table_on(study.structure, Machine(), reference=2.0)
    curve = study.pareto("latency", latencies=table, measure=False, points=4)
    assert len(curve.points) > 1
    for point in curve.points:
        assert point.plan.latency is not None
        assert point.cost == pytest.approx(point.plan.latency.predicted)
        assert point.cost <= point.budget * (1 + 1e-9)
    # The network as it stands takes half of what ratios are shares of.
    assert curve.points[-1].budget < 0.5


def test_a_killed_call_goes_on_with_what_was_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _nets().noise(24, n=3)
    study = sr.study(_nets().mlp(), batches, run_dir=tmp_path, progress=False)
    fits = seams.watch_fits(monkeypatch)
    first = study.pareto(points=2)
    assert fits
    fits.clear()
    again = sr.Study.load(tmp_path, model=_nets().mlp(), run_dir=tmp_path, progress=False).pareto(points=2)
    assert fits == []
    assert [point.measured for point in again.points] == pytest.approx(
        [point.measured for point in first.points]
    )


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"points": 1}, sr.OptionError, "pareto: points=1; give a whole number of at least 2"),
        ({"points": True}, sr.OptionError, "points=True; give a whole"),
        ({"points": 2.5}, sr.OptionError, "points=2.5; give a whole"),
        ({"metric": "mac"}, sr.UnknownNameError, "pareto: metric 'mac' does not exist; did you mean 'macs'"),
        ({"metric": None}, sr.UnknownNameError, "metric None does not exist"),
        ({"metric": "latency"}, sr.OptionError, "metric='latency' needs measured times; pass latencies="),
        ({"latencies": object()}, sr.OptionError, "latencies= is given with metric='macs'; pass metric="),
        ({"metric": "latency", "latencies": object()}, sr.OptionError, "latencies is a object; give a table"),
        ({"score_fn": 3}, sr.OptionError, "score_fn is a int; give a function"),
        ({"score_fn": score, "measure": False}, sr.OptionError, "builds no model to score; leave one out"),
        ({"score_fn": lambda _m: "good"}, sr.ScoreError, "the original: score_fn returned a str; return one"),
        ({"score_fn": lambda _m: None}, sr.ScoreError, "score_fn returned a NoneType"),
        ({"score_fn": lambda _m: float("nan")}, sr.ScoreError, "score_fn returned nan; return a finite"),
    ],
)
def test_pareto_refuses(
    asked: dict[str, object], error: type[Exception], message: str, study: sr.Study
) -> None:
    with pytest.raises(error, match=message):
        study.pareto(**asked)  # type: ignore[arg-type]


def test_a_score_that_fails_on_a_built_model_says_on_which(study: sr.Study) -> None:
    calls: list[int] = []

    def fails_later(_model: nn.Module) -> float:
        calls.append(1)
        return 0.0 if len(calls) == 1 else float("inf")

    with pytest.raises(sr.ScoreError, match=r"the model of macs=0\.\d+: score_fn returned inf"):
        study.pareto(points=2, score_fn=fails_later)
