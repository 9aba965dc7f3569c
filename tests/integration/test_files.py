# SPDX-License-Identifier: Apache-2.0
"""Plans, results and studies on disk: read back in another process, and refused where they are not whole."""

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.demo import run_demo

Python = Callable[..., subprocess.CompletedProcess[str]]
NAMES = {"model.safetensors", "plan.json", "manifest.json", "report.html"}


@pytest.fixture
def study(cnn_study: sr.Study) -> sr.Study:
    return cnn_study


@pytest.fixture
def result(cnn_result: sr.Result) -> sr.Result:
    return cnn_result


@pytest.fixture(scope="module")
def old_and_new(cnn_study: sr.Study) -> tuple[sr.Result, sr.Result]:
    """Two results to put in the place of each other."""
    old, new = (cnn_study.apply(cnn_study.plan(macs=ratio)) for ratio in (0.7, 0.4))
    return old, new


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


class TestPlanInAnotherProcess:
    @pytest.mark.slow
    def test_with_and_without_batches(
        self, study: sr.Study, nets: ModuleType, tmp_path: Path, python: Python
    ) -> None:
        plan = study.plan(macs=0.4, multiple_of=1)
        assert plan.settings
        plan.save(tmp_path / "plan.json")
        result = study.apply(plan)
        torch.save(result.model.state_dict(), tmp_path / "expected.pt")
        python(
            """
import nets
import slimrank as sr
plan = sr.Plan.load("plan.json")
fitted = sr.apply(nets.cnn(), plan, nets.noise(1, 8, 8), progress=False)
assert fitted.after == plan.after
assert isinstance(fitted.divergence, float)
expected = torch.load("expected.pt", weights_only=True)
found = fitted.model.state_dict()
assert found.keys() == expected.keys()
for name in found:
    torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
bare = sr.apply(nets.cnn(), plan, progress=False)
assert bare.divergence is None
assert "not measured" in repr(bare)
assert bare.after.macs == plan.after.macs
assert "factors come from the weights alone" in str(bare.notes[0])
assert {layer.fit for layer in bare.layers if layer.setting} == {"weights"}
with torch.no_grad():
    bare.model(nets.noise(1, 8, 8)[0])
"""
        )

    def test_refused_for_another_model(self, study: sr.Study, nets: ModuleType, tmp_path: Path) -> None:
        study.plan(macs=0.5).save(tmp_path / "plan.json")
        plan = sr.Plan.load(tmp_path / "plan.json")
        other = nets.cnn()
        other.fc = nn.Linear(24, 11)
        with pytest.raises(sr.PlanError, match=r"another model.*1 of another shape: 'fc' weight_shape"):
            sr.apply(other, plan, progress=False)
        with pytest.raises(sr.PlanError, match=r"missing in the model: 'stem'.*unknown to the plan: '0'"):
            sr.apply(nets.mlp(), plan, nets.noise(24), progress=False)
        with pytest.raises(sr.PlanError, match="build the model the plan was made for, or plan anew"):
            sr.study(nets.mlp(), nets.noise(24), progress=False).apply(plan)

    def test_of_a_data_free_study_keeps_its_costs_with_batches(self, nets: ModuleType) -> None:
        bare = sr.study(nets.cnn(), nets.noise(1, 8, 8), data_free=True, progress=False)
        plan = bare.plan(params=0.6)
        assert not plan.has_bias
        assert bare.apply(plan).after == plan.after
        assert sr.apply(nets.cnn(), plan, nets.noise(1, 8, 8), progress=False).after == plan.after


class TestSavedResult:
    @pytest.mark.slow
    def test_loads_in_another_process_with_the_same_outputs(
        self, result: sr.Result, nets: ModuleType, tmp_path: Path, python: Python
    ) -> None:
        result.save(tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == NAMES
        x = nets.noise(1, 8, 8)[0]
        torch.save((x, outputs(result.model, x)), tmp_path / "expected.pt")
        python(
            """
import nets
import slimrank as sr
fresh = nets.cnn()
fresh.fc.weight.data.zero_()
model = sr.load("out", model=fresh)
x, expected = torch.load("expected.pt", weights_only=True)
assert not model.training
assert not fresh.fc.weight.any() and isinstance(fresh.fc, torch.nn.Linear)
with torch.no_grad():
    assert torch.equal(model(x), expected)
"""
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_of_another_dtype_loads_on_a_float32_model(
        self, dtype: torch.dtype, nets: ModuleType, tmp_path: Path
    ) -> None:
        batches = [x.to(dtype) for x in nets.noise(1, 8, 8)]
        result = sr.compress(nets.cnn().to(dtype), batches, macs=0.5, compete=False, progress=False)
        result.save(tmp_path / "out")
        model = sr.load(tmp_path / "out", model=nets.cnn())
        assert {tensor.dtype for tensor in model.state_dict().values()} == {
            tensor.dtype for tensor in result.model.state_dict().values()
        }
        assert torch.equal(outputs(model, batches[0]), outputs(result.model, batches[0]))

    def test_keeps_tied_weights_tied(self, nets: ModuleType, tmp_path: Path) -> None:
        batches = nets.tokens()
        result = sr.compress(
            nets.settle(nets.TiedWeights()), batches, macs=0.8, compete=False, progress=False
        )
        result.save(tmp_path / "out")
        model = sr.load(tmp_path / "out", model=nets.TiedWeights())
        assert model.head.weight is model.embed.weight
        assert torch.equal(outputs(model, batches[0]), outputs(result.model, batches[0]))

    def test_of_a_module_under_two_names(self, nets: ModuleType, tmp_path: Path) -> None:
        x = nets.noise(24)
        result = sr.compress(nets.settle(nets.TwoNames()), x, macs=0.6, compete=False, progress=False)
        result.save(tmp_path / "out")
        model = sr.load(tmp_path / "out", model=nets.TwoNames())
        assert model.a is model.same
        assert torch.equal(outputs(model, x[0]), outputs(result.model, x[0]))

    def test_without_pickle(self, result: sr.Result, tmp_path: Path) -> None:
        result.save(tmp_path / "out")
        for path in (tmp_path / "out").iterdir():
            assert not path.read_bytes().startswith((b"\x80", b"PK"))

    def test_manifest_and_report(self, result: sr.Result, tmp_path: Path) -> None:
        result.save(tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["costs"]["after"]["macs"] == result.after.macs
        assert manifest["divergence"] == result.divergence
        assert sr.Plan.load(tmp_path / "out" / "plan.json").settings == result.plan.settings
        assert "<html" in (tmp_path / "out" / "report.html").read_text()

    def test_into_the_current_directory(
        self, result: sr.Result, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        result.save(".")
        assert {path.name for path in (tmp_path / "here").iterdir()} == NAMES
        sr.load(".", model=nets.cnn())

    def test_through_a_symbolic_link(self, result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        result.save(tmp_path / "link")
        result.save(tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink()
        assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}
        assert {path.name for path in (tmp_path / "real").iterdir()} == NAMES
        sr.load(tmp_path / "link", model=nets.cnn())

    def test_overwrite_spares_files_of_others(self, result: sr.Result, tmp_path: Path) -> None:
        result.save(tmp_path / "out")
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with contextlib.suppress(sr.FileError):
            result.save(tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def test_a_new_folder_is_made(self, result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        result.save(tmp_path / "a")
        sr.load(str(tmp_path / "a"), model=nets.cnn())

    def test_an_empty_directory_is_taken_and_a_full_one_refused(
        self, result: sr.Result, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        result.save(tmp_path / "out")
        with pytest.raises(sr.NotEmptyError, match=r"is not empty; .*overwrite=True") as caught:
            result.save(tmp_path / "out")
        assert isinstance(caught.value, FileExistsError)
        (tmp_path / "file").write_text("mine")
        with pytest.raises(sr.NotEmptyError, match=r"file is a file; give a directory"):
            result.save(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_overwrite_replaces(
        self, old_and_new: tuple[sr.Result, sr.Result], nets: ModuleType, tmp_path: Path
    ) -> None:
        old, result = old_and_new
        old.save(tmp_path / "out")
        result.save(tmp_path / "out", overwrite=True)
        x = nets.noise(1, 8, 8)[0]
        model = sr.load(tmp_path / "out", model=nets.cnn())
        assert torch.equal(outputs(model, x), outputs(result.model, x))
        assert {path.name for path in tmp_path.iterdir()} == {"out"}

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("step", ["writing", "moving"])
    def test_is_whole_or_not_there(
        self,
        error: BaseException,
        step: Literal["writing", "moving"],
        old_and_new: tuple[sr.Result, sr.Result],
        nets: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        old, new = old_and_new
        old.save(tmp_path / "out")

        seams.fail_while_saving(monkeypatch, step, error)
        wanted = sr.FileError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(wanted):
            new.save(tmp_path / "out", overwrite=True)
        with pytest.raises(wanted):
            new.save(tmp_path / "other")
        monkeypatch.undo()
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
        x = nets.noise(1, 8, 8)[0]
        model = sr.load(tmp_path / "out", model=nets.cnn())
        assert torch.equal(outputs(model, x), outputs(old.model, x))

    def test_refused_on_another_model(self, result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        result.save(tmp_path / "out")
        with pytest.raises(sr.PlanError, match=r"belongs to another model.*'stem'"):
            sr.load(tmp_path / "out", model=nets.mlp())
        other = nets.cnn()
        other.extra = nn.PReLU()
        with pytest.raises(sr.PlanError, match=r"does not fit Cnn: tensors 1 missing \(extra.weight\)"):
            sr.load(tmp_path / "out", model=other)


@pytest.mark.parametrize(
    ("file", "damage", "error", "words"),
    [
        ("model.safetensors", "cut", sr.FileError, r"model\.safetensors is truncated or altered"),
        ("model.safetensors", "empty", sr.FileError, r"model\.safetensors is truncated or altered"),
        ("model.safetensors", "gone", sr.FileError, r"model\.safetensors does not exist"),
        ("model.safetensors", "flip", sr.FileError, r"model\.safetensors was altered after it was saved"),
        ("plan.json", "cut", sr.PlanError, r"plan\.json: no JSON, or cut short"),
        ("plan.json", "gone", sr.FileError, r"plan\.json: cannot be read"),
        ("plan.json", "binary", sr.PlanError, r"plan\.json: no text"),
        ("manifest.json", "cut", sr.FileError, r"manifest\.json is not whole JSON"),
        ("manifest.json", "empty", sr.FileError, r"manifest\.json is not whole JSON"),
        ("manifest.json", "gone", sr.FileError, r"manifest\.json cannot be read"),
        ("manifest.json", "binary", sr.FileError, r"manifest\.json is not whole JSON"),
        ("manifest.json", "list", sr.FileError, r"manifest\.json holds a list, not an object"),
    ],
)
def test_damaged_files_are_refused(
    file: str,
    damage: str,
    error: type[sr.SlimrankError],
    words: str,
    result: sr.Result,
    nets: ModuleType,
    tmp_path: Path,
) -> None:
    result.save(tmp_path / "out")
    path = tmp_path / "out" / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "empty": b"",
                "flip": data[:-1] + bytes([data[-1] ^ 1]),
                "binary": b"\xff\xfe\x00\x80",
                "list": b"[1]",
            }[damage]
        )
    with pytest.raises(error, match=words):
        sr.load(tmp_path / "out", model=nets.cnn())


def test_a_manifest_of_another_format_is_refused(result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))
    with pytest.raises(sr.FileError, match=r"has format 7, this version reads 1"):
        sr.load(tmp_path / "out", model=nets.cnn())


def test_a_plan_of_another_format_or_with_other_keys_is_refused(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    study.plan(macs=0.5).save(path)
    content = json.loads(path.read_text())
    for change, words in (
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"budgetz": {}}, "unknown key 'budgetz'; did you mean 'budgets'"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(sr.PlanError, match=words) as caught:
            sr.Plan.load(path)
        assert isinstance(caught.value, ValueError)


def test_what_is_no_directory_of_slimrank(nets: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(sr.FileError, match=r"nowhere is no directory; give one that result.save\(\) wrote"):
        sr.load(tmp_path / "nowhere", model=nets.cnn())
    with pytest.raises(sr.FileError, match="is this a directory of slimrank"):
        sr.load(tmp_path, model=nets.cnn())
    with pytest.raises(sr.FileError, match=r"there is no study\.json in it, so no study; give the") as caught:
        sr.Study.load(tmp_path)
    assert isinstance(caught.value, OSError)


class TestSavedStudy:
    @pytest.mark.slow
    @pytest.mark.parametrize("asked", [{"data_free": True}, {"fisher": False}], ids=repr)
    def test_without_gradients(self, asked: dict[str, bool], nets: ModuleType, tmp_path: Path) -> None:
        made = sr.study(nets.cnn(), nets.noise(1, 8, 8), progress=False, run_dir=tmp_path / "run", **asked)  # type: ignore[arg-type]
        loaded = sr.Study.load(tmp_path / "run", model=nets.cnn(), progress=False)
        assert loaded.grams == made.grams == {}
        plan = made.plan(macs=0.6)
        assert loaded.plan(macs=0.6) == plan
        assert loaded.apply(plan).after == made.apply(plan).after

    def test_plans_without_a_model(self, study: sr.Study, tmp_path: Path) -> None:
        study.save(tmp_path / "study")
        loaded = sr.Study.load(tmp_path / "study")
        assert repr(loaded) == repr(study)
        assert loaded.summary() == study.summary()
        assert loaded.plan(macs=0.5).settings == study.plan(macs=0.5).settings
        assert loaded.plan(macs=0.5).damage == study.plan(macs=0.5).damage
        with pytest.raises(sr.StudyError, match=r"without a model; pass Study.load\(dir, model=build\(\)\)"):
            loaded.apply(loaded.plan(macs=0.5))

    @pytest.mark.slow
    def test_applies_in_another_process_with_saved_inputs(
        self, study: sr.Study, result: sr.Result, tmp_path: Path, python: Python
    ) -> None:
        study.save(tmp_path / "study")
        torch.save(result.model.state_dict(), tmp_path / "expected.pt")
        python(
            """
import nets
import slimrank as sr
study = sr.Study.load("study", model=nets.cnn(), progress=False)
found = study.apply(study.plan(macs=0.5)).model.state_dict()
expected = torch.load("expected.pt", weights_only=True)
assert found.keys() == expected.keys()
assert all(torch.equal(found[name], expected[name]) for name in found)
"""
        )

    def test_applies_with_batches_given(self, study: sr.Study, nets: ModuleType, tmp_path: Path) -> None:
        study.save(tmp_path / "study")
        loaded = sr.Study.load(
            tmp_path / "study", model=nets.cnn(), batches=nets.noise(1, 8, 8), progress=False
        )
        assert loaded.apply(loaded.plan(macs=0.5)).divergence == study.apply(study.plan(macs=0.5)).divergence

    def test_refuses_other_weights_data_and_models(
        self, study: sr.Study, nets: ModuleType, tmp_path: Path
    ) -> None:
        study.save(tmp_path / "study")
        other = nets.cnn()
        other.fc.bias.data.add_(1)
        with pytest.raises(sr.StudyError, match="was made of other weights; pass the same model"):
            sr.Study.load(tmp_path / "study", model=other)
        with pytest.raises(sr.StudyError, match="was made of other inputs"):
            sr.Study.load(tmp_path / "study", model=nets.cnn(), batches=nets.noise(1, 8, 8, seed=1))
        with pytest.raises(sr.PlanError, match="another model"):
            sr.Study.load(tmp_path / "study", model=nets.mlp())

    @pytest.mark.parametrize(
        "kind",
        ["keywords", "keywords not in alphabetical order", "list of images", "mapping in a tuple"],
    )
    def test_keeps_inputs_of_every_kind(self, kind: str, nets: ModuleType, tmp_path: Path) -> None:
        build, batches = {
            "keywords": (
                lambda: nets.settle(nets.TwoInputs()),
                [{"a": a, "b": b, "scale": 0.5} for a, b in zip(nets.noise(24), nets.noise(16), strict=True)],
            ),
            "keywords not in alphabetical order": (
                lambda: nets.settle(nets.TwoInputs()),
                [{"b": b, "a": a} for a, b in zip(nets.noise(24), nets.noise(16), strict=True)],
            ),
            "list of images": (
                lambda: nets.settle(nets.Detector()),
                [([nets.noise(8, 8, n=1, size=3)[0], nets.noise(6, 9, n=1, size=3)[0]],)] * 2,
            ),
            "mapping in a tuple": (
                lambda: nets.settle(nets.Tupled()),
                [({"x": x},) for x in nets.noise(24)],
            ),
        }[kind]
        study = sr.study(build(), batches, progress=False)
        study.save(tmp_path / "study")
        loaded = sr.Study.load(tmp_path / "study", model=build(), progress=False)
        plan = study.plan(macs=0.7)
        assert loaded.apply(plan).divergence == study.apply(plan).divergence

    def test_remembers_which_outputs_mattered(self, nets: ModuleType, tmp_path: Path) -> None:
        def build() -> nn.Module:
            return nets.settle(nets.TupleOutput())

        study = sr.study(build(), nets.noise(24), outputs=0, progress=False)
        study.save(tmp_path / "index")
        plan = study.plan(macs=0.7)
        loaded = sr.Study.load(tmp_path / "index", model=build(), progress=False)
        assert loaded.apply(plan).divergence == study.apply(plan).divergence
        by_function = sr.study(build(), nets.noise(24), outputs=lambda out: out[0], progress=False)
        by_function.save(tmp_path / "function")
        with pytest.raises(sr.StudyError, match=r"outputs= as a function.*pass the same outputs= again"):
            sr.Study.load(tmp_path / "function", model=build())
        loaded = sr.Study.load(
            tmp_path / "function", model=build(), outputs=lambda out: out[0], progress=False
        )
        assert loaded.apply(plan).divergence == study.apply(plan).divergence

    @pytest.mark.parametrize(
        "file",
        [
            "study.json",
            "untouched_plan.json",
            "gradients.safetensors",
            "curves-0000.safetensors",
            "inputs.safetensors",
            "inputs.json",
        ],
    )
    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_damaged_files_are_refused(
        self, file: str, damage: str, study: sr.Study, nets: ModuleType, tmp_path: Path
    ) -> None:
        study.save(tmp_path / "study")
        path = tmp_path / "study" / file
        if damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
        with pytest.raises(
            sr.SlimrankError,
            match=r"cut short|truncated|whole JSON|cannot be read|holds no|not exist|not finished",
        ):
            sr.Study.load(tmp_path / "study", model=nets.cnn())


class TestStudyOfAnotherFormat:
    """Files as earlier versions wrote them, and as later ones may."""

    @pytest.mark.parametrize("file", ["study.json", "run.json"])
    @pytest.mark.parametrize(("number", "shown"), [(None, 1), (2, 2), (4, 4)])
    def test_is_refused(
        self, file: str, number: int | None, shown: int, study: sr.Study, nets: ModuleType, tmp_path: Path
    ) -> None:
        study.save(tmp_path)
        _edit(tmp_path / file, format=number)
        message = rf"{file} has format {shown}, this version reads 3; study again in another directory"
        with pytest.raises(sr.FileError, match=message):
            sr.Study.load(tmp_path)
        with pytest.raises(sr.FileError, match=message):
            sr.study(nets.cnn(), nets.noise(1, 8, 8), run_dir=tmp_path, progress=False)


def _edit(path: Path, **changes: object) -> None:
    """Other values in a JSON file; None takes an entry out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_save_plan_edit_load_replace_diff(study: sr.Study, tmp_path: Path) -> None:
    plan = sr.Plan.manual(study, {"conv": ("weight_svd", {"rank": 8}), "fc": ("weight_svd", 0.5)})
    plan.save(tmp_path / "plan.json")
    loaded = sr.Plan.load(tmp_path / "plan.json")
    assert loaded.settings == plan.settings
    assert loaded.after == plan.after
    content = json.loads((tmp_path / "plan.json").read_text())
    content["steps"][0]["layers"]["conv"][0]["rank"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(content))
    edited = sr.Plan.load(tmp_path / "plan.json")
    assert edited.settings["conv"].rank == 5
    result = study.apply(edited)
    assert result.after == edited.after
    assert "conv" in plan.diff(edited)
    assert "fc" not in plan.diff(edited)
    without = edited.replace("conv", None)
    assert study.apply(without).after == without.after
    assert isinstance(study.apply(without).model.conv, nn.Conv2d)


def test_loading_writes_nothing(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.two_layers(), nets.noise(12, seed=1), progress=False)
    study.save(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    loaded = sr.Study.load(tmp_path, model=nets.two_layers(), progress=False)
    loaded.apply(loaded.plan(macs=0.7))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_only_saved_models_are_replaced(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.two_layers(), nets.noise(12, seed=1), progress=False)
    result = study.apply(study.plan(macs=0.7))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(sr.NotEmptyError, match=r"note.txt is a file; give a directory"):
        result.save(tmp_path / "note.txt", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text("mine")
    with pytest.raises(sr.NotEmptyError, match="holds files but no saved model to replace"):
        result.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "note.txt").read_text() == (tmp_path / "mine" / "plan.json").read_text() == "mine"


def test_an_edited_plan_is_checked(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.two_layers(), nets.noise(12, seed=1), progress=False)
    plan = sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 4})}, multiple_of=4)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"rank": 4', '"rank": 12'))
    with pytest.raises(sr.RankError, match="rank 12 costs at least what the layer does; lower it"):
        sr.Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(text.replace('"rank": 4', '"rank": 5'))
    assert sr.Plan.load(tmp_path / "plan.json").multiple_of == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda study, result, path: result.save(path),
        lambda study, result, path: result.report(path),
        lambda study, result, path: study.save(path),
        lambda study, result, path: study.report(path),
        lambda study, result, path: result.plan.save(path),
        lambda study, result, path: study.pareto(points=2, measure=False).save(path),
        lambda study, result, path: result.export(path.with_suffix(".pt2"), format="torch"),
        lambda study, result, path: sr.study(nn.Linear(2, 2), [], run_dir=path),
        lambda study, result, path: sr.study(nn.Linear(2, 2), [], log_dir=path),
        lambda study, result, path: sr.compress(nn.Linear(2, 2), [], macs=0.5, run_dir=path),
        lambda study, result, path: sr.measure_scores(study, lambda _: 0.0, path=path, progress=False),
        lambda study, result, path: sr.measure_latency(
            study, backend="torch", batch=256, path=path, progress=False
        ),
        lambda study, result, path: sr.finetune(
            nn.Linear(2, 2),
            [(torch.ones(4, 2), torch.ones(4, 2))] * 2,
            lambda y, t: (y - t).square().mean(),
            run_dir=path,
            progress=False,
        ),
        lambda study, result, path: run_demo(path, progress=False),
    ],
)
def test_no_call_makes_parent_folders(
    write: Callable[[sr.Study, sr.Result, Path], object],
    cnn_study: sr.Study,
    cnn_result: sr.Result,
    tmp_path: Path,
) -> None:
    with pytest.raises(
        sr.FileError, match=rf"there is no folder {tmp_path / 'no'}|existing folder"
    ) as caught:
        write(cnn_study, cnn_result, tmp_path / "no" / "out.html")
    assert str(tmp_path / "no") in str(caught.value)
    assert not list(tmp_path.iterdir())
