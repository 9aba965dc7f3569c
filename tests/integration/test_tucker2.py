# SPDX-License-Identifier: Apache-2.0
"""Three factors and two ranks go the whole way: studied, planned beside channels, applied, saved, scored."""

import json
from pathlib import Path

import pytest
import torch
from nets import noise, settle
from torch import Tensor, nn

import slimrank as sr
from slimrank.records import Method, Setting

ALL: tuple[Method, ...] = (*sr.METHODS, "tucker2")
_FORM = "1x1_kxk_1x1"


class _Net(nn.Module):
    """A strided kernel, a tall and narrow one, and channels that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.wide = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.tall = nn.Conv2d(32, 32, (5, 1), padding=(2, 0), bias=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x).relu()).relu()
        return self.head(self.tall(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    net = settle(_Net().eval())
    generator = torch.Generator().manual_seed(1)
    # A kernel of few directions on either side, so that three factors pay.
    first, core, last = (
        torch.randn(shape, generator=generator) for shape in ((6, 24), (8, 6, 3, 3), (32, 8))
    )
    with torch.no_grad():
        exact = torch.einsum("or,rpxy,pi->oixy", last, core, first)
        exact *= net.wide.weight.norm() / exact.norm()
        net.wide.weight.mul_(0.05).add_(exact)
    return net


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return noise(3, 8, 8, n=4, size=16)


@pytest.fixture(scope="module")
def study(model: nn.Module, batches: list[Tensor]) -> sr.Study:
    return sr.study(model, batches, methods=ALL, progress=False)


def _settings(plan: sr.Plan) -> dict[str, Setting]:
    return {name: setting for name, setting in plan.settings.items() if setting.method == "tucker2"}


def _ranks_of(model: nn.Module, name: str) -> tuple[int, int]:
    first, middle, last = model.get_submodule(name)
    assert (middle.in_channels, last.in_channels) == (first.out_channels, middle.out_channels)
    return first.out_channels, middle.out_channels


def test_it_is_offered_beside_the_default() -> None:
    assert sr.MORE_METHODS == ("tucker2",)
    assert "tucker2" not in sr.METHODS


def test_a_study_without_it_knows_nothing_of_it(model: nn.Module, batches: list[Tensor]) -> None:
    study = sr.study(model, batches[:1], methods=("spatial_svd",), progress=False)
    assert all("tucker2" not in spec.methods for spec in study.layers)
    with pytest.raises(sr.UnknownNameError, match="tucker2"):
        sr.Plan.manual(study, {"wide": ("tucker2", 0.5)})


def test_curves_lead_along_both_ranks(study: sr.Study) -> None:
    curves = {curve.layer: curve for curve in study.curves if curve.method == "tucker2"}
    assert set(curves) == {"stem", "wide", "tall"}
    for curve in curves.values():
        assert curve.form == _FORM
        assert curve.ranks_in is not None
        assert (curve.ranks[1:] > curve.ranks[:-1]).all()
        assert (curve.ranks_in[1:] >= curve.ranks_in[:-1]).all()
        assert (curve.macs[1:] > curve.macs[:-1]).all()
        assert (curve.error[1:] <= curve.error[:-1]).all()
        assert (curve.damage >= 0).all()


@pytest.mark.parametrize("select", ["optimal", "greedy", "uniform"])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_plans_of_it_alone_keep_the_budget(study: sr.Study, select: str, multiple_of: int) -> None:
    plan = study.plan(macs=0.6, methods=("tucker2",), select=select, multiple_of=multiple_of)  # type: ignore[arg-type]
    chosen = _settings(plan)
    assert chosen
    assert chosen.keys() == plan.settings.keys()
    assert plan.keep_ratio("macs") <= 0.6
    assert all(rank % multiple_of == 0 for setting in chosen.values() for rank in setting.ranks)


@pytest.mark.parametrize("macs", [0.5, 0.3])
def test_beside_channels_the_counted_cost_is_the_planned_one(study: sr.Study, macs: float) -> None:
    plan = study.plan(macs=macs, methods=("tucker2", "channel_pruning"), multiple_of=1)
    assert plan.groups
    assert _settings(plan)
    result = study.apply(plan)
    assert result.after == plan.after
    assert plan.keep_ratio("macs") <= macs
    for name, setting in _settings(plan).items():
        assert _ranks_of(result.model, name) == setting.ranks


def test_more_choice_never_predicts_more_damage(study: sr.Study) -> None:
    with_it = study.plan(macs=0.4, multiple_of=1)
    without = study.plan(macs=0.4, multiple_of=1, methods=sr.METHODS)
    assert with_it.damage is not None
    assert without.damage is not None
    # Beside groups only some of its ranks are looked at, and the search has a gap of its own.
    assert with_it.damage <= 1.02 * without.damage


def test_typed_settings(study: sr.Study) -> None:
    def typed(setting: object, multiple_of: int = 1) -> Setting:
        plan = sr.Plan.manual(study, {"wide": setting}, multiple_of=multiple_of)  # type: ignore[dict-item]
        return plan.settings["wide"]

    curve = next(curve for curve in study.curves if curve.layer == "wide" and curve.method == "tucker2")
    assert curve.ranks_in is not None
    half = typed(("tucker2", 0.5))
    index = int((curve.macs <= 0.5 * study.structure.layers["wide"].macs).sum()) - 1
    assert half.ranks == (curve.ranks_in[index], curve.ranks[index])
    assert typed(("tucker2", {"rank": [6, 10]})).ranks == (6, 10)
    assert typed(("tucker2", {"rank": [5, 9]}), multiple_of=4).ranks == (8, 12)
    assert typed(("tucker2", {"rank": 8})).ranks == (curve.ranks_in[7], 8)
    assert typed(half) == half
    assert all(rank % 4 == 0 for rank in typed(("tucker2", 0.5), multiple_of=4).ranks)
    with_known = sr.Plan.manual(study, {"wide": ("tucker2", {"rank": [6, 10]})}, multiple_of=1)
    assert with_known.damage is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            ("tucker2", {"rank": [25, 10]}),
            r"ranks 25, 10: rank_in 25 is outside 2..24 at rank 10; change them",
        ),
        (("tucker2", {"rank": [2, 33]}), r"ranks 2, 33: rank 33 is outside 1..32"),
        (("tucker2", {"rank": [24, 32]}), "three factors would cost more MACs than the layer; change them"),
        (("tucker2", {"rank": 32}), "rank 32 is outside 1..[0-9]+: the pair would cost more"),
        (("tucker2", {"rank": [1, 2, 3]}), "3 ranks; give e.g."),
        (("weight_svd", {"rank": [4, 6]}), "takes one rank, not 2; give"),
    ],
)
def test_wrong_ranks_are_refused(study: sr.Study, setting: tuple[str, object], message: str) -> None:
    with pytest.raises((sr.RankError, sr.OptionError), match=message):
        sr.Plan.manual(study, {"wide": setting}, multiple_of=1)  # type: ignore[dict-item]


def test_a_slimmed_layer_becomes_three(study: sr.Study) -> None:
    def typed(ranks: list[int]) -> sr.Plan:
        both: list[tuple[str, object]] = [("channel_pruning", 0.5), ("tucker2", {"rank": ranks})]
        return sr.Plan.manual(study, {"wide": both}, multiple_of=1)  # type: ignore[dict-item]

    plan = typed([8, 10])
    result = study.apply(plan)
    assert result.after == plan.after
    first, middle, last = result.model.get_submodule("wide")
    assert (first.out_channels, middle.out_channels, last.out_channels) == (8, 10, 16)
    with pytest.raises(sr.RankError, match=r"ranks 8, 20: rank 20 is outside 1\.\.16"):
        typed([8, 20])


def test_settings_files_hold_both_ranks(study: sr.Study, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("layer,method,rank\nwide,tucker2,6 10\n")
    (tmp_path / "s.json").write_text('{"wide": ["tucker2", {"rank": [6, 10]}]}')
    for name in ("s.csv", "s.json"):
        plan = sr.Plan.manual(study, tmp_path / name, multiple_of=1)
        assert plan.settings["wide"].ranks == (6, 10)


def test_plans_and_models_are_saved_and_rebuilt(
    study: sr.Study, model: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    plan = sr.Plan.manual(
        study, {"wide": ("tucker2", 0.4), "tall": ("tucker2", {"rank": [10, 12]})}, multiple_of=1
    )
    plan.save(tmp_path / "plan.json")
    assert sr.Plan.load(tmp_path / "plan.json") == plan
    stored = json.loads((tmp_path / "plan.json").read_text())["steps"][0]["layers"]["tall"]
    assert stored == [{"method": "tucker2", "form": _FORM, "rank": 12, "rank_in": 10}]
    assert "rank 10, 12" in plan.diff(sr.Plan.manual(study, {}))
    result = study.apply(plan)
    assert result.divergence is not None
    result.save(tmp_path / "model")
    loaded = sr.load(tmp_path / "model", model=_Net())
    x = batches[0]
    assert torch.equal(loaded(x), result.model(x))
    again = sr.apply(model, sr.Plan.load(tmp_path / "plan.json"), batches, progress=False)
    assert _ranks_of(again.model, "tall") == (10, 12)
    assert again.after == result.after
    assert "10, 12" in result.summary()
    result.report(tmp_path / "report.html")
    assert "10, 12" in (tmp_path / "report.html").read_text()


def test_a_plan_file_with_the_wrong_ranks_is_refused(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    sr.Plan.manual(study, {"wide": ("tucker2", {"rank": [6, 10]})}, multiple_of=1).save(path)
    text = path.read_text()
    one_rank = {"method": "weight_svd", "form": "kxk_1x1", "rank": 6, "rank_in": 6}
    two_ranks = json.loads(text)["steps"][0]["layers"]["wide"][0]
    for setting, message in (
        (
            {key: value for key, value in two_ranks.items() if key != "rank_in"},
            "takes two ranks; add rank_in",
        ),
        ({**two_ranks, "rank_in": 60}, r"rank_in 60 is outside 2\.\.24 at rank 10"),
        (one_rank, "kxk_1x1 takes one rank; delete rank_in"),
    ):
        content = json.loads(text)
        content["steps"][0]["layers"]["wide"] = [setting]
        path.write_text(json.dumps(content))
        with pytest.raises((sr.PlanError, sr.RankError), match=message):
            sr.Plan.load(path)


def test_a_study_is_read_again(study: sr.Study, tmp_path: Path) -> None:
    study.save(tmp_path / "study")
    read = sr.Study.load(tmp_path / "study")
    assert read.methods == study.methods
    assert read.plan(macs=0.4) == study.plan(macs=0.4)


def test_scores_name_both_ranks(study: sr.Study, batches: list[Tensor], tmp_path: Path) -> None:
    x = batches[0]
    wanted = study.apply(study.plan(macs=0.999)).model(x).argmax(1)
    path = tmp_path / "scores.json"

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == wanted).double().mean())

    scores = sr.measure_scores(
        study, score, candidates=[0.7, 0.3], methods=("tucker2",), path=path, progress=False
    )
    entries = scores.entries["wide"]
    assert all(entry.rank_in is not None for entry in entries)
    assert sr.Scores.load(path) == scores
    plan = study.plan(macs=0.7, scores=scores, select="greedy", multiple_of=1)
    assert plan.keep_ratio("macs") <= 0.7
    tried = {(entry.rank_in, entry.rank) for rows in scores.entries.values() for entry in rows}
    assert all(setting.ranks in tried for setting in plan.settings.values())
    rounded = study.plan(macs=0.7, scores=scores, select="greedy", multiple_of=4, interpolate=True)
    assert all(rank % 4 == 0 for setting in rounded.settings.values() for rank in setting.ranks)
