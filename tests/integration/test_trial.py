# SPDX-License-Identifier: Apache-2.0
"""What new users stumbled over."""

import json
import pickle
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.scores import ScoreEntry


@pytest.fixture
def study(nets: ModuleType) -> sr.Study:
    found: sr.Study = sr.study(nets.cnn(), nets.noise(1, 8, 8, n=4), progress=False)
    return found


def size(model: nn.Module) -> float:
    """Falls with every layer that is compressed, by its params."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e4


def test_the_wrong_kind_of_thing_is_told_with_its_cure(study: sr.Study) -> None:
    with pytest.raises(sr.OptionError, match=r"scores is a str; give a table, e\.g\. slimrank\.Scores\.load"):
        study.plan(macs=0.6, scores="scores.json")  # type: ignore[arg-type]
    for layers in ([13], []):
        with pytest.raises(sr.OptionError, match="give names or globs of layers, or None for all"):
            sr.measure_scores(study, size, layers=layers, progress=False)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="settings is a list; give layer -> setting"):
        sr.Plan.manual(study, [("fc", 0.4)])  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="other is a str; give a Plan"):
        study.plan(macs=0.5).diff("auto.json")  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match=r"splits=0\.7; give several keep ratios"):
        sr.search_split(study, macs=0.5, splits=0.7)  # type: ignore[arg-type]
    with pytest.raises(sr.UnknownNameError, match="'foo' was not measured by the study"):
        sr.search_split(study, macs=0.5, methods=("weight_svd", "foo"))  # type: ignore[arg-type]


def test_a_model_whose_backward_pass_fails_is_told_to_leave_gradients_out(nets: ModuleType) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu_(self.a(x))
            h += self.b(h)
            return h

    model, batches = nets.settle(InPlace()), nets.noise(24)
    with pytest.raises(sr.GradientError, match=r"backward pass through the model failed .*fisher=False"):
        sr.study(model, batches, progress=False)
    assert sr.study(model, batches, fisher=False, progress=False).layers[0].methods


def test_functions_that_change_the_model_are_refused_by_searches_too(study: sr.Study) -> None:
    def spoils(model: nn.Module) -> float:
        with torch.no_grad():
            model.bn.running_mean.add_(1.0)
        return 0.0

    with pytest.raises(sr.ScoreError, match="the original: score_fn changed the model"):
        sr.smallest(study, max_drop=0.1, score_fn=spoils)
    with pytest.raises(sr.ScoreError, match="returned a NoneType; return one number"):
        sr.smallest(study, max_drop=0.1, score_fn=lambda _model: None)  # type: ignore[arg-type,return-value]


def test_the_loss_of_a_plan_is_the_sum_of_the_scored_losses_whatever_rule_chose(study: sr.Study) -> None:
    table = sr.measure_scores(study, size, candidates=6, progress=False)
    known = {
        (name, entry.form, entry.rank): table.loss(entry)
        for entries in (table.entries, table.groups)
        for name, own in entries.items()
        for entry in own
    }
    for select in ("greedy", "optimal"):
        plan = study.plan(macs=0.6, select=select, scores=table)  # type: ignore[arg-type]
        losses = [known[name, setting.form, setting.rank] for name, setting in plan.settings.items()]
        losses += [known[name, "channels", len(kept)] for name, kept in plan.groups.items()]
        assert plan.score_loss == pytest.approx(sum(losses), abs=1e-12)


def test_a_budget_that_a_partial_table_cannot_reach_names_the_layers_it_lacks(study: sr.Study) -> None:
    table = sr.measure_scores(study, size, layers=["fc"], candidates=4, progress=False)
    with pytest.raises(sr.BudgetError, match=r"'conv' \(left alone: not in the score table; measure it with"):
        study.plan(macs=0.5, scores=table)
    chosen = study.plan(macs=0.999, scores=table)
    assert chosen.steps[0].structure == study.structure


def test_below_the_cheapest_pair_the_form_with_the_lowest_error_is_tried(study: sr.Study) -> None:
    table = sr.measure_scores(
        study, size, methods=("spatial_svd",), layers=["stem"], candidates=(0.01,), progress=False
    )
    (entry,) = table.entries["stem"]
    firsts = [c for c in study.curves if c.layer == "stem" and c.method == "spatial_svd"]
    cheapest = min(int(curve.macs[0]) for curve in firsts)
    best = min((c for c in firsts if int(c.macs[0]) == cheapest), key=lambda curve: float(curve.error[0]))
    assert (entry.form, entry.rank) == (best.form, 1)
    assert f"({entry.score:.4f})" in table.summary()


def test_two_runs_on_one_file_keep_both_their_scores(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    other_is_done = []

    def meanwhile(model: nn.Module) -> float:
        if not other_is_done:
            other_is_done.append(True)
            sr.measure_scores(study, size, layers=["fc"], candidates=3, path=path, progress=False)
        return size(model)

    sr.measure_scores(study, meanwhile, layers=["conv"], candidates=3, path=path, progress=False)
    assert set(sr.Scores.load(path).entries) == {"conv", "fc"}


def test_an_entry_that_stands_twice_is_refused(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    sr.measure_scores(study, size, layers=["fc"], candidates=3, path=path, progress=False)
    content = json.loads(path.read_text())
    content["entries"]["fc"].append(content["entries"]["fc"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(sr.ScoreError, match=r"entries\['fc'\]: weight_svd linear \d+ stands twice"):
        sr.Scores.load(path)


def test_scores_of_ranks_that_save_nothing_are_left_out_of_a_table_of_aimet(tmp_path: Path) -> None:

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    study = sr.study(model, [torch.randn(8, 1, 8, 8)], data_free=True, progress=False)
    table = {name: {Decimal(k) / 10: 0.5 for k in range(1, 10)} for name in ("0", "2")}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(table))
    scores = sr.Scores.from_aimet(tmp_path / "old.pkl", study, method="weight_svd", baseline=1.0)
    assert list(scores.entries) == ["2"]
    assert all(isinstance(entry, ScoreEntry) and entry.keep_ratio < 1 for entry in scores.entries["2"])
    assert any("'0': every rank costs as much as the layer" in note for note in scores.notes)
