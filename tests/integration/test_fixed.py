# SPDX-License-Identifier: Apache-2.0
"""``Study.plan(fixed=)``: what is said is held, the rest is chosen; and what cannot be held is refused."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from torch import Tensor

import seams
import slimrank as sr
from slimrank.plan import Plan, SettingLike, fixed_of


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    return sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), progress=False)


HELD: dict[str, SettingLike] = {
    "0": None,
    "1": "drop",
    "2": [("spatial_svd", {"rank": 5}), ("channel_pruning", {"keep": 11})],
}


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_what_is_fixed_is_held_and_the_budget_kept(study: sr.Study, select: str) -> None:
    plan = study.plan(params=0.4, select=select, fixed=HELD)  # type: ignore[arg-type]
    assert plan.dropped == ("1",)
    assert plan.settings["2"].rank == 5
    assert len(plan.groups["2"]) == 11
    assert "0" not in plan.settings
    assert "0" not in plan.groups
    assert "5" in plan.settings
    assert plan.keep_ratio("params") <= 0.4
    assert plan.damage is not None
    # Rounding is for what is chosen.
    assert plan.relaxed is not None
    assert "2" in plan.relaxed


def test_the_rest_is_what_would_be_chosen_beside_it(study: sr.Study) -> None:
    free = study.plan(macs=0.6, multiple_of=1)
    held = study.plan(macs=0.6, multiple_of=1, fixed=free.settings)
    assert held.settings == free.settings
    assert held.groups == free.groups
    assert held.damage == pytest.approx(free.damage)
    other = study.plan(macs=0.6, multiple_of=1, fixed={"2": None})
    assert other.damage is not None
    assert free.damage is not None
    assert other.damage >= free.damage * (1 - 1e-9)


def test_a_plan_with_fixed_settings_can_be_built(study: sr.Study) -> None:
    plan = study.plan(params=0.4, fixed=HELD)
    result = study.apply(plan)
    assert result.after == plan.after


def test_settings_may_stand_in_a_file(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps({"5": ["weight_svd", 0.25], "0": None}))
    plan = study.plan(macs=0.8, fixed=path)
    assert plan.settings["5"] == study.edit(plan, {"5": ("weight_svd", 0.25)}).settings["5"]
    assert fixed_of(study, path).untouched == {"0"}


def test_a_width_without_a_damage_leaves_the_plan_without_one(study: sr.Study) -> None:
    curve = next(curve for curve in study.group_curves if curve.group == "2")
    # The last to go first: no curve keeps these.
    units = sorted(int(unit) for unit in curve.order[:8])
    assert tuple(units) != curve.channels_kept(8)
    plan = study.plan(macs=0.8, fixed={"2": ("channel_pruning", {"channels_kept": units})})
    assert list(plan.groups["2"]) == units
    assert plan.damage is None
    assert plan.gap is not None


def test_what_is_fixed_wins_over_skip_and_methods(study: sr.Study) -> None:
    plan = study.plan(
        params=0.9,
        skip=("2",),
        methods=("weight_svd",),
        fixed={"2": [("spatial_svd", {"rank": 5}), ("channel_pruning", {"keep": 12})]},
    )
    assert plan.settings["2"].method == "spatial_svd"
    assert len(plan.groups["2"]) == 12
    assert {setting.method for name, setting in plan.settings.items() if name != "2"} <= {"weight_svd"}


def test_groups_leave_room_for_a_fixed_pair(study: sr.Study) -> None:
    plan = study.plan(macs=0.4, multiple_of=1, fixed={"2": ("weight_svd", {"rank": 8, "form": "kxk_1x1"})})
    assert plan.settings["2"].rank == 8
    assert len(plan.groups.get("2", range(16))) >= 8


def test_a_budget_out_of_reach_names_the_floor_and_what_is_fixed(study: sr.Study) -> None:
    with pytest.raises(sr.BudgetError, match=r"macs=0\.1 cannot be met; the smallest reachable is") as told:
        study.plan(macs=0.1, fixed={"0": None, "2": None, "1": None})
    assert "Fixed: '0', '1', '2'; fix less or other settings" in str(told.value)
    text = str(told.value).split("reachable is macs=")[1]
    floor = float(text.split(".")[0] + "." + text.split(".")[1])
    assert study.plan(macs=floor, fixed={"0": None, "2": None, "1": None}).keep_ratio("macs") <= floor


def test_a_score_table_chooses_around_what_is_fixed(study: sr.Study) -> None:
    table = sr.measure_scores(
        study, lambda model: -float(model(Tensor(np.zeros((1, 3, 4, 4)))).norm()), progress=False
    )
    plan = study.plan(params=0.7, scores=table, fixed={"2": ("spatial_svd", {"rank": 5})})
    assert plan.settings["2"].rank == 5
    assert plan.keep_ratio("params") <= 0.7


@pytest.mark.parametrize(
    ("fixed", "error", "match"),
    [
        ({"nope": None}, sr.UnknownNameError, "fixed: layer 'nope': the model has none"),
        ({"nope": ("weight_svd", 0.5)}, sr.UnknownNameError, "fixed: layer 'nope': the model has none"),
        ({"5": ("weight_svt", 0.5)}, sr.UnknownNameError, "fixed: layer '5': method 'weight_svt'"),
        ({"5": ("spatial_svd", 0.5)}, sr.OptionError, "fixed: layer '5': spatial_svd does not apply"),
        (
            {"5": ("weight_svd", {"rank": 999})},
            sr.RankError,
            "fixed: layer '5': weight_svd rank 999 is outside",
        ),
        ({"2": ("channel_pruning", {"keep": 99})}, sr.RankError, "fixed: group '2': keep 99 is outside"),
        ({"0": "drop"}, sr.UnknownNameError, "fixed: block '0': the model has none"),
        ({"1": "drop", "1.conv": ("spatial_svd", 0.5)}, sr.PlanError, "fixed: .*inside the dropped block"),
        (("5",), sr.OptionError, "fixed is a tuple; give name -> setting"),
    ],
)
def test_what_cannot_be_held_is_refused(
    study: sr.Study, fixed: dict[str, SettingLike], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        study.plan(macs=0.5, fixed=fixed)


def test_plans_do_not_depend_on_the_order_of_names(study: sr.Study) -> None:
    first = study.plan(params=0.4, fixed=HELD)
    second = study.plan(params=0.4, fixed=dict(reversed(HELD.items())))
    assert isinstance(first, Plan)
    assert first == second


def _planned(study: sr.Study, folder: Path, *options: str) -> tuple[int, str]:
    study.save(folder)
    shown = CliRunner().invoke(seams.cli, ["plan", str(folder), "--params", "0.4", *options])
    return shown.exit_code, shown.stdout + shown.stderr


def test_the_command_line_holds_settings(study: sr.Study, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    given = ("0=none", "1=drop", "2=spatial_svd:rank=5", "2=channel_pruning:keep=11")
    fixes = [text for each in given for text in ("--fix", each)]
    code, text = _planned(study, tmp_path / "run", *fixes, "--out", str(out))
    assert code == 0, text
    assert Plan.load(out) == study.plan(params=0.4, fixed=HELD)


@pytest.mark.parametrize(
    ("fixes", "match"),
    [
        (["5"], "'5': give NAME=SETTING, e.g. fc=weight_svd:0.4"),
        (["5=weight_svd"], "'weight_svd' is no setting; give e.g."),
        (["5=weight_svd:size=4"], "'weight_svd:size=4' is no setting"),
        (["5=weight_svd:rank=4.5"], "'4.5' is no number"),
        (["5=weight_svd:half"], "'half' is no number"),
        (["5=none", "5=weight_svd:0.5"], "'5' is fixed twice"),
        (["nope=none"], "--fix: layer 'nope': the model has none"),
    ],
)
def test_the_command_line_refuses_what_is_no_setting(
    study: sr.Study, tmp_path: Path, fixes: list[str], match: str
) -> None:
    code, text = _planned(study, tmp_path / "run", *(text for each in fixes for text in ("--fix", each)))
    assert code != 0
    assert match in " ".join(text.split())


def test_a_plan_remembers_what_was_fixed(study: sr.Study, tmp_path: Path) -> None:
    plan = study.plan(params=0.4, fixed=HELD)
    assert plan.fixed == {"layers": ("0", "2"), "groups": ("0", "2"), "blocks": ("1",)}
    assert study.plan(params=0.4).fixed == {}
    assert "given, not chosen: 0, 2, 1" in plan.summary()
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    # Files that older versions wrote have no such key.
    content = json.loads(path.read_text())
    del content["fixed"]
    path.write_text(json.dumps(content))
    assert Plan.load(path).fixed == {}
    # What was given belonged to the choice.
    assert study.edit(plan, {}).fixed == {}
    assert plan.replace("5", None).fixed == {}


@pytest.mark.parametrize(
    ("fixed", "match"),
    [
        ({"layers": ["nope"]}, r"fixed\.layers: the model has no 'nope'"),
        ({"walls": []}, r"fixed: unknown .*'walls'"),
        ({"groups": [3]}, r"fixed\.groups: .*3"),
        (["2"], r"fixed"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    study: sr.Study, tmp_path: Path, fixed: object, match: str
) -> None:
    path = tmp_path / "plan.json"
    study.plan(params=0.4, fixed=HELD).save(path)
    content = json.loads(path.read_text())
    content["fixed"] = fixed
    path.write_text(json.dumps(content))
    with pytest.raises(sr.PlanError, match=match):
        Plan.load(path)


def test_scores_keep_the_names(study: sr.Study) -> None:
    table = sr.measure_scores(study, lambda model: 1.0, candidates=2, progress=False)
    plan = study.plan(params=0.8, scores=table, fixed={"2": ("spatial_svd", {"rank": 5})})
    assert plan.fixed == {"layers": ("2",)}


@pytest.mark.slow
def test_compress_holds_what_is_fixed(tmp_path: Path) -> None:
    nets: ModuleType = sys.modules["nets"]
    model, batches = nets.with_a_block(), nets.noise(3, 4, 4, n=3)
    result = sr.compress(
        model, batches, params=0.6, fixed={"2": ("spatial_svd", {"rank": 5})}, progress=False
    )
    assert result.plan.settings["2"].rank == 5
    assert result.plan.fixed == {"layers": ("2",)}
    assert result.keep_ratio("params") <= 0.6
    heard: list[object] = []
    with pytest.raises(sr.OptionError, match="fixed is a tuple; give name -> setting"):
        sr.compress(model, batches, params=0.6, fixed=("2",), callback=heard.append)  # type: ignore[arg-type]
    with pytest.raises(sr.FileError, match=r"missing\.json"):
        sr.compress(model, batches, params=0.6, fixed=tmp_path / "missing.json", callback=heard.append)
    # Refused before the study, which takes long.
    assert heard == []


@pytest.mark.slow
def test_the_smallest_model_holds_what_is_fixed(study: sr.Study) -> None:
    held: dict[str, SettingLike] = {"2": ("spatial_svd", {"rank": 6}), "0": None}
    result = sr.smallest(study, max_drop=1.0, tolerance=0.2, fixed=held)
    assert result.plan.settings["2"].rank == 6
    assert "0" not in result.plan.settings
    free = sr.smallest(study, max_drop=1.0, tolerance=0.2)
    assert free.after.macs <= result.after.macs


def test_the_command_line_of_compress_holds_settings(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12)).eval()\n"
        "def data():\n    return [torch.randn(32, 16, generator=torch.Generator().manual_seed(1))]\n"
    )
    arguments = ["compress", f"{net}:build", f"{net}:data", "--out", str(tmp_path / "small"), "--quiet"]
    shown = CliRunner().invoke(
        seams.cli, [*arguments, "--macs", "0.7", "--no-compete", "--fix", "2=weight_svd:rank=3"]
    )
    assert shown.exit_code == 0, shown.stderr
    plan = Plan.load(tmp_path / "small" / "plan.json")
    assert plan.settings["2"].rank == 3
    assert plan.fixed == {"layers": ("2",)}
    split = [*arguments, "--macs", "0.7", "--split", "--fix", "2=none", "--overwrite"]
    shown = CliRunner().invoke(seams.cli, split)
    assert shown.exit_code != 0
    assert "--fix" in shown.stderr
