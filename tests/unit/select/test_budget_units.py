# SPDX-License-Identifier: Apache-2.0
"""Budgets in the units that people have: percent, numbers of MACs and parameters, sizes in MB."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import slimrank as sr
from slimrank.plan import Plan
from slimrank.select import select_plan

SELECTS = ("optimal", "greedy", "uniform")


@cache
def plain() -> sr.Study:
    """A network of layers alone, none with few ranks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            *(
                nn.Conv2d(3, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1, stride=2),
                nn.ReLU(),
            ),
            *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10)),
        ).eval()
    images = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(4))]
    return sr.study(
        model, images, methods=("weight_svd", "spatial_svd"), data_free=True, effort="fast", progress=False
    )


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
def test_a_number_is_kept_and_used(select: str, metric: str) -> None:
    whole = plain().before.metric(metric)  # type: ignore[arg-type]
    asked = int(whole * 0.57)
    plan = select_plan(plain(), budgets={metric: asked}, select=select)  # type: ignore[dict-item, arg-type]
    after = plan.after.metric(metric)  # type: ignore[arg-type]
    assert 0.9 * asked < after <= asked
    assert plan.budgets == {metric: asked / whole}
    assert plan.asked == {metric: f"{asked:_}"}


def test_a_number_that_a_plan_costs_gives_that_plan() -> None:
    for ratio in np.linspace(0.3, 0.99, 25):
        by_ratio = select_plan(plain(), budgets={"macs": float(ratio)})
        # Exactly what it costs must be enough, and one less must not give it.
        same = select_plan(plain(), budgets={"macs": by_ratio.after.macs})
        assert same.after.macs == by_ratio.after.macs
        assert (
            select_plan(plain(), budgets={"macs": by_ratio.after.macs - 1}).after.macs < by_ratio.after.macs
        )


@pytest.mark.parametrize("number", [400_000, np.int64(400_000), Decimal("4e5"), Fraction(400_000)])
def test_whole_numbers_of_other_kinds(number: int) -> None:
    plan = select_plan(plain(), budgets={"macs": number})
    assert plan.asked == {"macs": "400_000"}
    assert plan.after.macs <= 400_000


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("100kB", 100_000),
        ("0.1 MB", 100_000),
        ("0.0001GB", 100_000),
        ("100KiB", 102_400),
        (" 0.1MiB ", 104_857),
        ("0.0001GiB", 107_374),
        ("100000", None),
    ],
)
def test_sizes(words: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(sr.BudgetError, match=r"bytes='100000' is no keep ratio.*bytes=\"2MB\""):
            select_plan(plain(), budgets={"bytes": words})
        return
    plan = select_plan(plain(), budgets={"bytes": words})
    assert plan.asked == {"bytes": words.strip()}
    assert plan.budgets == {"bytes": size / plain().before.bytes}
    assert plan.after.bytes <= size


@pytest.mark.parametrize(
    ("words", "ratio"), [("50%", 0.5), (" 62.5 % ", 0.625), (".7e", None), ("100%", 1.0)]
)
def test_percent(words: str, ratio: float | None) -> None:
    if ratio is None:
        with pytest.raises(sr.BudgetError, match="is no keep ratio"):
            select_plan(plain(), budgets={"macs": words})
        return
    plan = select_plan(plain(), budgets={"macs": words})
    assert plan.budgets == {"macs": ratio}
    assert plan.asked == {"macs": words.strip()}
    assert plan.settings == select_plan(plain(), budgets={"macs": ratio}).settings


def test_a_plain_ratio_and_one_stay_ratios() -> None:
    assert select_plan(plain(), budgets={"macs": 0.5}).asked == {}
    whole = select_plan(plain(), budgets={"macs": 1})
    assert (whole.settings, whole.budgets, whole.asked) == ({}, {"macs": 1.0}, {})


@pytest.mark.parametrize(
    "asked", ["0%", "101%", "-5%", "%", "50", "19M", "2 MB", 1.5, np.float32(3.0), -3, True]
)
def test_what_is_neither_a_ratio_nor_a_number(asked: object) -> None:
    words = r"macs=.* is no keep ratio .*macs=0\.5 or macs=\"50%\" to keep half, or macs=19_000_000 for so"
    with pytest.raises(sr.BudgetError, match=words):
        select_plan(plain(), budgets={"macs": asked})  # type: ignore[dict-item]


def test_a_unit_that_does_not_exist() -> None:
    with pytest.raises(sr.BudgetError, match=r"bytes='2XB': there is no unit 'XB'"):
        select_plan(plain(), budgets={"bytes": "2XB"})


@pytest.mark.parametrize(("metric", "unit"), [("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes")])
def test_more_than_the_model_has(metric: str, unit: str) -> None:
    whole = plain().before.metric(metric)  # type: ignore[arg-type]
    words = (
        rf"{metric}={whole + 1:_} is above what the model costs: it has less already, {whole:,} {unit}; give"
    )
    with pytest.raises(sr.BudgetError, match=words):
        select_plan(plain(), budgets={metric: whole + 1})  # type: ignore[dict-item]
    assert select_plan(plain(), budgets={metric: whole}).settings == {}  # type: ignore[dict-item]


@pytest.mark.parametrize("select", SELECTS)
def test_a_number_out_of_reach_names_the_smallest_number(select: str) -> None:
    words = r"macs=100 cannot be met; the smallest reachable is macs=([0-9_]+)\. "
    with pytest.raises(sr.BudgetError, match=words) as caught:
        select_plan(plain(), budgets={"macs": 100}, select=select)  # type: ignore[arg-type]
    floor = int(str(caught.value).split("reachable is macs=")[1].split(". ")[0])
    assert select_plan(plain(), budgets={"macs": floor}, select=select).after.macs == floor  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "unit"), [("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes")])
@pytest.mark.parametrize("number", [2, 50, 99])
def test_a_number_that_was_meant_as_percent(metric: str, unit: str, number: int) -> None:
    words = rf'\. {metric}={number} is a number of {unit}; for {number} % give {metric}="{number}%"$'
    with pytest.raises(sr.BudgetError, match=words):
        select_plan(plain(), budgets={metric: number})  # type: ignore[dict-item]


@pytest.mark.parametrize("asked", [100, 101, 0.0001, "0.01%"])
def test_what_was_not_meant_as_percent(asked: float | str) -> None:
    with pytest.raises(sr.BudgetError, match="cannot be met") as caught:
        select_plan(plain(), budgets={"macs": asked})
    assert "is a number of" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "text", "hint"),
    [
        ("macs", "0.5", True),
        ("params", " .5 ", True),
        ("macs", "400000", True),
        ("bytes", "100000", True),
        ("macs", "1", True),
        ("macs", "1.5", False),
        ("macs", "0", False),
        ("macs", "half", False),
    ],
)
def test_a_number_in_quotes_is_told_to_lose_them(metric: str, text: str, hint: bool) -> None:
    with pytest.raises(sr.BudgetError, match="is no keep ratio") as caught:
        select_plan(plain(), budgets={metric: text})  # type: ignore[dict-item]
    ending = f"; a number is given without quotes: {metric}={text.strip()}"
    assert str(caught.value).endswith(ending) is hint
    if hint:
        number = float(text) if "." in text else int(text)
        select_plan(plain(), budgets={metric: number})  # type: ignore[dict-item]


def test_a_plan_file_keeps_what_was_asked_and_older_ones_are_read(tmp_path: Path) -> None:
    plan = select_plan(plain(), budgets={"macs": 400_000, "bytes": "100kB"})
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert '"asked": {"bytes": "100kB", "macs": "400_000"}' in path.read_text()
    assert "asked for: macs 400_000, bytes 100kB" in " ".join(plan.summary().split())
    # As older versions wrote it.
    replace(plan, asked={}).save(path)
    assert '"asked"' not in path.read_text()
    assert Plan.load(path).asked == {}
    # Edited by hand, nothing of it was asked for.
    plan.save(path)
    name, setting = next(iter(plan.settings.items()))
    text = path.read_text().replace(f'"rank": {setting.rank}}}', f'"rank": {setting.rank - 1}}}')
    path.write_text(text)
    edited = Plan.load(path)
    assert (edited.budgets, edited.asked) == ({}, {})
    assert plan.replace(name, None).asked == {}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 32, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def study() -> sr.Study:
    return sr.study(net(), data(), effort="fast", progress=False)


def test_a_study_and_what_it_builds_keep_numbers(study: sr.Study) -> None:
    plan = study.plan(bytes="8kB", macs="60%")
    result = study.apply(plan)
    assert result.after.bytes <= 8000
    assert result.keep_ratio("macs") <= 0.6
    assert result.plan.asked == {"bytes": "8kB", "macs": "60%"}
    assert "under macs=60%, bytes=8kB" in " ".join(study.explain("0", plan).split())


def test_percent_without_its_sign_is_told_of_channels_and_peaks(study: sr.Study) -> None:
    with pytest.raises(sr.BudgetError, match=r'macs=50 is a number of MACs; for 50 % give macs="50%"$'):
        study.plan(macs=50)
    words = r'activation_bytes=50 is a number of bytes; for 50 % give activation_bytes="50%"$'
    with pytest.raises(sr.BudgetError, match=words):
        study.plan(activation_bytes=50)


def test_compress_takes_numbers_and_refuses_nonsense_at_once() -> None:
    result = sr.compress(net(), data(), params=2000, effort="fast", progress=False)
    assert result.after.params <= 2000
    with pytest.raises(sr.BudgetError, match=r"params='2k' is no keep ratio"):
        sr.compress(net(), [], params="2k", progress=False)


def test_the_second_step_counts_numbers_of_the_whole_model(study: sr.Study) -> None:
    first = study.apply(study.plan(params=2600))
    again = sr.study(first, data(), effort="fast", progress=False)
    for relative_to in ("model", "original"):
        plan = again.plan(params=2000, relative_to=relative_to)  # type: ignore[arg-type]
        assert plan.after.params <= 2000
        assert plan.budgets == {"params": 2000 / study.before.params}
    with pytest.raises(sr.BudgetError, match="it has less already"):
        again.plan(params=study.before.params, relative_to="original")


def test_search_split_takes_numbers(study: sr.Study) -> None:
    words = r"macs=9_000_000 is above what the model costs"
    with pytest.raises(sr.BudgetError, match=words):
        sr.search_split(study, macs=9_000_000)
    conv = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()).eval()
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    measured = sr.study(conv, images, effort="fast", progress=False)
    asked = int(measured.before.macs * 0.6)
    result = sr.search_split(measured, macs=asked, splits=(0.8,))
    assert result.after.macs <= asked
