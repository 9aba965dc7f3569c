# SPDX-License-Identifier: Apache-2.0
"""``Study.plan(latency=, latencies=)``: what it takes, what it refuses, what the plan says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import slimrank as sr
from invented_times import Machine, Table, table_on
from seams import cli, session_of
from slimrank.cost import layer_times, network_time
from slimrank.records import BlockSpec, Setting

SLOW_PAIRS = Machine(pair_mac={"v_h": 3.0, "h_v": 3.0})


class Net(nn.Module):
    """Three convolutions and a classifier, large enough that ranks and widths can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, 3, padding=1)
        self.c = nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def study() -> sr.Study:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batches = Net().eval(), [torch.randn(8, 3, 8, 8) for _ in range(6)]
    return sr.study(model, batches, progress=False)


@pytest.fixture(scope="module")
def table(study: sr.Study) -> Table:
    return table_on(study.structure, Machine())


def predicted(study: sr.Study, table: Table, plan: sr.Plan) -> float:
    time = network_time(
        table.times,
        study.structure.layers,
        study.structure.channels,
        settings=plan.settings,
        kept=plan.groups,
        dropped=plan.dropped,
    )
    return time / table.times.reference


def test_times_of_layers_are_those_of_the_formulas(study: sr.Study, table: Table) -> None:
    setting = Setting(method="weight_svd", form="linear", rank=4)
    channels = replace(study.structure.channels, blocks={"c": BlockSpec(name="c", macs=1, params=1, bytes=4)})
    found = layer_times(
        table.times,
        study.structure.layers,
        channels,
        settings={"fc": setting},
        kept={"a": range(4)},
        dropped=["c"],
    )
    # A layer in a dropped block takes none; a call, or two of a pair, and a time for each MAC.
    assert found == pytest.approx(
        {
            "a": 100 + study.layers["a"].macs * 4 / 16,  # type: ignore[call-overload]
            "b": 100 + study.layers["b"].macs * 4 / 16,  # type: ignore[call-overload]
            "fc": 200 + 4 * (16 + 10),
        }
    )


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
def test_a_plan_keeps_a_latency_and_says_so(study: sr.Study, table: Table, select: str) -> None:
    plan = study.plan(latency=0.6, latencies=table, select=select)  # type: ignore[arg-type]
    latency = plan.latency
    assert latency is not None
    assert latency.asked == 0.6
    assert latency.predicted == pytest.approx(predicted(study, table, plan), rel=1e-9)
    assert 0.5 < latency.predicted <= 0.6
    assert latency.before_ms == pytest.approx(table.times.reference / 1e6)
    assert (latency.backend, latency.threads, latency.batch, latency.precision) == ("torch", 1, 1, "float32")
    assert plan.budgets == {}
    assert (plan.gap is not None) == (select == "optimal")
    assert f"latency {latency.predicted:.4f}" in repr(plan)


def test_all_budgets_hold_together(study: sr.Study, table: Table) -> None:
    plan = study.plan(latency=0.7, macs=0.5, params=0.55, latencies=table)
    assert plan.latency is not None
    assert plan.latency.predicted <= 0.7
    assert plan.keep_ratio("macs") <= 0.5
    assert plan.keep_ratio("params") <= 0.55
    assert plan.budgets == {"macs": 0.5, "params": 0.55}


def test_a_latency_is_a_ratio_or_a_time(study: sr.Study, table: Table) -> None:
    whole = table.times.reference
    by_ratio = study.plan(latency=0.6, latencies=table)
    for text in (f"{0.6 * whole / 1e6:.12f}ms", f"{0.6 * whole / 1e3:.9f} us", f"{0.6 * whole:.6f}ns"):
        by_time = study.plan(latency=text, latencies=table)
        assert by_time.settings == by_ratio.settings
        assert by_time.groups == by_ratio.groups
        assert by_time.latency is not None
        assert by_time.latency.asked == pytest.approx(0.6, rel=1e-9)
    # As it is shown, rounded up.
    enough = study.plan(latency=f"{1.004 * whole}ns", latencies=table)
    assert not enough.settings
    assert not enough.groups
    assert enough.latency is not None
    assert enough.latency.asked == 1.0


def test_a_plan_keeps_the_words_of_a_latency(study: sr.Study, table: Table, tmp_path: Path) -> None:
    time = f"{0.6 * table.times.reference / 1e6:.6f}ms"
    for asked, words in ((f" {time} ", time), ("60 %", "60 %"), (0.6, "")):
        plan = study.plan(latency=asked, latencies=table)
        plan.save(tmp_path / "plan.json")
        loaded = sr.Plan.load(tmp_path / "plan.json")
        assert loaded == plan
        assert loaded.latency is not None
        assert loaded.latency.words == words
        # What is no text is as in files of before.
        assert ('"words"' in (tmp_path / "plan.json").read_text()) == bool(words)
        told = f"asked {plan.latency.asked:.4f}" + f" ({words})" * bool(words)  # type: ignore[union-attr]
        assert told in loaded.summary()
        explained = study.explain("a", plan)
        assert f"latency={words or '0.6'}" in " ".join(explained.split())


@pytest.mark.parametrize("latency", ["1s", "900ms"])
def test_a_time_above_what_the_model_takes_is_refused(study: sr.Study, table: Table, latency: str) -> None:
    words = (
        rf"latency='{latency}' is above what the model takes: it takes less already, [0-9.]+ ms by the table"
    )
    with pytest.raises(sr.BudgetError, match=words):
        study.plan(latency=latency, latencies=table)
    with pytest.raises(sr.BudgetError, match="is above what the model takes"):
        study.plan(latency=f"{1.01 * table.times.reference}ns", latencies=table)
    with pytest.raises(sr.BudgetError, match="is above what the model takes"):
        sr.meet_latency(study, latency, latencies=table)


@pytest.mark.parametrize("latency", [0, -0.5, 1.5, True, float("nan"), "0ms", "4.5", "fast", "-3ms", [0.5]])
def test_what_is_no_latency_is_refused(study: sr.Study, table: Table, latency: object) -> None:
    with pytest.raises(sr.BudgetError, match=r"is neither a ratio in \(0, 1\] nor a time; give latency=0\.6"):
        study.plan(latency=latency, latencies=table)  # type: ignore[arg-type]


def test_a_ratio_in_quotes_is_told_to_lose_them(study: sr.Study, table: Table) -> None:
    with pytest.raises(sr.BudgetError, match=r"; a number is given without quotes: latency=0\.5$"):
        study.plan(latency="0.5", latencies=table)
    with pytest.raises(sr.BudgetError, match=r'latency="4\.5ms"$'):
        study.plan(latency="4", latencies=table)


def test_a_latency_needs_a_table_and_the_other_way_round(study: sr.Study, table: Table) -> None:
    with pytest.raises(sr.OptionError, match=r"latency=0\.6 needs measured times; pass latencies="):
        study.plan(latency=0.6)
    with pytest.raises(sr.OptionError, match="latencies= is given without a latency"):
        study.plan(macs=0.6, latencies=table)
    with pytest.raises(sr.OptionError, match="latencies is a dict; give a table"):
        study.plan(latency=0.6, latencies={})  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="relative_to='original' is for counted costs"):
        study.plan(latency=0.6, latencies=table, relative_to="original")


def test_a_table_of_another_network_is_refused(study: sr.Study, table: Table) -> None:
    other = replace(table, structure=replace(table.structure, sha256="other"))
    with pytest.raises(sr.LatencyError, match="measured with other layers"):
        study.plan(latency=0.6, latencies=other)
    layers = {**table.times.layers, "elsewhere": table.times.layers["a"]}
    strange = replace(table, times=replace(table.times, layers=layers))
    with pytest.raises(sr.LatencyError, match="has times of 'elsewhere', which this study does not have"):
        study.plan(latency=0.6, latencies=strange)


def test_a_latency_below_the_floor_names_it_and_what_holds_it_up(study: sr.Study) -> None:
    slow = table_on(study.structure, Machine(share_fixed=0.7))
    with pytest.raises(sr.BudgetError) as told:
        study.plan(latency=0.6, latencies=slow)
    text = str(told.value)
    assert "latency=0.6 cannot be met; the smallest reachable is latency=0.7" in text
    assert re.search(r"70\.\d% what no layer holds: norms, activations, sums and what the runtime does", text)
    assert "another backend" in text
    with pytest.raises(sr.BudgetError, match=r"'b' \(left alone: in skip\)"):
        study.plan(latency=0.2, latencies=table_on(study.structure, Machine()), skip=("b",))


def test_pairs_that_are_slower_or_not_in_the_table_are_left_out(study: sr.Study) -> None:
    # At three times the time for each MAC no spatial pair with more than a third of the MACs is faster.
    plan = study.plan(latency=0.8, latencies=table_on(study.structure, SLOW_PAIRS), methods=("spatial_svd",))
    for name, setting in plan.settings.items():
        layer = table_on(study.structure, SLOW_PAIRS).times.layers[name]
        sizes = study.structure.layers[name].weight_shape[:2]
        assert float(layer.pairs[setting.form].time(setting.rank, *sizes)) < float(layer.dense.time(*sizes))
    table = table_on(study.structure, Machine())
    layers = {
        name: replace(layer, pairs={form: pair for form, pair in layer.pairs.items() if form != "v_h"})
        for name, layer in table.times.layers.items()
    }
    without = replace(table, times=replace(table.times, layers=layers))
    plan = study.plan(latency=0.6, latencies=without)
    assert plan.settings or plan.groups
    assert all(setting.form != "v_h" for setting in plan.settings.values())


def test_a_layer_that_takes_no_time_is_left_alone(study: sr.Study, table: Table) -> None:
    pairs = ("weight_svd", "spatial_svd")
    by_macs = study.plan(latency=0.7, latencies=table, methods=pairs)
    assert "b" in by_macs.settings
    times = table.times
    quick = times.layers["b"].scaled(1e-3)
    less = float(times.layers["b"].dense.time(24, 16)) - float(quick.dense.time(24, 16))
    times = replace(
        times,
        layers={**times.layers, "b": quick},
        before=times.before - less,
        reference=times.reference - less,
    )
    plan = study.plan(latency=0.8, latencies=replace(table, times=times), methods=pairs)
    assert "c" in plan.settings
    assert "b" not in plan.settings


def test_ranks_and_widths_are_on_the_step_of_the_table(study: sr.Study) -> None:
    stairs = table_on(study.structure, Machine(), step=8)
    for multiple_of in ("auto", 1, 4):
        plan = study.plan(latency=0.6, latencies=stairs, multiple_of=multiple_of)  # type: ignore[arg-type]
        assert plan.latency is not None
        assert plan.latency.predicted <= 0.6
        sizes = [setting.rank for setting in plan.settings.values()]
        sizes += [len(kept) for kept in plan.groups.values()]
        assert sizes
        assert all(size % 8 == 0 for size in sizes)
        assert plan.multiple_of == 8


def test_ratios_are_of_the_original_in_float32(study: sr.Study) -> None:
    """A file of int8 takes half the time as it is: at 0.55 nothing need go."""
    table = table_on(study.structure, Machine(), reference=2.0, precision="int8")
    plan = study.plan(latency=0.55, latencies=table)
    assert not plan.settings
    assert not plan.groups
    assert plan.latency is not None
    assert plan.latency.predicted == pytest.approx(0.5)
    smaller = study.plan(latency=0.3, latencies=table)
    assert smaller.latency is not None
    assert smaller.latency.predicted <= 0.3
    assert smaller.latency.precision == "int8"


def test_a_plan_keeps_its_latency_on_disk_and_loses_it_when_edited(
    study: sr.Study, table: Table, tmp_path: Path
) -> None:
    plan = study.plan(latency=0.6, latencies=table)
    plan.save(tmp_path / "plan.json")
    assert sr.Plan.load(tmp_path / "plan.json") == plan
    assert plan.replace("b", ("weight_svd", 0.5)).latency is None
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "wrong.json").write_text(text.replace('"backend"', '"runtime"'), encoding="utf-8")
    with pytest.raises(sr.PlanError, match="latency"):
        sr.Plan.load(tmp_path / "wrong.json")
    study.plan(macs=0.6).save(tmp_path / "macs.json")
    assert "latency" not in (tmp_path / "macs.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scores(study: sr.Study) -> sr.Scores:
    """Scores of the model's outputs against those of the original, with all methods tried."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    original = session_of(study).original

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(x) - original(x)).square().mean())

    return sr.measure_scores(study, score, candidates=4, progress=False)


@pytest.mark.parametrize("select", ["greedy", "optimal"])
def test_eval_scores_and_times_choose_together(
    study: sr.Study, table: Table, scores: sr.Scores, select: str
) -> None:
    plan = study.plan(latency=0.7, latencies=table, scores=scores, select=select)  # type: ignore[arg-type]
    assert plan.score_loss is not None
    assert plan.latency is not None
    assert plan.latency.predicted == pytest.approx(predicted(study, table, plan), rel=1e-9)
    assert plan.latency.predicted <= 0.7
    tight = study.plan(latency=0.5, latencies=table, scores=scores, select=select, interpolate=True)  # type: ignore[arg-type]
    assert tight.latency is not None
    assert tight.latency.predicted <= 0.5


def test_the_command_line_plans_by_times(
    study: sr.Study, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.save(tmp_path / "run")
    monkeypatch.setattr(sr.Latencies, "load", lambda _: table)
    command = ["plan", str(tmp_path / "run"), "--latency", "0.6"]
    given = [*command, "--latencies", "table.json"]
    done = CliRunner().invoke(cli, [*given, "--out", str(tmp_path / "plan.json")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "predicted latency 0.5" in done.stdout
    assert "asked 0.6000 (torch, float32, batch 1, 1 thread)" in " ".join(done.stdout.split())
    assert sr.Plan.load(tmp_path / "plan.json") == study.plan(latency=0.6, latencies=table)
    facts = json.loads(CliRunner().invoke(cli, [*given, "--json"]).stdout)
    assert facts["latency"]["asked"] == 0.6
    assert CliRunner().invoke(cli, command).exit_code != 0
    time = f"{0.6 * table.times.reference / 1e6:.12f}ms"
    done = CliRunner().invoke(
        cli, ["plan", str(tmp_path / "run"), "--latency", time, "--latencies", "t.json"]
    )
    assert "predicted latency 0.5" in done.stdout
    refused = CliRunner().invoke(cli, [*given, "--manual", "settings.csv"])
    assert "--manual says all; leave out --latency, --latencies" in " ".join(refused.output.split())
