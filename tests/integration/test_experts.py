# SPDX-License-Identifier: Apache-2.0
"""Networks whose router sends each token to some experts: others are chosen once it is compressed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr

NEVER = "no calibration sample reached it"
UNPAIRED = "fitted to the original's inputs"


class Experts(nn.Module):
    def __init__(self, width: int, hidden: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)
            if len(token):
                out = out.index_add(0, token, expert(tokens[token]) * weights[token, slot, None])
        return out.view(x.shape)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.first_norm, self.first = nn.Linear(12, 32), nn.LayerNorm(32), Experts(32, 64, 4)
        self.norm, self.second, self.out = nn.LayerNorm(32), Experts(32, 64, 4), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.first(self.first_norm(x))
        return self.out((x + self.second(self.norm(x))).mean(1))


def network(seed: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def batches(seed: int = 3) -> list[Tensor]:
    network(seed)
    return [torch.randn(16, 10, 12) for _ in range(6)]


@pytest.fixture(scope="module")
def studies() -> list[sr.Study]:
    return [sr.study(network(seed), batches(seed), effort="fast", progress=False) for seed in (3, 2)]


@pytest.mark.slow
def test_layers_whose_rows_moved_are_fitted_to_the_original_and_it_is_said(studies: list[sr.Study]) -> None:
    study = studies[0]
    result = study.apply(study.plan(macs=0.45))
    assert not [note for note in result.notes if NEVER in note.text]
    (told,) = [note.text for note in result.notes if UNPAIRED in note.text]
    assert "a router chose other experts" in told
    experts = [layer for layer in result.layers if layer.fit is not None and "experts" in layer.name]
    assert experts
    assert all(layer.fit in ("sequential", "independent") for layer in experts)
    moved = [layer.name for layer in experts if layer.fit == "independent"]
    assert moved
    assert any(repr(name) in told for name in moved)
    # As good as a fit to the original's inputs throughout; without data these layers lost far more.
    blind = sr.apply(network(), result.plan, progress=False)
    x = torch.cat(batches())
    with torch.no_grad():
        expected, found, plain = (model(x) for model in (network(), result.model, blind.model))
    assert (found - expected).square().sum() < 0.2 * (plain - expected).square().sum()


@pytest.mark.slow
def test_a_result_is_never_above_its_budget(studies: list[sr.Study]) -> None:
    told = []
    for study in studies:
        for macs in (0.45, 0.35):
            for methods in (None, ("channel_pruning",)):
                result = study.apply(study.plan(macs=macs, methods=methods))
                assert result.keep_ratio() <= macs
                assert result.plan.budgets == {"macs": macs}
                told += [note for note in result.notes if "built again for less" in note.text]
    assert told


@pytest.mark.slow
def test_what_was_fixed_is_held_when_it_is_planned_again(studies: list[sr.Study]) -> None:
    told = []
    for study in studies:
        for macs in (0.45, 0.35):
            free = study.plan(macs=macs)
            name, setting = next((name, pair) for name, pair in free.settings.items() if pair.rank > 2)
            lower = (setting.method, {"rank": setting.rank - 1, "form": setting.form})
            plan = study.plan(macs=macs, fixed={name: lower})
            result = study.apply(plan)
            again = [note for note in result.notes if "built again for less" in note.text]
            if again:
                assert result.plan.settings[name] == plan.settings[name]
                assert result.plan.fixed == plan.fixed == {"layers": (name,)}
                assert result.keep_ratio() <= macs
            told += again
    assert told


@pytest.mark.slow
def test_layers_with_a_hook_are_fitted_alike(studies: list[sr.Study]) -> None:
    """The original and the new model then run one after the other, batch by batch."""
    study = studies[0]
    plan = study.plan(macs=0.45)
    seen: list[str] = []
    result = study.apply(plan, on_layer=lambda _model, name: seen.append(name))
    expected = study.apply(plan)
    assert seen
    assert not [note for note in result.notes if NEVER in note.text]
    assert [note for note in result.notes if UNPAIRED in note.text]
    assert result.divergence == pytest.approx(expected.divergence, rel=0.5)


@pytest.mark.slow
def test_a_resumed_run_says_the_same(tmp_path: Path) -> None:
    study = sr.study(network(), batches(), effort="fast", progress=False, run_dir=tmp_path / "run")
    plan = study.plan(macs=0.45)
    first, second = study.apply(plan), study.apply(plan)
    (told,) = [note for note in first.notes if UNPAIRED in note.text]
    assert told in second.notes


@pytest.mark.slow
def test_an_expert_that_no_token_chooses_is_still_told() -> None:
    net = network()
    with torch.no_grad():
        net.first.gate.bias[3] = -1e6
    study = sr.study(net, batches(), effort="fast", progress=False)
    unreached = {spec.name: spec.reason for spec in study.layers if spec.name.startswith("first.experts.3.")}
    assert set(unreached) == {"first.experts.3.0", "first.experts.3.2"}
    assert all(reason is not None and "never called" in reason for reason in unreached.values())


class Stacked(nn.Module):
    """Experts whose matrices are stacked in one tensor each, as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 24, 16) / 4)
        self.down_proj = nn.Parameter(torch.randn(4, 16, 12) / 4)

    def forward(self, x: Tensor) -> Tensor:
        # Neurons that are sorted cannot go.
        hidden = torch.einsum("nd,efd->enf", x, self.gate_up_proj).sort(-1)[0]
        return torch.einsum("enf,edf->nd", hidden[..., :12], self.down_proj).sort(-1)[0]


def test_stacked_experts_tell_why_they_stay_whole() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.Softmax(-1), Stacked(), nn.Linear(16, 6)).eval()
    study = sr.study(net, [torch.randn(16, 12) for _ in range(3)], effort="fast", progress=False)
    (experts,) = [spec for spec in study.layers if spec.name == "2"]
    assert experts.reason is not None
    assert "of its 4 experts are stacked in one tensor each (gate_up_proj [4, 24, 16], " in experts.reason
    assert experts.macs > 0
    assert "stacked in one tensor each" in study.summary()


def test_a_plan_whose_model_is_above_the_budget_is_named_and_does_not_win() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6)).eval()
    study = sr.study(net, [torch.randn(16, 12) for _ in range(3)], effort="fast", progress=False)
    # A plan that was typed is built as it stands.
    large = replace(study.plan(macs=0.8), budgets={"macs": 0.4}, select="manual")
    rivals = seams.Rivals(
        study,
        lambda *_: pytest.fail("no plan is made"),
        None,
        max_damage=1.1,
        builds=seams.Builds(study, "compress"),
        competes=True,
    )
    rivals.build("large", large)
    rivals.build("small", study.plan(macs=0.4))
    result = rivals.best()
    assert result.keep_ratio() <= 0.4
    (told,) = [note.text for note in result.notes if note.text.startswith("large plan:")]
    assert told.endswith("; excluded, since its model is above the budget")
    warned = study.apply(large)
    (warning,) = [note for note in warned.notes if note.is_warning and "plan a smaller budget" in note.text]
    assert "above the 0.4000 that were asked for" in warning.text
