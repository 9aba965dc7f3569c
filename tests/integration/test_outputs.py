# SPDX-License-Identifier: Apache-2.0
"""Which outputs matter, and how: picked, read, weighed, or judged by a loss of one's own, end to end."""

import hashlib
import json
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seams
import slimrank as sr

Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclass
class Found:
    scores: Tensor
    boxes: Tensor
    features: Tensor | None = None


class LikeTransformers(OrderedDict[str, Tensor]):
    """As models of transformers return: a mapping, a dataclass in looks, indices without what is None."""

    def __init__(self, scores: Tensor, boxes: Tensor) -> None:
        super().__init__(scores=scores, boxes=boxes)

    def to_tuple(self) -> tuple[Tensor, ...]:
        return tuple(self.values())

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key: object) -> Tensor:
        return self.to_tuple()[key] if isinstance(key, int) else super().__getitem__(str(key))


class TwoHeads(nn.Module):
    """One trunk; scores of 6 classes and 4 numbers, each from a part of its own of the trunk's channels."""

    def __init__(self, returns: Callable[[Tensor, Tensor], object] = Pair) -> None:
        super().__init__()
        self.trunk, self.mixed = nn.Linear(24, 48), nn.Linear(48, 48)
        self.scores, self.boxes, self.returns = nn.Linear(48, 6), nn.Linear(48, 4), returns
        nets.settle(self).eval()

    def forward(self, x: Tensor) -> object:
        hidden = self.mixed(self.trunk(x).relu()).relu()
        return self.returns(3 * self.scores(hidden), self.boxes(hidden))


def as_dict(scores: Tensor, boxes: Tensor) -> dict[str, object]:
    return {"scores": scores, "boxes": boxes, "classes": scores.argmax(1), "aux": [scores + 1, boxes]}


def data() -> list[Tensor]:
    return nets.noise(24, n=6, size=32, seed=1)


def result_of(
    returns: Callable[[Tensor, Tensor], object] = as_dict, macs: float = 0.5, **options: object
) -> sr.Result:
    study = sr.study(TwoHeads(returns), data(), progress=False, **options)  # type: ignore[arg-type]
    return study.apply(study.plan(macs=macs, methods=("weight_svd",)))


BOTH = ("scores", "boxes")
READ = {"scores": "categorical", "boxes": "gaussian"}


def test_a_list_of_keys_and_a_family_for_each() -> None:
    study = sr.study(
        TwoHeads(as_dict),
        data(),
        outputs=["scores", "aux.1"],
        likelihood=["categorical", "auto"],
        progress=False,
    )
    assert study.unit == "nats per sample"
    texts = [note.text for note in study.notes if note.where == "outputs"]
    assert any("'scores' [6]: categorical over its last dimension, as asked" in text for text in texts)
    assert any(
        text.startswith("'aux.1' [4]: gaussian, ") and "pass e.g. likelihood=" in text for text in texts
    )
    result = study.apply(study.plan(macs=0.5))
    assert list(result.agreement) == ["scores", "aux.1"]  # type: ignore[arg-type]
    scores, numbers = result.agreement["scores"], result.agreement["aux.1"]  # type: ignore[index]
    assert scores.top1 is not None
    assert 0.2 < scores.top1 <= 1
    assert scores.cosine is None
    assert numbers.top1 is None
    assert numbers.cosine is not None
    assert 0.2 < numbers.cosine <= 1
    # The divergence is the sum over both.
    assert result.divergence == pytest.approx(scores.divergence + numbers.divergence, rel=1e-5)


def test_a_family_for_a_part_counts_for_all_in_it_and_its_own_comes_first() -> None:
    study = sr.study(
        TwoHeads(as_dict),
        data(),
        outputs=["aux"],
        likelihood={"aux": "gaussian", "aux.0": "categorical"},
        progress=False,
    )
    families = {path: output.family for path, output in seams.session_of(study).likelihood.outputs.items()}
    assert families == {"aux.0": "categorical", "aux.1": "gaussian"}
    swapped = sr.study(
        TwoHeads(as_dict),
        data(),
        outputs=["aux"],
        likelihood={"aux.0": "categorical", "aux": "gaussian"},
        progress=False,
    )
    assert swapped.fingerprint == study.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("returns", [Pair, Found, LikeTransformers, as_dict])
def test_what_a_model_returns_its_outputs_in_does_not_matter(
    returns: Callable[[Tensor, Tensor], object],
) -> None:
    expected = result_of(as_dict, outputs=BOTH, likelihood=READ)
    by_key = result_of(returns, outputs=BOTH, likelihood=READ)
    assert by_key.divergence == pytest.approx(expected.divergence, rel=1e-4)
    assert by_key.plan.settings == expected.plan.settings
    assert list(by_key.agreement) == ["scores", "boxes"]  # type: ignore[arg-type]
    if returns is as_dict or returns is Found:
        return
    by_index = result_of(returns, outputs=(0, -1), likelihood=["categorical", "gaussian"])
    assert by_index.divergence == pytest.approx(expected.divergence, rel=1e-4)


def test_a_dataclass_without_a_field_and_a_single_key() -> None:
    assert [field.name for field in fields(Found)] == ["scores", "boxes", "features"]
    only = result_of(Found, outputs="boxes")
    assert list(only.agreement) == ["boxes"]  # type: ignore[arg-type]
    by_function = result_of(Found, outputs=lambda out: out.boxes)
    assert list(by_function.agreement) == [""]  # type: ignore[arg-type]
    assert by_function.divergence == pytest.approx(only.divergence, rel=1e-4)


@pytest.mark.slow
def test_weights_move_the_error_to_the_other_output() -> None:
    errors = {}
    for heavy, light in (("scores", "boxes"), ("boxes", "scores")):
        result = result_of(outputs=BOTH, likelihood="gaussian", weights={heavy: 30.0, light: 1.0}, macs=0.4)
        errors[heavy] = {path: output.divergence for path, output in result.agreement.items()}  # type: ignore[union-attr]
        total = 30 * errors[heavy][heavy] + errors[heavy][light]
        assert result.divergence == pytest.approx(total, rel=1e-4)
    assert errors["scores"]["scores"] < 0.8 * errors["boxes"]["scores"]
    assert errors["boxes"]["boxes"] < 0.8 * errors["scores"]["boxes"]


def test_weights_that_are_equal_change_nothing_but_the_scale() -> None:
    plain = result_of(outputs=BOTH, likelihood=READ)
    scaled = result_of(outputs=BOTH, likelihood=READ, weights=[4, 4])
    assert scaled.divergence == pytest.approx(4 * plain.divergence, rel=0.05)  # type: ignore[operator]
    assert scaled.agreement["scores"].divergence == pytest.approx(  # type: ignore[index]
        plain.agreement["scores"].divergence,
        rel=0.05,  # type: ignore[index]
    )


def _spread(path: str) -> Tensor:
    with torch.no_grad():
        return getattr(TwoHeads()(torch.cat(data())), path).std(0)  # type: ignore[no-any-return]


def test_the_squared_error_as_a_loss_is_as_gaussian() -> None:
    spread = _spread("boxes")

    def squared(outputs: Tensor, original: Tensor) -> Tensor:
        return ((outputs - original) / spread).square().mean(1)

    # Many draws, since those of a loss and of a likelihood are not the same.
    gaussian = result_of(outputs="boxes", likelihood="gaussian", draws=32)
    own = result_of(outputs="boxes", loss=squared, draws=32)
    # The spread of the held-out samples is not quite that of all of them.
    assert own.divergence == pytest.approx(gaussian.divergence, rel=0.2)
    assert own.agreement["boxes"].cosine == pytest.approx(gaussian.agreement["boxes"].cosine, abs=0.04)  # type: ignore[index]
    costs = [result.after.macs for result in (own, gaussian)]
    assert max(costs) <= 0.5 * own.before.macs


def test_a_loss_between_several_outputs_gets_them_as_they_were_picked() -> None:
    seen: list[object] = []

    def of_dict(outputs: dict[str, Tensor], original: dict[str, Tensor]) -> Tensor:
        seen.append(outputs)
        return (outputs["boxes"] - original["boxes"]).square().sum(1)

    result = result_of(outputs=["scores", "boxes"], loss=of_dict)
    assert {tuple(value) for value in seen if isinstance(value, dict)} == {BOTH}
    assert result.divergence is not None
    # What the loss does not read may go wrong.
    boxes, scores = (result.agreement[path].lost for path in ("boxes", "scores"))  # type: ignore[index]
    assert boxes < 0.5 * scores

    def of_tuple(outputs: tuple[Tensor, Tensor], original: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs[1] - original[1]).square().sum(1)

    assert result_of(Pair, outputs=[0, 1], loss=of_tuple).divergence == pytest.approx(
        result.divergence, rel=1e-4
    )


def test_a_cosine_loss_ignores_lengths() -> None:
    def turned(outputs: Tensor, original: Tensor) -> Tensor:
        return 1 - functional.cosine_similarity(outputs, original)

    own, gaussian = result_of(outputs="boxes", loss=turned), result_of(outputs="boxes", likelihood="gaussian")
    assert own.divergence is not None
    assert 0 < own.divergence < 1
    cosines = [result.agreement["boxes"].cosine for result in (own, gaussian)]  # type: ignore[index]
    assert None not in cosines
    # What it is fitted to is what it keeps.
    assert cosines[0] > cosines[1] - 0.02  # type: ignore[operator]
    assert own.divergence == pytest.approx(1 - cosines[0], abs=1e-4)  # type: ignore[operator]


def test_an_absolute_error_has_a_kink_and_works() -> None:
    def absolute(outputs: Tensor, original: Tensor) -> Tensor:
        return (outputs - original).abs().mean(1)

    study = sr.study(TwoHeads(), data(), outputs="boxes", loss=absolute, progress=False)
    assert study.unit == "loss per sample"
    results = [study.apply(study.plan(macs=macs, methods=("weight_svd",))) for macs in (0.3, 0.6, 0.9)]
    divergences = [result.divergence or 0.0 for result in results]
    assert divergences[0] > divergences[1] > divergences[2] > 0
    original = TwoHeads()
    with torch.no_grad():
        x = torch.cat([batch for batch in data()])[list(seams.held_out_of(study))]
        measured = absolute(results[0].model(x).boxes, original(x).boxes).mean()
    assert divergences[0] == pytest.approx(float(measured), rel=1e-3)


def _boxes_loss(outputs: dict[str, Tensor], original: dict[str, Tensor]) -> Tensor:
    return (outputs["boxes"] - original["boxes"]).square().sum(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"outputs": ["scores", "aux.1"]},
        {"outputs": ["scores", "boxes"], "likelihood": READ},
        {"outputs": ["scores", "boxes"], "likelihood": ["categorical", "auto"], "weights": [2, 0.5]},
        {"outputs": ["boxes"], "weights": {"boxes": 3}},
        {"outputs": ["scores", "boxes"], "loss": _boxes_loss},
    ],
)
def test_a_study_is_saved_and_loaded_and_goes_on(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = sr.study(
        TwoHeads(as_dict),
        data(),
        run_dir=tmp_path / "run",
        progress=False,
        **options,  # type: ignore[arg-type]
    )
    study.save(tmp_path / "saved")
    plan = study.plan(macs=0.5)
    expected = study.apply(plan)
    loss = {"loss": options["loss"]} if "loss" in options else {}
    for directory in ("run", "saved"):
        again = sr.Study.load(tmp_path / directory, model=TwoHeads(as_dict), progress=False, **loss)  # type: ignore[arg-type]
        assert again.fingerprint == study.fingerprint
        assert again.unit == study.unit
        result = again.apply(again.plan(macs=0.5))
        assert result.divergence == expected.divergence
        assert repr(result.agreement) == repr(expected.agreement)
    # Run again, nothing is measured; with another choice, it is refused.
    seams.forbid_measuring(monkeypatch)
    in_run = {"run_dir": tmp_path / "run", "progress": False}
    resumed = sr.study(TwoHeads(as_dict), data(), **in_run, **options)  # type: ignore[arg-type]
    assert resumed.plan(macs=0.5) == plan
    other_choices: list[dict[str, object]] = [
        {},
        {**options, "outputs": "scores", "likelihood": "auto", "weights": None, "loss": None},
        {"outputs": options["outputs"], "loss": lambda a, b: sum((a[k] - b[k]).square().sum(1) for k in a)},
    ]
    if "loss" not in options:
        count = len(options["outputs"])  # type: ignore[arg-type]
        other_choices.append({**options, "weights": [7] * count})
    for other in other_choices:
        with pytest.raises(sr.StudyError, match=r"run holds a study of other .*outputs \(which ones, or"):
            sr.study(TwoHeads(as_dict), data(), **in_run, **other)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"likelihood": READ, "weights": {"boxes": 2.0}}, {"loss": _boxes_loss}],
    ids=["weights", "loss"],
)
def test_compress_apply_and_distill_take_them_all(options: dict[str, object]) -> None:
    options = {"outputs": BOTH, "progress": False, **options}
    done = sr.compress(TwoHeads(as_dict), data(), macs=0.5, compete=False, **options)  # type: ignore[arg-type]
    replayed = sr.apply(TwoHeads(as_dict), done.plan, data(), **options)  # type: ignore[arg-type]
    assert replayed.divergence == pytest.approx(done.divergence, rel=1e-3)
    assert repr(replayed.agreement) == repr(done.agreement)
    # Without data there is more left to train.
    plain = sr.apply(TwoHeads(as_dict), done.plan, progress=False).model
    tuned = sr.distill(plain, TwoHeads(as_dict), data(), epochs=10, lr=1e-3, **options)  # type: ignore[arg-type]
    study = sr.study(TwoHeads(as_dict), data(), **options)  # type: ignore[arg-type]
    assert seams.divergence_of(study, tuned) < 0.9 * seams.divergence_of(study, plain)


def _seven(scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    return {str(index): scores[:, index : index + 3] if index % 2 else boxes[:, :3] for index in range(7)}


@pytest.mark.parametrize(
    ("returns", "outputs", "paths"),
    [(as_dict, "scores", [""]), (Pair, -1, [""]), (as_dict, "aux", ["0", "1"]), (_seven, None, "0123456")],
)
def test_runs_of_earlier_versions_go_on(
    returns: Callable[[Tensor, Tensor], object],
    outputs: str | int | None,
    paths: Sequence[str],
    tmp_path: Path,
) -> None:
    study = sr.study(TwoHeads(returns), data(), outputs=outputs, run_dir=tmp_path, progress=False)
    # As 0.1 wrote it: paths within what was picked, and families that "auto" takes no more.
    families = ["gaussian" if study.unit != "nats per sample" else "categorical"] * len(paths)
    families[-1] = "categorical"
    shapes = [output.shape for output in study.apply(study.plan(macs=0.9)).agreement.values()]  # type: ignore[union-attr]
    facts = (outputs, list(zip(paths, families, shapes, strict=True)))
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["outputs"] = hashlib.sha256(repr(facts).encode()).hexdigest()
    (tmp_path / "run.json").write_text(json.dumps(stored))
    again = sr.study(TwoHeads(returns), data(), outputs=outputs, run_dir=tmp_path, progress=False)
    assert again.fingerprint["outputs"] == stored["outputs"]
    assert any("the study on disk was made with likelihood=" in str(note) for note in again.notes)


def test_a_run_of_another_format_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"format": 2}')
    with pytest.raises(sr.FileError, match=r"study\.json has format 2, this version reads 3"):
        sr.study(TwoHeads(as_dict), data(), outputs="scores", run_dir=tmp_path, progress=False)
