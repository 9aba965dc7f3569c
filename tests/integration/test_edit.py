# SPDX-License-Identifier: Apache-2.0
"""``Study.edit``: some settings of a plan changed, all else kept, and predicted anew. ``Plan.summary``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

import slimrank as sr
from slimrank.plan import Plan, SettingLike


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    return sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), progress=False)


@pytest.fixture
def plan(study: sr.Study) -> Plan:
    """A pair on a slimmed layer, two slimmed groups, another pair."""
    return Plan.manual(
        study,
        {
            "0": ("channel_pruning", {"keep": 6}),
            "2": [("spatial_svd", 0.3), ("channel_pruning", {"keep": 10})],
            "5": ("weight_svd", {"rank": 3}),
        },
    )


def test_all_else_stays_and_is_predicted(study: sr.Study, plan: Plan) -> None:
    edited = study.edit(plan, {"5": ("weight_svd", {"rank": 2})})
    assert edited.groups == plan.groups
    assert edited.settings["2"] == plan.settings["2"]
    assert edited.settings["5"].rank == 2
    assert edited.damage is not None
    assert edited.damage > (plan.damage or 0)
    typed = {**plan.settings, "5": ("weight_svd", {"rank": 2})}
    groups = {name: ("channel_pruning", {"channels_kept": kept}) for name, kept in plan.groups.items()}
    by_hand = Plan.manual(study, {**typed, "2": [typed["2"], groups["2"]], "0": groups["0"]})  # type: ignore[dict-item,list-item]
    assert edited == by_hand
    assert study.edit(plan, {}) == plan
    assert study.apply(edited).after == edited.after


def test_a_pair_leaves_the_channels_and_channels_leave_the_pair(study: sr.Study, plan: Plan) -> None:
    pair = study.edit(plan, {"2": ("weight_svd", {"rank": 4})})
    assert pair.groups == plan.groups
    assert pair.settings["2"].method == "weight_svd"
    wider = study.edit(plan, {"2": ("channel_pruning", 0.75)})
    assert len(wider.groups["2"]) == 12
    assert wider.settings == plan.settings
    whole = study.edit(plan, {"2": ("channel_pruning", 1.0)})
    assert "2" not in whole.groups
    assert whole.settings == plan.settings
    alone = study.edit(plan, {"2": None})
    assert "2" not in alone.groups
    assert "2" not in alone.settings
    assert alone.groups["0"] == plan.groups["0"]


def test_a_dropped_block_takes_what_is_in_it_along_and_can_come_back(study: sr.Study, plan: Plan) -> None:
    with_pair = study.edit(plan, {"1.conv": ("weight_svd", {"rank": 2})})
    dropped = study.edit(with_pair, {"1": "drop"})
    assert dropped.dropped == ("1",)
    assert "1.conv" not in dropped.settings
    assert dropped.damage is not None
    back = study.edit(dropped, {"1": None, "1.conv": ("weight_svd", {"rank": 2})})
    assert back == with_pair
    with pytest.raises(sr.PlanError, match="inside the dropped block '1'"):
        study.edit(dropped, {"1.conv": ("weight_svd", {"rank": 2})})


def test_settings_may_stand_in_a_file(study: sr.Study, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "edits.csv").write_text("layer,method,rank\n5,weight_svd,2\n")
    assert study.edit(plan, tmp_path / "edits.csv") == study.edit(plan, {"5": ("weight_svd", {"rank": 2})})


def test_multiples_that_were_given_hold_and_those_of_auto_do_not(study: sr.Study) -> None:
    given = study.plan(macs=0.6, multiple_of=2, methods=("weight_svd", "spatial_svd"))
    edited = study.edit(given, {"2": ("spatial_svd", {"rank": 5})})
    assert edited.settings["2"].rank == 6
    assert (edited.multiple_of, edited.relaxed) == (2, None)
    assert (edited.select, edited.gap, edited.budgets) == ("manual", None, {})
    auto = study.plan(macs=0.6, methods=("weight_svd", "spatial_svd"))
    edited = study.edit(auto, {"2": ("spatial_svd", {"rank": 5})})
    assert edited.settings["2"].rank == 5
    assert edited.relaxed is not None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"25": ("weight_svd", 0.5)}, sr.UnknownNameError, "layer '25': the model has none"),
        ({"25": None}, sr.UnknownNameError, "layer '25': the model has none"),
        ({"5": ("weight_svt", 0.5)}, sr.UnknownNameError, "did you mean 'weight_svd'"),
        ({"5": ("weight_svd", {"rank": 600})}, sr.RankError, "rank 600 is outside"),
        ({"5": 3}, sr.OptionError, "layer '5': the setting is 3; give"),
        (["5"], sr.OptionError, "settings is a list; give layer -> setting"),
        # The pair of the plan needs more channels than would stay.
        ({"2": ("channel_pruning", {"keep": 1})}, sr.RankError, "of the slimmed layer|slimmed layer does"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: Mapping[str, SettingLike], error: type[Exception], message: str, study: sr.Study, plan: Plan
) -> None:
    with pytest.raises(error, match=message):
        study.edit(plan, settings)


def test_another_plan_is_refused(study: sr.Study, plan: Plan) -> None:
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nets.two_layers(), nets.noise(12), methods=("weight_svd",), progress=False)
    with pytest.raises(sr.PlanError, match="it belongs to another model"):
        other.edit(plan, {})
    with pytest.raises(sr.OptionError, match="plan is a dict; give a Plan"):
        study.edit({}, {})  # type: ignore[arg-type]
    with pytest.raises(sr.PlanError, match="it has no step, so no layer to set"):
        study.edit(Plan(steps=(), before=study.before, has_bias=True), {})


def test_the_summary_of_a_plan_is_a_table(study: sr.Study, plan: Plan) -> None:
    text = plan.summary()
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["layer", "method", "form", "rank"]
    (row,) = [line for line in lines if line.startswith("5 ")]
    assert row.split()[1:4] == ["weight_svd", "linear", "3"]
    assert "2      channel_pruning  10 of 16" in text
    assert "computed from shapes" in text
    assert f"{plan.damage:#.3g}" in text


def test_a_notebook_shows_study_plan_and_result(study: sr.Study, plan: Plan) -> None:
    result = study.apply(plan)
    for value, title in ((study, "Study"), (plan, "Plan"), (result, "Sequential, compressed")):
        html = value._repr_html_()
        assert html.startswith(f"<div><div><b>{title}</b></div>")
        assert "1.conv" in html
        assert "<style" not in html
    assert "Divergence from the original" in result._repr_html_()
