# SPDX-License-Identifier: Apache-2.0
"""``Study.explain``: one layer in words and numbers, each of which can be counted elsewhere."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.plan import Plan
from slimrank.report import Explanation, explain_layer


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    model = nets.settle(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            Residual(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 6),
            nn.Embedding(4, 4),
        )
    )
    # Never called: a layer of which nothing can be said but that.
    model[6] = nn.Identity()
    return sr.study(model.eval(), nets.noise(3, 4, 4, n=3), progress=False)


def explained(study: sr.Study, layer: str, plan: Plan | None = None) -> Explanation:
    return explain_layer(study, layer, plan, unit=study.unit)


def chosen_of(explanation: Explanation) -> list[dict[str, object]]:
    return [choice for choice in explanation.facts["choices"] if choice["chosen"]]  # type: ignore[union-attr,index,misc,call-overload]


def test_a_layer_without_a_plan(study: sr.Study) -> None:
    text = study.explain("1.conv")
    assert text.startswith(
        "1.conv is a Conv2d with a weight of 8x8x3x3 and a bias, called once. It has 9.22 k MACs"
    )
    words = " ".join(text.split())
    assert "weight_svd, spatial_svd and channel_pruning apply." in words
    assert (
        "It makes the 8 units of group '0', with '0': a unit goes for all of them at once; '1.conv', '2' read"
        in words
    )
    assert "It is in block '1', which can be dropped whole (9.22 k MACs, damage" in words
    assert "The plan" not in text
    assert "<- chosen" not in text
    assert explained(study, "1.conv").text == text


def test_every_alternative_costs_what_its_plan_costs(study: sr.Study) -> None:
    plan = Plan.manual(study, {"2": [("spatial_svd", 0.3), ("channel_pruning", {"keep": 10})]})
    explanation = explained(study, "2", plan)
    choices = explanation.facts["choices"]
    assert [choice["text"] for choice in chosen_of(explanation)] == [
        f"spatial_svd {plan.settings['2'].form} rank {plan.settings['2'].rank}",
        "channel_pruning keeps 10 of 16",
    ]
    for choice in chosen_of(explanation):
        assert choice["model_ratio"] == plan.keep_ratio("macs")
    assert sum(choice["damage"] for choice in chosen_of(explanation)) == pytest.approx(plan.damage)  # type: ignore[misc]
    ranks = 0
    for choice in choices:  # type: ignore[union-attr]
        *_, method, form, word, rank = ("", "", "", *choice["text"].split())  # type: ignore[index,call-overload,union-attr]
        if word == "rank" and method == "spatial_svd":
            ranks += 1
            other = replace(plan.settings["2"], rank=int(rank), form=form)
            edited = plan.replace("2", other)
            assert choice["model_ratio"] == edited.keep_ratio("macs")  # type: ignore[index,call-overload]
        if choice["text"] == "no pair":  # type: ignore[index,call-overload]
            alone = Plan.manual(study, {"2": ("channel_pruning", {"keep": 10})})
            assert choice["model_ratio"] == alone.keep_ratio("macs")  # type: ignore[index,call-overload]
            assert choice["layer_ratio"] == pytest.approx(10 / 16)  # type: ignore[index,call-overload]
    assert ranks == 3
    words = " ".join(explanation.text.split())
    assert "The plan makes it a pair, spatial_svd" in words
    assert "changes its channels, 16 -> 10 outputs." in words
    assert "It was set by hand, or the plan was edited." in words
    assert f"Rank {plan.settings['2'].rank - 1} in its place would cost" in words
    assert "If group '2' keeps 9 of 16 units, that costs" in words


@pytest.mark.parametrize(("layer", "left"), [("0", 0.5), ("1.conv", 0.25), ("2", 0.25)])
def test_channels_count_by_what_they_leave_of_the_layer_itself(
    study: sr.Study, layer: str, left: float
) -> None:
    # "0" and "1.conv" make the channels that "1.conv" and "2" read.
    plan = Plan.manual(study, {"0": ("channel_pruning", {"keep": 4}), "2": ("channel_pruning", {"keep": 8})})
    rows = chosen_of(explained(study, layer, plan))
    # The row of the pair that it is not, and that of its channels, say the same of it.
    assert [row["layer_ratio"] for row in rows] == [pytest.approx(left)] * 2


def test_a_layer_in_a_dropped_block(study: sr.Study) -> None:
    plan = Plan.manual(study, {"1": "drop", "0": ("channel_pruning", 0.5)})
    explanation = explained(study, "1.conv", plan)
    assert "The plan drops block '1', in which it is." in explanation.text
    (chosen,) = chosen_of(explanation)
    assert (chosen["kind"], chosen["text"]) == ("block", "block '1' dropped")
    assert chosen["model_ratio"] == plan.keep_ratio("macs")


def test_why_a_layer_is_left_alone(study: sr.Study) -> None:
    plan = Plan.manual(study, {"2": ("spatial_svd", 0.3)})
    words = " ".join(study.explain("5", plan).split())
    assert "The plan leaves it alone." in words
    assert "Its best pair would cost" in words
    assert "In the plan's other pairs a step down costs" in words
    optimal = study.plan(macs=0.6, methods=("weight_svd", "spatial_svd"))
    rule = "All settings together were chosen for the least predicted damage under macs=0.6."
    assert rule in " ".join(study.explain("2", optimal).split())
    assert "Every layer may lose the same under macs=0.6" in " ".join(
        study.explain("2", study.plan(macs=0.6, select="greedy")).split()
    )


def test_what_cannot_be_explained_is_refused(study: sr.Study) -> None:
    with pytest.raises(
        sr.UnknownNameError, match=r"layer '1\.cov': the model has none; did you mean '1\.conv'"
    ):
        study.explain("1.cov")
    with pytest.raises(sr.OptionError, match="plan is a str; give a Plan"):
        study.explain("2", "plan.json")  # type: ignore[arg-type]
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nets.two_layers(), nets.noise(12), methods=("weight_svd",), progress=False)
    with pytest.raises(sr.PlanError, match="it belongs to another model"):
        study.explain("2", other.plan(macs=0.8))


def test_a_layer_that_no_method_handles() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc, self.last = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 6)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.fc(self.words(ids).mean(1)).relu())

    torch.manual_seed(0)
    study = sr.study(Words().eval(), [torch.arange(12).reshape(4, 3)], skip=["fc"], progress=False)
    assert study.explain("words").startswith("words is an Embedding with a weight of 20x8, called once.")
    assert "No method applies: skipped" in study.explain("fc")
    facts = explained(study, "words").facts
    assert facts["class"] == "Embedding"
    assert facts["weight_shape"] == [20, 8]


def test_neighbours_of_what_was_chosen_are_multiples(study: sr.Study) -> None:
    settings = {"2": [("spatial_svd", {"rank": 8}), ("channel_pruning", {"keep": 12})]}
    plan = Plan.manual(study, settings, multiple_of=4)  # type: ignore[arg-type]
    texts = [choice["text"] for choice in explained(study, "2", plan).facts["choices"]]  # type: ignore[index,call-overload,union-attr]
    form = plan.settings["2"].form
    assert [text for text in texts if text.startswith("spatial_svd")] == [
        f"spatial_svd {form} rank {rank}" for rank in (4, 8, 12)
    ]
    assert [text for text in texts if text.startswith("channel")] == [
        f"channel_pruning keeps {count} of 16" for count in (16, 8, 12)
    ]
