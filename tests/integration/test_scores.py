# SPDX-License-Identifier: Apache-2.0
"""Eval-score tables of small nets: what is tried, what is refused, and plans made from them."""

import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seams
import slimrank as sr
from slimrank import measure_scores
from slimrank.cost import layer_cost, max_rank, pair_cost
from slimrank.records import Method, Setting
from slimrank.scores import ScoreEntry, Scores
from slimrank.scoring import ScoreFn

DATA = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def cnn(cnn_study: sr.Study) -> sr.Study:
    return cnn_study


@pytest.fixture(scope="module")
def loss(cnn: sr.Study) -> ScoreFn:
    """Cross-entropy against what the original says: lower is better."""
    with torch.no_grad():
        wanted = seams.original_of(cnn)(DATA).argmax(1)

    def cross_entropy(model: nn.Module) -> float:
        with torch.no_grad():
            parts = zip(DATA.split(16), wanted.split(16), strict=True)
            return sum(float(functional.cross_entropy(model(x), y)) for x, y in parts) / 3

    return cross_entropy


@pytest.fixture(scope="module")
def whole(cnn: sr.Study, loss: ScoreFn) -> Scores:
    """Three candidates a layer, measured in one go."""
    return measure_scores(cnn, loss, candidates=3, lower_is_better=True, progress=False)


def counted(function: ScoreFn, count: list[int]) -> ScoreFn:
    def score(model: nn.Module) -> float:
        count.append(1)
        return function(model)

    return score


def tried_in(table: Scores) -> int:
    return sum(len(entries) for entries in (*table.entries.values(), *table.groups.values()))


def test_every_candidate_is_the_largest_rank_within_it(cnn: sr.Study, loss: ScoreFn) -> None:
    table = measure_scores(cnn, loss, candidates=5, lower_is_better=True, progress=False)
    assert table.candidates == (0.2, 0.4, 0.6, 0.8)
    assert list(table.entries) == ["stem", "conv", "last", "fc"]
    assert table.fingerprint == cnn.fingerprint
    for name, entries in table.entries.items():
        spec = cnn.structure.layers[name]
        assert len({(entry.form, entry.rank) for entry in entries}) == len(entries)
        for entry in entries:
            cost = pair_cost(spec, entry.form, entry.rank, has_bias=True)
            assert entry.keep_ratio == cost.macs / layer_cost(spec).macs
            unit = entry.keep_ratio / entry.rank
            within = [ratio for ratio in table.candidates if ratio >= entry.keep_ratio]
            # Some candidate holds this rank and not the next one; or it is the smallest there is.
            assert entry.rank == 1 or any(
                ratio < entry.keep_ratio + unit or entry.rank == max_rank(spec, entry.form)
                for ratio in within
            )


def test_a_score_is_that_of_the_model_with_one_layer_replaced(cnn: sr.Study) -> None:
    seen: list[tuple[str, int]] = []
    original = {id(module) for module in seams.original_of(cnn).modules()}

    def total(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(DATA).square().sum())

    def score(model: nn.Module) -> float:
        pairs = {name: m for name, m in model.named_modules() if type(m) is nn.Sequential}
        assert len(pairs) <= 1
        assert not {id(module) for module in model.modules()} & original
        seen.extend((name, len(pair[0].weight)) for name, pair in pairs.items())
        return total(model)

    table = measure_scores(cnn, score, candidates=4, progress=False)
    tried = [(name, entry) for name, entries in table.entries.items() for entry in entries]
    assert sorted(seen) == sorted((name, entry.rank) for name, entry in tried)
    # Applying the same setting gives about the same model: other rows of the samples, perhaps another ridge.
    for name, entry in tried:
        if entry.form in {"linear", "kxk_1x1"}:
            plan = sr.Plan.manual(cnn, {name: (entry.method, {"rank": entry.rank, "form": entry.form})})
            applied = cnn.apply(plan, sequential=False).model
            assert entry.score == pytest.approx(total(applied), rel=0.05)


def test_one_decomposition_per_layer_and_form(
    cnn: sr.Study, loss: ScoreFn, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed = seams.watch_decompositions(monkeypatch)
    table = measure_scores(cnn, loss, layers=["conv"], lower_is_better=True, progress=False)
    forms = {entry.form for entry in table.entries["conv"]}
    assert len(table.entries["conv"]) > len(forms) > 1
    assert len(decomposed) == len(forms)


def test_the_caller_s_model_is_left_alone(nets: ModuleType, snapshot: Callable[[nn.Module], object]) -> None:
    model = nets.cnn().train()
    study = sr.study(model, nets.noise(1, 8, 8), progress=False)
    before = snapshot(model)
    taken: list[bool] = []

    def score(model: nn.Module) -> float:
        taken.append(any(module.training for module in model.modules()))
        return float(model(DATA).sum())

    measure_scores(study, score, candidates=2, progress=False)
    assert snapshot(model) == before
    assert taken
    assert not any(taken)


def test_layers_methods_and_candidates(cnn: sr.Study, loss: ScoreFn) -> None:
    table = measure_scores(
        cnn,
        loss,
        methods=("spatial_svd",),
        layers=("st*", "last"),
        candidates=[0.5, 0.25, 0.5],
        lower_is_better=True,
        progress=False,
    )
    assert table.candidates == (0.25, 0.5)
    assert list(table.entries) == ["stem", "last"]
    assert {entry.method for own in table.entries.values() for entry in own} == {"spatial_svd"}
    # 1 to 16 channels, 3 x 3: no rank within a quarter of it, so the cheapest pair stands for that.
    assert next(iter(table.entries["stem"])).rank == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": 1}, sr.OptionError, r"candidates=1; give a whole number of at least 2"),
        ({"candidates": "10"}, sr.OptionError, r"candidates='10'; give a whole number such as 10"),
        ({"candidates": ()}, sr.OptionError, r"candidates=\(\); give a whole number such as 10"),
        ({"candidates": (0.5, 1.0)}, sr.OptionError, r"candidates: 1.0 is no share .*ratios in \(0, 1\)"),
        ({"candidates": (0.5, True)}, sr.OptionError, r"candidates: True is no share"),
        ({"methods": ()}, sr.OptionError, r"methods=\(\) names no method"),
        ({"methods": "weight_svd"}, sr.OptionError, r"methods='weight_svd' names no method"),
        ({"methods": ("weigth_svd",)}, sr.UnknownNameError, r"'weigth_svd' was not measured .*'weight_svd'"),
        ({"layers": ("cnov",)}, sr.UnknownNameError, r"layers: 'cnov' matches no layer; did you mean 'conv'"),
        ({"layers": ("x.*",)}, sr.UnknownNameError, r"layers: 'x.\*' matches no layer; known are"),
        (
            {"layers": ("fc",), "methods": ("spatial_svd",)},
            sr.OptionError,
            r"layers: 'fc' matches 'fc', which cannot be compressed: 'spatial_svd' does not apply",
        ),
        ({"workers": 0}, sr.OptionError, r"workers=0; give a whole number of at least 1"),
        ({"prefix_cache": -1}, sr.OptionError, r"prefix_cache=-1; give a number of bytes"),
        ({"path": "/nowhere/scores.json"}, sr.FileError, r"cannot be written; give a file in an existing"),
    ],
)
def test_options_that_are_refused_before_any_work(
    options: dict[str, object], error: type[Exception], message: str, cnn: sr.Study
) -> None:
    def score(model: nn.Module) -> float:
        pytest.fail("it was called")

    with pytest.raises(error, match=message):
        measure_scores(cnn, score, progress=False, **options)  # type: ignore[arg-type]


def test_studies_and_functions_that_are_refused(cnn: sr.Study, loss: ScoreFn, tmp_path: Path) -> None:
    cnn.save(tmp_path)
    with pytest.raises(
        sr.StudyError, match=r"loaded without a model; pass Study.load\(dir, model=build\(\)\)"
    ):
        measure_scores(sr.Study.load(tmp_path), loss)
    with pytest.raises(sr.OptionError, match=r"study is a Cnn; give a Study"):
        measure_scores(seams.original_of(cnn), loss)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match=r"score_fn is a float; give a function of a model"):
        measure_scores(cnn, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
def test_what_was_measured_is_kept(
    after: int, error: type[BaseException], cnn: sr.Study, loss: ScoreFn, whole: Scores, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    count: list[int] = []

    def failing(model: nn.Module) -> float:
        if len(count) == after:
            raise error
        return counted(loss, count)(model)

    def measure(function: ScoreFn) -> Scores:
        return measure_scores(cnn, function, candidates=3, path=file, lower_is_better=True, progress=False)

    with pytest.raises((sr.ScoreError, KeyboardInterrupt)):
        measure(failing)
    assert file.exists() == (after > 0)
    assert measure(counted(loss, count)) == whole
    assert Scores.load(file) == whole
    assert len(count) == 1 + tried_in(whole)


def test_a_finished_table_is_read_and_nothing_is_done(
    cnn: sr.Study, loss: ScoreFn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scores.json"
    options = {"candidates": 3, "path": file, "lower_is_better": True, "progress": False}
    part = measure_scores(cnn, loss, layers=["conv"], **options)  # type: ignore[arg-type]
    assert list(part.entries) == ["conv"]
    count: list[int] = []
    # More layers may come; what is known is neither evaluated nor decomposed again.
    fitted = seams.watch_score_targets(monkeypatch)
    both = measure_scores(cnn, counted(loss, count), layers=["conv", "stem"], **options)  # type: ignore[arg-type]
    assert list(both.entries) == ["stem", "conv"]
    assert both.entries["conv"] == part.entries["conv"]
    assert list(both.groups) == ["stem", "conv"]
    assert len(count) == tried_in(both) - tried_in(part)
    assert fitted == ["stem"]
    again = measure_scores(cnn, counted(loss, count), layers=["stem"], **options)  # type: ignore[arg-type]
    assert again == both
    assert fitted == ["stem"]
    with pytest.raises(sr.ScoreError, match=r"other candidates .* and lower_is_better .*give another path"):
        measure_scores(cnn, loss, path=file, progress=False)


def test_a_table_is_tied_to_weights_and_inputs(
    cnn: sr.Study, loss: ScoreFn, nets: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    options = {"candidates": 2, "path": file, "lower_is_better": True, "progress": False}
    table = measure_scores(cnn, loss, **options)  # type: ignore[arg-type]
    model = nets.cnn()
    model.fc.weight.data[0, 0] += 1
    other = sr.study(model, nets.noise(1, 8, 8, seed=1), progress=False)
    with pytest.raises(sr.ScoreError, match=r"measured with other weights and inputs; give another path"):
        measure_scores(other, loss, **options)  # type: ignore[arg-type]
    with pytest.raises(sr.ScoreError, match=r"measured with other weights and inputs than this study"):
        other.plan(macs=0.5, scores=table)


@pytest.mark.slow
def test_one_table_serves_plans_of_every_kind(cnn: sr.Study, loss: ScoreFn) -> None:
    table = measure_scores(cnn, loss, lower_is_better=True, progress=False)
    tried = {
        (name, Setting(method=entry.method, form=entry.form, rank=entry.rank))
        for name, entries in table.entries.items()
        for entry in entries
    }
    for budget in (0.4, 0.6, 0.9):
        plans = {
            select: cnn.plan(macs=budget, select=select, scores=table, multiple_of=1)  # type: ignore[arg-type]
            for select in ("greedy", "optimal", "uniform")
        }
        for plan in plans.values():
            assert plan.keep_ratio("macs") <= budget
            assert set(plan.settings.items()) <= tried
        least = plans["optimal"].score_loss
        assert least is not None
        assert all(least <= (plan.score_loss or 0) + 1e-12 for plan in plans.values())
        eights = cnn.plan(macs=budget, select="greedy", scores=table, monotonic=True, multiple_of=8)
        assert all(setting.rank % 8 == 0 for setting in eights.settings.values())
        assert eights.keep_ratio("macs") <= budget
    result = cnn.apply(plans["greedy"])
    assert result.keep_ratio("macs") <= 0.9


def test_layers_without_scores_are_left_alone(cnn: sr.Study, loss: ScoreFn) -> None:
    table = measure_scores(cnn, loss, layers=["conv", "last"], lower_is_better=True, progress=False)
    assert set(cnn.plan(macs=0.5, select="greedy", scores=table).settings) <= {"conv", "last"}
    with pytest.raises(sr.BudgetError, match=r"the smallest reachable is"):
        cnn.plan(macs=0.05, scores=table)


def test_a_study_without_data(nets: ModuleType) -> None:
    study = sr.study(nets.cnn(), nets.noise(1, 8, 8), data_free=True, progress=False)
    biases: set[bool] = set()

    def score(model: nn.Module) -> float:
        if type(model.last) is nn.Sequential:
            biases.add(model.last[1].bias is not None)
        return float(model(DATA).sum())

    table = measure_scores(study, score, candidates=3, progress=False)
    assert biases == {False}
    assert study.plan(macs=0.6, select="greedy", scores=table).keep_ratio("macs") <= 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "DictOutput", "MixedTypes", "Mixture", "Recurrent", "Stacked"]
)
def test_the_cache_changes_nothing(name: str, nets: ModuleType) -> None:
    model, x = _model(nets, name)
    study = sr.study(model, list(x), progress=False)

    def score(model: nn.Module) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in x:
                output = model(batch)
                tensor = output["logits"] if isinstance(output, dict) else output
                total += float(tensor.double().square().sum())
        return total

    tables = [
        measure_scores(study, score, candidates=4, prefix_cache=max_bytes, progress=False)
        for max_bytes in (0, 1 << 24)
    ]
    assert tables[0] == tables[1]


# A group starts at its first producer, so one of three saves nothing here.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "share"), [(("weight_svd", "spatial_svd"), 0.75), (("channel_pruning",), 0.85)]
)
def test_the_cache_saves_calls(methods: tuple[Method, ...], share: float, cnn: sr.Study) -> None:
    runs: dict[int, int] = {}

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(model(x).sum()) for x in DATA.split(4))

    for max_bytes in (0, 1 << 24):
        with _counting() as count:
            measure_scores(cnn, score, methods=methods, candidates=8, prefix_cache=max_bytes, progress=False)
        runs[max_bytes] = len(count)
    assert runs[1 << 24] < share * runs[0]


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def _model(nets: ModuleType, name: str) -> tuple[nn.Module, list[Tensor]]:
    if name == "Stacked":
        return nets.settle(Stacked().eval()), nets.noise(5, 16)
    if name in {"mlp", "cnn"}:
        return getattr(nets, name)(), nets.noise(*((24,) if name == "mlp" else (1, 8, 8)))
    shape = (6, 24) if name == "Recurrent" else (24,)
    return nets.settle(getattr(nets, name)().eval()), nets.noise(*shape)


class _counting:  # noqa: N801
    """Counts the products that run."""

    def __enter__(self) -> list[int]:
        self._functions = {name: getattr(functional, name) for name in ("linear", "conv2d")}
        count: list[int] = []
        for name, function in self._functions.items():

            def run(*args: object, function: Callable[..., object] = function, **kwargs: object) -> object:
                count.append(1)
                return function(*args, **kwargs)

            setattr(functional, name, run)
        return count

    def __exit__(self, *_: object) -> None:
        for name, function in self._functions.items():
            setattr(functional, name, function)


def test_the_table_is_json_that_people_can_read(cnn: sr.Study, loss: ScoreFn, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    measure_scores(cnn, loss, candidates=2, path=file, lower_is_better=True, progress=False)
    content = json.loads(file.read_text())
    assert content["entries"]["fc"][0].keys() == {"method", "form", "rank", "keep_ratio", "score"}
    assert file.read_text() == file.read_text().strip() + "\n"


def size(model: nn.Module) -> float:
    """Falls with every layer that is compressed, by its params."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e4


def test_the_loss_of_a_plan_is_the_sum_of_the_scored_losses_whatever_rule_chose(cnn: sr.Study) -> None:
    table = measure_scores(cnn, size, candidates=6, progress=False)
    known = {
        (name, entry.form, entry.rank): table.loss(entry)
        for entries in (table.entries, table.groups)
        for name, own in entries.items()
        for entry in own
    }
    for select in ("greedy", "optimal"):
        plan = cnn.plan(macs=0.6, select=select, scores=table, multiple_of=1)  # type: ignore[arg-type]
        losses = [known[name, setting.form, setting.rank] for name, setting in plan.settings.items()]
        losses += [known[name, "channels", len(kept)] for name, kept in plan.groups.items()]
        assert plan.score_loss == pytest.approx(sum(losses), abs=1e-12)


def test_a_budget_that_a_partial_table_cannot_reach_names_the_layers_it_lacks(cnn: sr.Study) -> None:
    table = measure_scores(cnn, size, layers=["fc"], candidates=4, progress=False)
    with pytest.raises(sr.BudgetError, match=r"'conv' \(left alone: not in the score table; measure it with"):
        cnn.plan(macs=0.5, scores=table)
    chosen = cnn.plan(macs=0.999, scores=table)
    assert chosen.steps[0].structure == cnn.structure


def test_below_the_cheapest_pair_the_form_with_the_lowest_error_is_tried(cnn: sr.Study) -> None:
    table = measure_scores(
        cnn, size, methods=("spatial_svd",), layers=["stem"], candidates=(0.01,), progress=False
    )
    (entry,) = table.entries["stem"]
    firsts = [c for c in cnn.curves if c.layer == "stem" and c.method == "spatial_svd"]
    cheapest = min(int(curve.macs[0]) for curve in firsts)
    best = min((c for c in firsts if int(c.macs[0]) == cheapest), key=lambda curve: float(curve.error[0]))
    assert (entry.form, entry.rank) == (best.form, 1)
    assert f"({entry.score:.4f})" in table.summary()


def test_two_runs_on_one_file_keep_both_their_scores(cnn: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    other_is_done = []

    def meanwhile(model: nn.Module) -> float:
        if not other_is_done:
            other_is_done.append(True)
            measure_scores(cnn, size, layers=["fc"], candidates=3, path=path, progress=False)
        return size(model)

    measure_scores(cnn, meanwhile, layers=["conv"], candidates=3, path=path, progress=False)
    assert set(Scores.load(path).entries) == {"conv", "fc"}


def test_an_entry_that_stands_twice_is_refused(cnn: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    measure_scores(cnn, size, layers=["fc"], candidates=3, path=path, progress=False)
    content = json.loads(path.read_text())
    content["entries"]["fc"].append(content["entries"]["fc"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(sr.ScoreError, match=r"entries\['fc'\]: weight_svd linear \d+ stands twice"):
        Scores.load(path)


def test_scores_of_ranks_that_save_nothing_are_left_out_of_a_table_of_aimet(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    study = sr.study(model, [torch.randn(8, 1, 8, 8)], data_free=True, progress=False)
    table = {name: {Decimal(k) / 10: 0.5 for k in range(1, 10)} for name in ("0", "2")}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(table))
    scores = Scores.from_aimet(tmp_path / "old.pkl", study, method="weight_svd", baseline=1.0)
    assert list(scores.entries) == ["2"]
    assert all(isinstance(entry, ScoreEntry) and entry.keep_ratio < 1 for entry in scores.entries["2"])
    assert any("'0': every rank costs as much as the layer" in note for note in scores.notes)
