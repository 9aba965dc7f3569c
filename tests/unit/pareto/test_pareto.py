# SPDX-License-Identifier: Apache-2.0
"""The curve of plans as a value: its knee, its file, its text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

import slimrank as sr
from slimrank.cost import layer_cost
from slimrank.pareto import ParetoPoint, budgets_between, merged, trace
from slimrank.plan import Plan, structure_of
from slimrank.report import render_curve
from specs import Source, linear

FC = linear("fc", 40, 60)
STUDY = Source(structure_of([FC]), layer_cost(FC))
COSTS = tuple(0.1 * number for number in range(1, 11))


def plan_of(rank: int) -> Plan:
    return Plan.manual(STUDY, {"fc": ("weight_svd", {"rank": rank})})


def curve(
    damages: Sequence[float | None],
    *,
    predicted: Sequence[float | None] | None = None,
    costs: Sequence[float] = COSTS,
    baseline: float | None = None,
) -> sr.Pareto:
    """With these measured values."""
    points = tuple(
        ParetoPoint(
            budget=cost + 0.01,
            cost=cost,
            predicted=(predicted or [1.0] * len(costs))[index],
            measured=damages[index],
            plan=plan_of(index + 1),
        )
        for index, cost in enumerate(costs)
    )
    return sr.Pareto(
        metric="macs", points=points, unit="nats per sample", measured_unit="nats", baseline=baseline
    )


# Flat down to half the cost, then ten times as much at each step.
BENT = [100.0, 10.0, 1.0, 0.1, *[0.01] * 6]
# As networks do it: a little, then more and more, up to where nothing is left.
USUAL = [4.0, 2.2, 1.0, 0.4, 0.15, 0.05, 0.015, 0.005, 0.001, 0.0001]


def test_the_knee_is_where_the_curve_bends() -> None:
    assert curve(BENT).knee().cost == pytest.approx(0.5)
    assert curve([1000 * damage for damage in BENT]).knee().cost == pytest.approx(0.5)
    assert 0.4 <= curve(USUAL).knee().cost <= 0.65


@pytest.mark.parametrize("seed", range(8))
def test_noise_of_a_fifth_moves_the_knee_by_one_point_at_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noisy = [damage * float(rng.uniform(0.8, 1.25)) for damage in BENT]
    assert abs(curve(noisy).knee().cost - 0.5) < 0.15


def test_one_point_out_of_line_does_not_move_the_knee() -> None:
    out = [*BENT[:7], 0.02, *BENT[8:]]
    assert curve(out).knee().cost == pytest.approx(0.5)


def test_the_knee_of_a_score_is_told_by_what_is_lost_of_the_original() -> None:
    # The score is 0.9 down to half the cost; measured noise may even be above the original's.
    scores = [0.1, 0.3, 0.6, 0.8, 0.899, 0.901, 0.9, 0.902, 0.9, 0.9]
    assert curve(scores, baseline=0.9).knee().cost == pytest.approx(0.5)


def test_the_knee_is_told_by_predictions_where_something_was_not_measured() -> None:
    assert curve([None] * 10, predicted=BENT).knee().cost == pytest.approx(0.5)
    assert curve([*[None] * 3, *USUAL[3:]], predicted=BENT).knee().cost == pytest.approx(0.5)


def test_knees_of_curves_without_a_bend() -> None:
    nothing_lost = curve([0.0] * 10)
    assert nothing_lost.knee() is nothing_lost.points[0]
    at_once = curve([1.0] * 9 + [1e-6])
    assert at_once.knee() is at_once.points[-1]
    only = curve([0.3], costs=[0.5])
    assert only.knee() is only.points[0]
    two = curve([0.3, 0.1], costs=[0.5, 0.9])
    assert two.knee() is two.points[1]


def test_a_summary_says_that_few_points_have_no_bend() -> None:
    told = "Fewer than three points have no bend: the knee is only an end of them."
    assert told in curve([0.3], costs=[0.5]).summary().splitlines()
    assert told in curve([0.3, 0.1], costs=[0.5, 0.9]).summary().splitlines()
    assert told not in curve([0.3, 0.1, 0.0], costs=[0.5, 0.7, 0.9]).summary()


def test_a_model_without_finite_outputs_counts_as_worst() -> None:
    assert curve([inf, inf, *BENT[2:]]).knee().cost in (pytest.approx(0.4), pytest.approx(0.5))


def test_no_points_have_no_knee() -> None:
    empty = sr.Pareto(metric="macs", points=(), unit="nats")
    with pytest.raises(sr.BudgetError, match="there are no points, since no plan of the study keeps any"):
        empty.knee()
    assert empty.summary() == "No plan keeps any budget of macs.\n"
    assert repr(empty) == "Pareto(macs: no points)"


def test_a_file_gives_the_curve_back(tmp_path: Path) -> None:
    written = replace(
        curve([inf, *BENT[1:-1], None], predicted=[None, *BENT[1:]]), metric="latency", baseline=0.5
    )
    written.save(tmp_path / "pareto.json")
    assert sr.Pareto.load(tmp_path / "pareto.json") == written
    content = json.loads((tmp_path / "pareto.json").read_text())
    assert content["format"] == 1
    # A plan of the curve is a plan file.
    (tmp_path / "plan.json").write_text(json.dumps(content["points"][2]["plan"]))
    assert Plan.load(tmp_path / "plan.json") == written.points[2].plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1; give a file that Pareto.save wrote"),
        ({"metric": "mac"}, "metric is 'mac'; did you mean 'macs'"),
        ({"more": 1}, "unknown key 'more'"),
        ({"points": 3}, r"points: 3 is no list"),
        ({"points": [{"budget": 1}]}, r"points\[0\]: 'cost' is missing"),
        ({"baseline": "high"}, 'baseline: "high" is no number'),
    ],
)
def test_another_file_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pareto.json"
    curve(USUAL).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(sr.PlanError, match=message):
        sr.Pareto.load(path)


def test_a_missing_file_and_a_plan_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sr.FileError, match=r"pareto file .*cannot be read"):
        sr.Pareto.load(tmp_path / "none.json")
    point = replace(curve(USUAL).points[0], plan=replace(plan_of(2), damage=inf))
    with pytest.raises(sr.PlanError, match="pareto: a number of a plan is not finite"):
        replace(curve(USUAL), points=(point,)).save(tmp_path / "pareto.json")
    assert list(tmp_path.iterdir()) == []


def test_budgets_stand_at_even_distances_inside_both_ends() -> None:
    budgets = budgets_between(0.2, 1.0, 5)
    assert len(budgets) == 5
    assert 0.2 < budgets[0] < 0.25
    assert 0.95 < budgets[-1] < 1.0
    np.testing.assert_allclose(np.diff(budgets), budgets[1] - budgets[0])


def test_budgets_out_of_reach_are_left_out_and_equal_plans_are_one_point() -> None:
    asked = []

    def plan_at(budget: float) -> Plan:
        asked.append(budget)
        if budget < 0.3:
            raise sr.BudgetError("out of reach")
        return plan_of(4 if budget < 0.6 else 12)

    points = trace((0.2, 0.4, 0.5, 0.8), plan_at, lambda plan: plan.keep_ratio("macs"))
    assert asked == [0.2, 0.4, 0.5, 0.8]
    assert [point.budget for point in points] == [0.4, 0.8]
    assert [point.cost for point in points] == [plan_of(4).keep_ratio("macs"), plan_of(12).keep_ratio("macs")]
    assert merged(reversed(points)) == points


def test_the_summary_is_a_table_and_a_curve_of_plain_characters() -> None:
    text = curve(USUAL, predicted=USUAL).summary(width=50)
    assert text.isascii()
    lines = text.splitlines()
    table, drawn = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert len([line for line in table if line.endswith("<- knee")]) == 1
    assert max(map(len, drawn)) <= 50
    # A line for each of ten points at most, and the line of the knee from top to bottom.
    assert sum(line.count("*") for line in drawn[1:]) == 10
    scored = curve([0.5] * 9 + [0.75], baseline=0.8).summary()
    assert "score of the original 0.8" in scored
    assert "0.75" in scored


@pytest.mark.parametrize("is_log", [False, True])
def test_curves_of_any_values_can_be_drawn(is_log: bool) -> None:
    points = [(0.1, inf), (0.5, 0.0), (0.9, 1e-30), (1.0, 2.0), (1.0, float("nan"))]
    drawn = render_curve({"*": points}, title="t", is_log=is_log, width=30)
    lines = drawn.splitlines()
    assert max(map(len, lines)) <= 30
    assert lines[1].count("*") == 2
    assert "*" in lines[-3]
    assert render_curve({"*": [(0.5, 1.0)]}, title="one", width=30).count("*") == 1
    assert render_curve({"*": [(0.5, inf)]}, title="none") == ""
