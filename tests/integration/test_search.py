# SPDX-License-Identifier: Apache-2.0
"""Budgets found by trying: smallest and search_split."""

import sys
from collections.abc import Callable
from itertools import count
from types import ModuleType

import pruning_nets
import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.report import agreement_text


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    return sr.study(nets.cnn(), nets.noise(1, 8, 8, n=4), progress=False)


@pytest.mark.slow
def test_smallest_stays_within_the_divergence_and_the_next_smaller_does_not(study: sr.Study) -> None:
    limit = 0.002
    result = sr.smallest(study, max_drop=limit, tolerance=0.02, multiple_of=1)
    assert result.divergence is not None
    assert result.divergence <= limit
    tried = [note.text for note in result.notes if note.where == "smallest"]
    assert result.agreement is not None
    assert any(text.endswith(f", {agreement_text(result.agreement)}") for text in tried)
    assert 1 < len(tried) <= 10
    above = [float(text.split()[1].rstrip(":")) for text in tried if "above" in text]
    assert max(above) < result.keep_ratio("macs") <= max(above) + 0.03


@pytest.mark.slow
def test_smallest_takes_any_ranks_where_the_first_multiples_lose_too_much(study: sr.Study) -> None:
    result = sr.smallest(study, max_drop=0.002, tolerance=0.02)
    assert result.divergence is not None
    assert result.divergence <= 0.002
    assert (result.plan.multiple_of, result.plan.relaxed) == (1, None)
    with pytest.raises(sr.BudgetError, match="no model stays within a drop"):
        sr.smallest(study, max_drop=0.002, tolerance=0.02, multiple_of=8)


@pytest.mark.slow
def test_smallest_by_score_evaluates_the_original_once_and_keeps_the_drop(study: sr.Study) -> None:
    seen: list[bool] = []

    def score(model: nn.Module) -> float:
        seen.append(model.training)
        with torch.no_grad():
            return -float(model(torch.ones(1, 1, 8, 8)).square().mean())

    result = sr.smallest(study, max_drop=0.2, score_fn=score, metric="params", tolerance=0.05)
    tried = [note for note in result.notes if note.where == "smallest"]
    # A score says itself what it means.
    assert not any("top-1" in note.text or "cosine" in note.text for note in tried)
    assert len(seen) == 1 + len(tried)
    assert not any(seen)
    loss = sr.smallest(
        study,
        max_drop=0.2,
        score_fn=lambda model: -score(model),
        lower_is_better=True,
        metric="params",
        tolerance=0.05,
    )
    assert loss.after == result.after


@pytest.mark.slow
def test_smallest_says_when_nothing_holds(study: sr.Study) -> None:
    models: list[nn.Module] = []

    def score(model: nn.Module) -> float:
        models.append(model)
        return 0.0 if len(models) == 1 else -1.0

    with pytest.raises(
        sr.BudgetError, match=r"no model stays within a drop of 0\.5 .*; tried macs .*raise max"
    ):
        sr.smallest(study, max_drop=0.5, score_fn=score, tolerance=0.3)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"max_drop": -1.0}, sr.OptionError, "max_drop=-1.0; give a number of at least 0"),
        ({"max_drop": 0.1, "tolerance": 0.0}, sr.OptionError, "tolerance=0.0; give a share"),
        ({"max_drop": 0.1, "score_fn": 3}, sr.OptionError, "score_fn is a int; give a function"),
        (
            {"max_drop": 0.1, "score_fn": lambda _m: float("nan")},
            sr.ScoreError,
            "the original: score_fn returned nan",
        ),
        (
            {"max_drop": 0.1, "score_fn": lambda _m: 1 / 0},
            sr.ScoreError,
            "the original: score_fn failed with ZeroDiv",
        ),
    ],
)
def test_smallest_refuses(
    asked: dict[str, object], error: type[Exception], message: str, study: sr.Study
) -> None:
    with pytest.raises(error, match=message):
        sr.smallest(study, **asked)  # type: ignore[arg-type]


def test_a_study_without_a_model_cannot_search(study: sr.Study, tmp_path: pytest.TempPathFactory) -> None:
    study.save(str(tmp_path))
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.smallest(sr.Study.load(str(tmp_path)), max_drop=0.1)


def tries(drop: Callable[[float], float], plans: Callable[[float], float], guess: float = 1.0) -> list[float]:
    """Keep ratios that a search builds; predicted damage is (1 - ratio)^2."""
    search = seams.Bisection(low=0.05, high=1.0, max_drop=0.01, per_damage=guess)
    built: list[float] = []
    for _ in range(100):
        if built and search.high - search.low <= 0.01:
            return [*built, search.high]
        asked = search.next_ratio(lambda ratio: (1 - plans(ratio)) ** 2)
        reached = plans(asked)
        if search.knows(reached):
            search.skip(asked, reached)
            continue
        built.append(reached)
        search.learn(asked, reached, (1 - reached) ** 2, drop(reached))
    raise AssertionError(f"no end: {built}")


@pytest.mark.parametrize("guess", [1e-3, 1.0, 1e3])
def test_a_drop_that_follows_the_damage_is_found_in_few_tries(guess: float) -> None:
    limit = 1 - (0.01 / 0.3) ** 0.5
    *built, found = tries(lambda ratio: 0.3 * (1 - ratio) ** 2, lambda asked: asked, guess)
    assert limit <= found <= limit + 0.01
    assert len(built) <= 7


@pytest.mark.parametrize("limit", [0.12, 0.3, 0.6, 0.97])
def test_a_score_that_is_flat_and_then_falls_is_found_by_halving(limit: float) -> None:
    *built, found = tries(lambda ratio: 0.0 if ratio >= limit else 0.5, lambda asked: asked)
    assert limit <= found <= limit + 0.01
    assert len(built) <= 10


@pytest.mark.parametrize(("limit", "expected"), [(0.1, 0.2), (0.3, 0.55), (0.6, 0.81), (0.9, 1.0)])
def test_where_plans_are_few_each_is_built_once(limit: float, expected: float) -> None:
    ratios = (0.05, 0.2, 0.55, 0.81, 1.0)
    *built, found = tries(
        lambda ratio: 0.0 if ratio >= limit else 0.5,
        lambda asked: max(ratio for ratio in ratios if ratio <= asked),
    )
    assert found == expected
    assert len(built) == len(set(built)) <= 4


@pytest.mark.slow
def test_smallest_of_a_second_step_searches_in_shares_of_its_own_model(study: sr.Study) -> None:
    halfway = study.apply(study.plan(macs=0.5))
    feed = sys.modules["nets"].noise(1, 8, 8, n=4)
    second = sr.study(halfway, feed, likelihood="categorical", progress=False)
    result = sr.smallest(second, max_drop=0.002, tolerance=0.02)
    assert result.divergence is not None
    assert result.divergence <= 0.002
    assert result.keep_ratio("macs") < halfway.keep_ratio("macs")
    assert len([note for note in result.notes if note.where == "smallest"]) <= 8
    with pytest.raises(sr.StudyError, match="give a study of the original"):
        sr.search_split(second, macs=0.5)


def test_search_split_skips_in_both_steps_what_the_study_skipped() -> None:
    nets = sys.modules["nets"]
    spared = sr.study(nets.cnn(), nets.noise(1, 8, 8, n=4), skip=("conv",), progress=False)
    result = sr.search_split(spared, macs=0.8, splits=(0.9,))
    assert all("conv" not in step.settings for step in result.plan.steps)
    assert result.plan.keep_ratio("macs") <= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {"channel_order": "magnitude"},
        {"channel_order": "random"},
        {"likelihood": "categorical"},
        {"skip": ("deep",)},
        {"fisher": False},
        {"draws": 1},
        {"holdout": 0.5},
        {"data_free": True},
        {"seed": 5},
    ],
    ids=lambda asked: " ".join(f"{name}={value}" for name, value in asked.items()),
)
def test_search_split_studies_again_with_the_options_of_the_study(asked: dict[str, object]) -> None:
    model, batches = pruning_nets.build("plain"), pruning_nets.batches("plain")
    first = sr.study(model, batches, progress=False, **asked)  # type: ignore[arg-type]
    halfway = first.apply(first.plan(macs=0.8, methods=("spatial_svd",)))

    def second_plan(**options: object) -> sr.Plan:
        again = sr.study(halfway, batches, methods=("channel_pruning",), progress=False, **options)  # type: ignore[arg-type]
        return again.plan(macs=0.5, relative_to="original")

    scored: list[nn.Module] = []

    def later_is_better(model: nn.Module) -> float:
        scored.append(model)
        return float(len(scored))

    found = sr.search_split(
        first,
        macs=0.5,
        methods=("spatial_svd", "channel_pruning"),
        splits=(0.8,),
        score_fn=later_is_better,
    ).plan
    expected = second_plan(**asked)
    assert len(found.steps) == 2
    assert (found.steps, found.damage) == (expected.steps, expected.damage)
    if "data_free" not in asked:
        # A step without data does not follow one with data, so there is no other plan to compare with.
        other = second_plan()
        assert (found.steps, found.damage) != (other.steps, other.damage)


@pytest.mark.slow
def test_search_split_tries_both_ends_and_the_splits_and_keeps_the_best(study: sr.Study) -> None:
    tuned: list[int] = []

    def tune(model: nn.Module) -> nn.Module:
        tuned.append(1)
        return model

    result = sr.search_split(study, macs=0.5, splits=(0.8, 0.65), tune=tune)
    told = [note.text for note in result.notes if note.where == "split"]
    assert len(told) == 4
    assert len(tuned) == 2 + 2 * 2
    values = {text: float(text.split("drop ")[1].split()[0]) for text in told}
    (winner,) = [text for text in told if text.endswith("(returned)")]
    assert values[winner] == min(values.values())
    assert result.divergence == pytest.approx(values[winner], rel=1e-3)
    assert result.keep_ratio("macs") <= 0.5
    # A drop in nats tells little: what it means stands beside it.
    assert result.agreement is not None
    assert agreement_text(result.agreement) in winner
    assert len({text.partition("cosine ")[2] for text in told}) > 1


@pytest.mark.slow
def test_search_split_warns_of_what_training_made_of_a_result(study: sr.Study) -> None:
    def erase(model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.01)

    assert not any(note.is_warning for note in sr.search_split(study, macs=0.8, splits=(0.9,)).notes)
    scores = count()
    # A later score is better: the last that is built has two steps.
    for score_fn, n_steps in ((None, 1), (lambda _model: float(next(scores)), 2)):
        erased = sr.search_split(study, macs=0.8, splits=(0.9,), tune=erase, score_fn=score_fn)
        assert len(erased.plan.steps) == n_steps
        (warning,) = [note for note in erased.notes if note.is_warning]
        assert "the outputs have little left of the original's" in warning.text


def test_search_split_by_score_can_prefer_two_steps(study: sr.Study) -> None:
    result = sr.search_split(
        study, macs=0.5, splits=(0.8,), score_fn=lambda model: sum(1 for _ in model.modules())
    )
    assert len(result.plan.steps) == 2
    assert result.plan.steps[0].settings


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, sr.BudgetError, "search_split needs exactly one budget, and 0 are given; give macs="),
        ({"macs": 0.5, "params": 0.5}, sr.BudgetError, "exactly one budget, and 2 are given"),
        ({"macs": 1.0}, sr.BudgetError, r"macs=1\.0 is no keep ratio .* in \(0, 1\); give e\.g\. macs=0\.5"),
        (
            {"bytes": 1.5},
            sr.BudgetError,
            r"bytes=1\.5 is no keep ratio .* in \(0, 1\); give e\.g\. bytes",
        ),
        ({"macs": 0.5, "splits": (0.4,)}, sr.OptionError, "0.4 is not between the budget 0.5 and 1"),
        ({"macs": 0.5, "methods": ("weight_svd",)}, sr.OptionError, "give two different ones"),
        ({"macs": 0.001}, sr.BudgetError, "nothing can be built: .*raise the budget"),
    ],
)
def test_search_split_refuses(
    asked: dict[str, object], error: type[Exception], message: str, study: sr.Study
) -> None:
    with pytest.raises(error, match=message):
        sr.search_split(study, **asked)  # type: ignore[arg-type]


def test_functions_that_change_the_model_are_refused_by_searches_too(study: sr.Study) -> None:
    def spoils(model: nn.Module) -> float:
        with torch.no_grad():
            model.bn.running_mean.add_(1.0)
        return 0.0

    with pytest.raises(sr.ScoreError, match="the original: score_fn changed the model"):
        sr.smallest(study, max_drop=0.1, score_fn=spoils)
    with pytest.raises(sr.ScoreError, match="returned a NoneType; return one number"):
        sr.smallest(study, max_drop=0.1, score_fn=lambda _model: None)  # type: ignore[arg-type,return-value]
