# SPDX-License-Identifier: Apache-2.0
"""Eval-score tables over channel groups: what is tried, tables gone on with, and plans made from them."""

import json
from collections.abc import Callable
from pathlib import Path

import joblib
import pruning_nets
import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank import measure_scores
from slimrank.plan import plan_on
from slimrank.records import PRUNING, Method
from slimrank.scores import Scores
from slimrank.scoring import ScoreFn

Methods = tuple[Method, ...]
PRUNED: Methods = (PRUNING,)


@pytest.fixture(scope="module")
def study() -> sr.Study:
    """Three convolutions, a batch norm after each."""
    return sr.study(pruning_nets.build("plain"), pruning_nets.batches("plain", 4, 16), progress=False)


def divergence_on_new_samples(name: str) -> ScoreFn:
    original, x = pruning_nets.build(name), pruning_nets.batches(name, 2, 16, seed=9)
    with torch.no_grad():
        wanted = [original(batch).log_softmax(1) for batch in x]

    def divergence(model: nn.Module) -> float:
        with torch.no_grad():
            found = [model(batch).log_softmax(1) for batch in x]
        pairs = zip(wanted, found, strict=True)
        return sum(float((w.exp() * (w - f)).sum(1).mean()) for w, f in pairs)

    return divergence


@pytest.fixture(scope="module")
def score() -> ScoreFn:
    return divergence_on_new_samples("plain")


@pytest.fixture(scope="module")
def table(study: sr.Study, score: ScoreFn) -> Scores:
    return measure_scores(study, score, lower_is_better=True, progress=False)


def test_every_candidate_is_the_largest_count_within_it(study: sr.Study, score: ScoreFn) -> None:
    found = measure_scores(
        study, score, methods=PRUNED, candidates=(0.01, 0.3, 0.5), lower_is_better=True, progress=False
    )
    assert found.entries == {}
    assert list(found.groups) == ["stem", "deep", "last"]
    for name, entries in found.groups.items():
        units = study.structure.channels.groups[name].units
        smallest = next(int(curve.kept[0]) for curve in study.group_curves if curve.group == name)
        # Nothing is within a hundredth: the smallest count stands for it.
        assert [entry.rank for entry in entries] == [smallest, int(0.3 * units), units // 2]
        assert [entry.keep_ratio for entry in entries] == [entry.rank / units for entry in entries]
        assert {(entry.method, entry.form) for entry in entries} == {("channel_pruning", "channels")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data_free"),
    [
        *((name, True) for name in ("plain", "depthwise", "squeeze_excite", "transformer")),
        # Where a consumer has few rows, applying looks for a better ridge, which these scores do without.
        *((name, False) for name in ("plain", "squeeze_excite", "transformer")),
    ],
)
def test_a_score_is_that_of_the_model_with_one_group_slimmed(name: str, data_free: bool) -> None:
    model = pruning_nets.build(name)
    study = sr.study(model, pruning_nets.batches(name, 4, 16), data_free=data_free, progress=False)
    score = divergence_on_new_samples(name)
    found = measure_scores(study, score, methods=PRUNED, candidates=3, lower_is_better=True, progress=False)
    assert found.groups
    curves = {curve.group: curve for curve in study.group_curves}
    for group, entries in found.groups.items():
        for entry in entries:
            kept = curves[group].channels_kept(entry.rank)
            plan = plan_on(study, {}, select="manual", groups={group: kept})
            applied = score(study.apply(plan, sequential=False).model)
            # Fitted to other rows of the samples; without data nothing is fitted.
            assert entry.score == pytest.approx(applied, rel=1e-4 if data_free else 0.25, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", pruning_nets.NAMES)
def test_the_cache_changes_nothing(name: str) -> None:
    study = sr.study(pruning_nets.build(name), pruning_nets.batches(name), progress=False)
    score = divergence_on_new_samples(name)
    tables = [
        measure_scores(study, score, methods=PRUNED, candidates=4, prefix_cache=size, progress=False)
        for size in (0, 1 << 24)
    ]
    assert tables[0] == tables[1]
    assert tables[0].groups


def test_the_caller_s_model_is_left_alone(snapshot: Callable[[nn.Module], object]) -> None:
    model = pruning_nets.build("plain").train()
    study = sr.study(model, pruning_nets.batches("plain"), progress=False)
    before, private = snapshot(model), snapshot(seams.original_of(study))
    seen: set[int] = set()

    def score(model: nn.Module) -> float:
        seen.add(model.stem.out_channels)
        return 0.0

    measure_scores(study, score, methods=PRUNED, candidates=4, progress=False)
    assert snapshot(model) == before
    assert snapshot(seams.original_of(study)) == private
    assert seen == {4, 8, 12, 16}


@pytest.fixture(
    scope="module", params=[PRUNED, ("weight_svd", "channel_pruning")], ids=["groups", "groups and layers"]
)
def whole(study: sr.Study, score: ScoreFn, request: pytest.FixtureRequest) -> tuple[Methods, Scores]:
    """Some methods, and six candidates of each, measured in one go."""
    return request.param, measure_scores(
        study, score, methods=request.param, candidates=6, lower_is_better=True, progress=False
    )


@pytest.mark.parametrize("after", [0, 1, 12])
def test_a_table_is_gone_on_with(
    after: int, whole: tuple[Methods, Scores], study: sr.Study, score: ScoreFn, tmp_path: Path
) -> None:
    (methods, table), file, count = whole, tmp_path / "scores.json", [0]

    def measure(function: ScoreFn) -> Scores:
        return measure_scores(
            study, function, methods=methods, candidates=6, path=file, lower_is_better=True, progress=False
        )

    def failing(model: nn.Module) -> float:
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return score(model)

    def counting(model: nn.Module) -> float:
        count[0] += 1
        return score(model)

    with pytest.raises(KeyboardInterrupt):
        measure(failing)
    assert measure(counting) == table
    assert Scores.load(file) == table
    tables = (*table.entries.values(), *table.groups.values())
    assert count[0] == 1 + sum(map(len, tables))
    assert measure(counting) == table
    assert count[0] == 1 + sum(map(len, tables))


def test_groups_are_chosen_by_name_or_by_who_makes_them(score: ScoreFn) -> None:
    study = sr.study(pruning_nets.build("depthwise"), pruning_nets.batches("depthwise"), progress=False)
    assert study.structure.channels.groups["wide"].producers == ("wide", "depth")

    def chosen(*layers: str, methods: Methods = PRUNED) -> tuple[list[str], list[str]]:
        found = measure_scores(
            study, lambda _model: 1.0, methods=methods, layers=layers, candidates=2, progress=False
        )
        return list(found.entries), list(found.groups)

    assert chosen("wide") == ([], ["wide"])
    assert chosen("dep*") == ([], ["wide"])
    assert chosen("st*", "depth") == ([], ["stem", "wide"])
    assert chosen("wide", methods=("weight_svd",)) == (["wide"], [])
    assert chosen("wide", "fc", methods=("weight_svd", PRUNING)) == (["wide", "fc"], ["wide"])
    with pytest.raises(sr.OptionError, match=r"'fc' matches 'fc', which cannot be compressed: 'channel_prun"):
        chosen("fc")
    with pytest.raises(sr.UnknownNameError, match=r"layers: 'dpeth' matches no layer; did you mean 'depth'"):
        chosen("dpeth")


@pytest.mark.parametrize("select", ["greedy", "optimal", "uniform"])
@pytest.mark.parametrize(
    "options",
    [{"multiple_of": 1}, {}, {"monotonic": True}, {"interpolate": True, "multiple_of": 4}],
)
@pytest.mark.parametrize("methods", [PRUNED, None])
def test_plans_keep_the_budget_and_add_up_the_losses(
    select: str,
    options: dict[str, object],
    methods: Methods | None,
    study: sr.Study,
    table: Scores,
) -> None:
    plan = study.plan(macs=0.5, select=select, scores=table, methods=methods, **options)  # type: ignore[arg-type]
    assert plan.keep_ratio("macs") <= 0.5
    # One common share belongs to groups alone, or to layers alone.
    assert plan.groups or (select == "uniform" and methods is None)
    if options != {"multiple_of": 1}:
        return
    tried = {
        (name, entry.form, entry.rank): table.loss(entry)
        for entries in (table.entries, table.groups)
        for name, own in entries.items()
        for entry in own
    }
    losses = [tried[name, "channels", len(kept)] for name, kept in plan.groups.items()]
    losses += [tried[name, setting.form, setting.rank] for name, setting in plan.settings.items()]
    assert plan.score_loss == pytest.approx(sum(losses))
    assert plan.damage is not None


def test_greedy_is_one_threshold_over_layers_and_groups(study: sr.Study) -> None:
    """Losses made up so that the rule can be followed by hand."""
    loss = {"stem": 1.0, "deep": 2.0, "last": 4.0}

    def score(model: nn.Module) -> float:
        widths = {"stem": 16, "deep": 24, "last": 24}
        gone = {name: 1 - model.get_submodule(name).out_channels / full for name, full in widths.items()}
        return -sum(loss[name] * share for name, share in gone.items())

    found = measure_scores(study, score, methods=PRUNED, candidates=4, progress=False)
    plan = study.plan(macs=0.6, select="greedy", scores=found)
    # Threshold 1: stem may go to a quarter, deep to a half, last to three quarters; half the MACs are left
    # over, and what was hurt most is given back first.
    assert plan.keep_ratio("macs") <= 0.6
    assert plan.score_loss is not None
    assert plan.score_loss <= 0.75 + 1.0 + 1.0
    assert (
        max(
            loss[name] * (1 - len(kept) / (16 if name == "stem" else 24))
            for name, kept in plan.groups.items()
        )
        <= 1.0
    )
    applied = study.apply(plan)
    assert applied.after == plan.after
    assert -score(applied.model) == pytest.approx(plan.score_loss)


def test_groups_without_scores_stay_whole(study: sr.Study, score: ScoreFn) -> None:
    part = measure_scores(study, score, methods=PRUNED, layers=["deep"], lower_is_better=True, progress=False)
    plan = study.plan(macs=0.9, select="greedy", scores=part)
    assert set(plan.groups) == {"deep"}
    assert plan.steps[0].structure == study.structure
    with pytest.raises(sr.BudgetError, match=r"the smallest reachable is"):
        study.plan(macs=0.05, scores=part)


@pytest.mark.slow
def test_other_processes_give_the_same_table(study: sr.Study, score: ScoreFn, tmp_path: Path) -> None:
    options = {"methods": PRUNED, "candidates": 4, "lower_is_better": True, "progress": False}
    alone = measure_scores(study, score, **options)  # type: ignore[arg-type]
    file = tmp_path / "scores.json"
    assert measure_scores(study, score, path=file, workers=2, **options) == alone  # type: ignore[arg-type]
    assert Scores.load(file) == alone
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert measure_scores(study, score, **options) == alone  # type: ignore[arg-type]


def test_the_table_for_people(table: Scores, tmp_path: Path) -> None:
    table.save(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [one["group"] for one in content["groups"]] == ["stem", "deep", "last"]
    assert set(content["entries"]) == {"stem", "deep", "last", "fc"}
    assert "channel_pruning" in table.summary()
    table.report(tmp_path / "scores.html")
    assert 'aria-label="stem, channel_pruning"' in (tmp_path / "scores.html").read_text()
