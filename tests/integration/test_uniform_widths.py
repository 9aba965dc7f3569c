# SPDX-License-Identifier: Apache-2.0
"""Plans that ordinary tools can read: one width for all layers of a stack, and no new biases."""

import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.records import Method

PRUNING: tuple[Method, ...] = ("channel_pruning",)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(8, width)
        self.down = nn.Linear(width, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stacks(nn.Module):
    """Two stacks of equal blocks, and a block of another width in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Block(8) for _ in range(3))
        self.second = nn.ModuleList([Block(8), Block(8), Block(6)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.first, *self.second):
            x = block(x)
        return self.head(x)


def stacks(nets: ModuleType) -> nn.Module:
    return nets.settle(Stacks()).eval()


@pytest.fixture(scope="module")
def study(nets: ModuleType) -> sr.Study:
    return sr.study(stacks(nets), nets.noise(8, n=6, size=32), progress=False)


def widths(plan: sr.Plan) -> dict[str, int]:
    groups = plan.steps[-1].structure.channels.groups
    return {
        name: len(plan.groups.get(name, range(group.units)))
        for name, group in groups.items()
        if group.reason is None
    }


@pytest.mark.parametrize("budgets", [{"macs": 0.6}, {"params": 0.75}, {"macs": 0.7, "bytes": 0.6}])
def test_the_best_of_all_uniform_choices(budgets: dict[str, float], study: sr.Study) -> None:
    plan = study.plan(**budgets, methods=PRUNING, multiple_of=1, uniform_widths=True)  # type: ignore[arg-type]
    found = widths(plan)
    assert len({found[f"first.{index}.up"] for index in range(3)}) == 1
    assert found["second.0.up"] == found["second.1.up"]
    assert not plan.dropped
    best = float("inf")
    for first, second, third in product(range(1, 9), range(1, 9), range(1, 7)):
        keep = dict.fromkeys((f"first.{index}.up" for index in range(3)), first)
        keep |= {"second.0.up": second, "second.1.up": second, "second.2.up": third}
        whole = study.structure.channels.groups
        settings = {
            name: ("channel_pruning", {"keep": count})
            for name, count in keep.items()
            if count < whole[name].units
        }
        choice = sr.Plan.manual(study, settings)
        if all(choice.keep_ratio(metric) <= ratio for metric, ratio in budgets.items()):  # type: ignore[arg-type]
            best = min(best, choice.damage or 0.0)
    assert plan.damage == pytest.approx(best, rel=1e-6)
    assert plan.gap == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_every_rule_with_ranks_too(select: str, study: sr.Study) -> None:
    methods = PRUNING if select == "uniform" else None
    plan = study.plan(macs=0.6, select=select, methods=methods, uniform_widths=True, new_bias=False)  # type: ignore[arg-type]
    found = widths(plan)
    assert len({found[f"first.{index}.up"] for index in range(3)}) == 1
    assert found["second.0.up"] == found["second.1.up"]
    result = study.apply(plan)
    assert result.after == result.plan.after == plan.after
    assert result.keep_ratio("macs") <= 0.6


def test_a_stack_with_a_skipped_layer_stays_whole(study: sr.Study) -> None:
    plan = study.plan(macs=0.8, methods=PRUNING, skip=("first.1.*",), uniform_widths=True)
    assert {name.partition(".")[0] for name in plan.groups} == {"second"}
    free = study.plan(macs=0.8, methods=PRUNING, skip=("first.1.*",))
    assert {name.partition(".")[0] for name in free.groups} == {"first", "second"}
    with pytest.raises(sr.BudgetError, match=r"macs=0\.2 cannot be met"):
        study.plan(macs=0.2, methods=PRUNING, skip=("first.1.*",), uniform_widths=True)


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_a_fixed_width_is_that_of_its_stack(select: str, study: sr.Study) -> None:
    plan = study.plan(
        macs=0.7,
        methods=PRUNING,
        select=select,  # type: ignore[arg-type]
        uniform_widths=True,
        fixed={"first.1.up": ("channel_pruning", {"keep": 5})},
    )
    found = widths(plan)
    assert {found[f"first.{index}.up"] for index in range(3)} == {5}
    assert found["second.0.up"] == found["second.1.up"]
    assert plan.fixed == {"groups": ("first.1.up",)}
    assert study.apply(plan).after == plan.after


def test_the_rest_of_a_fixed_stack_is_the_best(study: sr.Study) -> None:
    free = study.plan(macs=0.6, methods=PRUNING, multiple_of=1, uniform_widths=True)
    name = "first.0.up"
    width = widths(free)[name]
    held = study.plan(
        macs=0.6,
        methods=PRUNING,
        multiple_of=1,
        uniform_widths=True,
        fixed={name: ("channel_pruning", {"keep": width})},
    )
    assert held.groups == free.groups


def test_a_layer_fixed_as_it_is_keeps_its_stack_whole(study: sr.Study) -> None:
    plan = study.plan(macs=0.8, methods=PRUNING, uniform_widths=True, fixed={"first.1.up": None})
    assert {name.partition(".")[0] for name in plan.groups} == {"second"}


def test_a_fixed_pair_ties_nothing(study: sr.Study) -> None:
    plan = study.plan(macs=0.7, uniform_widths=True, fixed={"first.1.up": ("weight_svd", {"rank": 2})})
    assert plan.settings["first.1.up"].rank == 2
    assert len({widths(plan)[f"first.{index}.up"] for index in range(3)}) == 1


def test_widths_of_one_stack_that_cannot_go_together_are_named(study: sr.Study) -> None:
    def fixed(**keep: int) -> dict[str, tuple[str, dict[str, int]]]:
        return {name.replace("_", "."): ("channel_pruning", {"keep": count}) for name, count in keep.items()}

    with pytest.raises(
        sr.OptionError,
        match=r"groups 'first\.0\.up' and 'first\.2\.up' are of one stack and keep 5 and 6 units",
    ):
        study.plan(macs=0.7, uniform_widths=True, fixed=fixed(first_0_up=5, first_2_up=6))
    with pytest.raises(sr.OptionError, match=r"'first\.0\.up' and 'first\.1\.up' .* keep 5 and 8 units"):
        study.plan(macs=0.7, uniform_widths=True, fixed={**fixed(first_0_up=5), "first.1.up": None})
    with pytest.raises(
        sr.OptionError,
        match=r"'first\.0\.up' keeps 5 of 8 units, and 'first\.2\.up' .* cannot: it is skipped",
    ):
        study.plan(macs=0.7, uniform_widths=True, skip=("first.2.*",), fixed=fixed(first_0_up=5))
    block = next(iter(study.structure.channels.blocks))
    with pytest.raises(
        sr.OptionError, match=r"is dropped, and uniform_widths=True drops none; leave one out"
    ):
        study.plan(macs=0.7, uniform_widths=True, fixed={block: "drop"})


@pytest.mark.parametrize("methods", [PRUNING, ("weight_svd",), None])
def test_no_new_bias(methods: tuple[Method, ...] | None, study: sr.Study, nets: ModuleType) -> None:
    plan = study.plan(macs=0.6, methods=methods, new_bias=False)
    result = study.apply(plan)
    assert result.after == plan.after
    has_bias = {
        name: any(
            tensor.startswith(f"{name}.") and tensor.endswith("bias") for tensor in result.model.state_dict()
        )
        for name in study.structure.layers
    }
    assert not any(has_bias[name] for name, spec in study.structure.layers.items() if not spec.has_bias)
    with_new = study.apply(study.plan(macs=0.6, methods=methods))
    assert any(".down." in name and name.endswith("bias") for name in with_new.model.state_dict())


@pytest.mark.slow
def test_compress_without_new_biases_prunes_as_the_study_plans(nets: ModuleType) -> None:
    batches = nets.noise(8, n=6, size=32)
    asked = sr.study(stacks(nets), batches, progress=False).plan(macs=0.4, new_bias=False)
    assert asked.groups
    plan = sr.compress(stacks(nets), batches, macs=0.4, new_bias=False, compete=False, progress=False).plan
    assert (plan.settings, plan.groups, plan.has_bias) == (asked.settings, asked.groups, False)


def test_fits_without_a_bias_hold_the_mean(nets: ModuleType) -> None:
    model = nets.settle(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12, bias=False)))
    with torch.no_grad():
        model[0].bias += 3.0
    batches = nets.noise(6, n=8, size=64)
    study = sr.study(model, batches, likelihood="gaussian", holdout=0.2, progress=False)
    plan = study.plan(macs=0.7, methods=PRUNING, new_bias=False)
    result = study.apply(plan)
    rows = torch.cat(batches)
    with torch.no_grad():
        wanted, found = model(rows), result.model(rows)
        hidden = torch.relu(result.model[0](rows))
        best = hidden @ torch.linalg.lstsq(hidden, wanted).solution
    assert result.model[2].bias is None
    # The fit sees four fifths of the rows, and is held back a little.
    assert (found - wanted).square().sum() <= 1.1 * (best - wanted).square().sum()


def test_a_norm_behind_takes_up_the_mean(nets: ModuleType, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nets.settle(
            nn.Sequential(
                nn.Conv2d(2, 12, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(12, 6, 3, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(6 * 36, 3),
            )
        ).eval()

    study = sr.study(build(), nets.noise(2, 8, 8, n=4, size=16), progress=False)
    keywords: dict[str, object] = {"macs": 0.6, "methods": PRUNING}
    without, usual = (study.apply(study.plan(**keywords, new_bias=new)) for new in (False, True))  # type: ignore[arg-type]
    assert without.model.state_dict().keys() == usual.model.state_dict().keys()
    for name, tensor in without.model.state_dict().items():
        torch.testing.assert_close(tensor, usual.model.state_dict()[name])
    without.save(tmp_path / "saved")
    loaded = sr.load(tmp_path / "saved", model=build()).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in without.model.state_dict().items())


def test_a_plan_without_new_biases_is_saved_and_replayed(
    study: sr.Study, nets: ModuleType, tmp_path: Path
) -> None:
    plan = study.plan(macs=0.6, uniform_widths=True, new_bias=False)
    plan.save(tmp_path / "plan.json")
    again = sr.Plan.load(tmp_path / "plan.json")
    assert again == plan
    replayed = sr.apply(stacks(nets), again, nets.noise(8, n=6, size=32), progress=False)
    assert replayed.after == plan.after
    result = study.apply(plan)
    result.save(tmp_path / "saved")
    loaded = sr.load(tmp_path / "saved", model=stacks(nets)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.model.state_dict().items())


@pytest.mark.slow
def test_steps_share_one_rule_for_biases(study: sr.Study, nets: ModuleType) -> None:
    batches = nets.noise(8, n=6, size=32)
    result = study.apply(study.plan(macs=0.8))
    second = sr.study(result.model, batches, previous=result.plan, progress=False)
    with pytest.raises(sr.OptionError, match="new_bias=False: the model was compressed before"):
        second.plan(macs=0.9, new_bias=False)
    without = study.apply(study.plan(macs=0.8, new_bias=False))
    with pytest.raises(sr.PlanError, match="planned with new_bias=False"):
        sr.study(without.model, batches, previous=without.plan, progress=False)


def has_new_bias(result: sr.Result, study: sr.Study) -> bool:
    names = result.model.state_dict()
    without = [name for name, spec in study.structure.layers.items() if not spec.has_bias]
    return any(key.startswith(f"{name}.") and key.endswith("bias") for key in names for name in without)


@pytest.mark.slow
def test_compress_takes_both(study: sr.Study, nets: ModuleType) -> None:
    batches = nets.noise(8, n=6, size=32)
    result = sr.compress(stacks(nets), batches, macs=0.6, uniform_widths=True, new_bias=False, progress=False)
    found = widths(result.plan)
    assert len({found[f"first.{index}.up"] for index in range(3)}) == 1
    assert not result.plan.dropped
    assert not has_new_bias(result, study)
    assert result.after == result.plan.after
    assert result.keep_ratio("macs") <= 0.6
    tried = " ".join(note.text for note in result.notes if note.where == "compete")
    assert "optimal, recalibrated" in tried


@pytest.mark.slow
def test_smallest_takes_both(study: sr.Study) -> None:
    keywords: dict[str, object] = {"max_drop": 0.5, "methods": PRUNING, "tolerance": 0.2}
    result = sr.smallest(study, uniform_widths=True, new_bias=False, **keywords)  # type: ignore[arg-type]
    found = widths(result.plan)
    assert found["second.0.up"] == found["second.1.up"]
    assert not has_new_bias(result, study)
    # What no plan with uniform widths reaches is not tried.
    least = sr.smallest(study, skip=("first.1.*",), uniform_widths=True, **{**keywords, "max_drop": 1e9})  # type: ignore[arg-type]
    assert {name.partition(".")[0] for name in least.plan.groups} == {"second"}


@pytest.mark.slow
def test_the_command_line_takes_both(
    study: sr.Study, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batches = nets.noise(8, n=6, size=32)
    module = ModuleType("widths_net")
    module.build, module.batches = lambda: stacks(nets), lambda: batches  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "widths_net", module)
    study.save("run")
    options = ("--macs", "0.6", "--uniform-widths", "--no-new-bias")
    done = CliRunner().invoke(seams.cli, ["plan", "run", *options, "--out", "plan.json"])
    assert done.exit_code == 0, done.output
    assert sr.Plan.load("plan.json") == study.plan(macs=0.6, uniform_widths=True, new_bias=False)
    command = ("compress", "widths_net:build", "widths_net:batches", "--out", "small", "--quiet")
    done = CliRunner().invoke(seams.cli, [*command, "--no-compete", *options])
    assert done.exit_code == 0, done.output
    small = sr.Plan.load("small/plan.json")
    assert not small.has_bias
    assert len({widths(small)[f"first.{index}.up"] for index in range(3)}) == 1
    done = CliRunner().invoke(
        seams.cli, ["plan", "run", "--manual", "s.csv", "--uniform-widths", "--no-new-bias"]
    )
    assert "leave out --uniform-widths, --no-new-bias" in done.output
    done = CliRunner().invoke(
        seams.cli, [*command, "--overwrite", "--split", "--macs", "0.6", "--no-new-bias"]
    )
    assert "--no-new-bias: --split makes plans of one method each" in done.output
