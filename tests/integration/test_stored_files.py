# SPDX-License-Identifier: Apache-2.0
"""Files that version 0.1.0 wrote still open, and give what they gave (``fixtures/make_stored.py``)."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import stored_net
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import slimrank as sr

# Of float64 numbers that are read: sums of them and bounds on them may round otherwise on another processor.
_ROUNDED = 1e-9
# Of what is measured and fitted anew: with the narrowest instructions of a processor it came within 1e-6.
_COMPUTED = 1e-4
Facts = dict[str, dict[str, dict[str, object]]]
_OPTIONS: Mapping[str, object] = {"seed": 3, "draws": 2, "progress": False}
_PLANS: Mapping[str, Callable[[sr.Study, Path], sr.Plan]] = {
    "weight_svd": lambda study, _: study.plan(macs=0.8, methods=("weight_svd",)),
    "spatial_svd": lambda study, _: study.plan(macs=0.7, params=0.8, methods=("spatial_svd",)),
    "channel_pruning": lambda study, _: study.plan(macs=0.6, methods=("channel_pruning",), multiple_of=2),
    "joint": lambda study, _: study.plan(macs=0.3),
    "greedy": lambda study, _: study.plan(
        params=0.7,
        select="greedy",
        multiple_of={"layer*": 2, "*": 1},
        methods=("spatial_svd", "weight_svd"),
    ),
    "uniform": lambda study, _: study.plan(bytes=0.7, select="uniform"),
    "scored": lambda study, stored: study.plan(
        macs=0.6, scores=sr.Scores.load(stored / "scores.json"), monotonic=True
    ),
    "weights_only": lambda study, _: study.plan(macs=0.7),
    "manual_csv": lambda study, stored: sr.Plan.manual(study, stored / "settings.csv"),
    "manual_json": lambda study, stored: sr.Plan.manual(study, stored / "settings.json"),
    "two_steps": lambda study, _: study.plan(macs=0.35, relative_to="original"),
}
_FILES: Mapping[str, str] = {
    "joint": "plans/joint.json",
    "greedy": "plans/greedy.json",
    "scored": "plans/scored.json",
    "manual_json": "model/plan.json",
    "two_steps": "model_two_steps/plan.json",
}
_PROGRESS = ("blocks-measured.safetensors",)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy of the stored files: runs that go on write."""
    return shutil.copytree(stored_net.STORED, tmp_path / "stored")


@pytest.fixture(scope="module")
def expected() -> Facts:
    """What studies, plans and tables said when they were written."""
    facts: Facts = json.loads((stored_net.STORED / "expected.json").read_text(encoding="utf-8"))
    return facts


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    """The arrays of studies, and outputs of models, as they were."""
    return load_file(stored_net.STORED / "expected.safetensors")


def plain(facts: object) -> object:
    """As JSON gives it back."""
    return json.loads(json.dumps(facts))


def arrays_of(arrays: Mapping[str, Tensor], study: str) -> dict[str, Tensor]:
    """Those of one study."""
    return {name.removeprefix(f"{study}."): a for name, a in arrays.items() if name.startswith(f"{study}.")}


def check_close(found: Tensor, wanted: Tensor) -> None:
    """Computed anew: as close as other processors come, in shares of the largest entry."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=_COMPUTED * float(wanted.abs().max()))


def double_entries(path: Path, ending: str) -> dict[str, Tensor]:
    """Writes a file anew with some of its tensors doubled: tells what is read from what is measured."""
    tensors = {
        name: tensor * 2 if name.endswith(ending) else tensor for name, tensor in load_file(path).items()
    }
    assert any(name.endswith(ending) for name in tensors), f"{path.name} holds no {ending}"
    save_file(tensors, path)
    return tensors


def state_of(directory: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written last, and its bytes."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


def contents_of(directory: Path) -> dict[str, dict[str, object]]:
    """What each file holds: of JSON the values; of tensors dtype, shape and bytes by name, and metadata."""
    found: dict[str, dict[str, object]] = {}
    for path in directory.rglob("*.*"):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[name] = {"metadata": file.metadata() or {}}
            for key, tensor in load_file(path).items():
                found[name][key] = (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
    return found


@pytest.mark.parametrize("name", ["run", "weights_only", "second_step"])
def test_a_stored_study_says_what_it_said(
    name: str,
    stored: Path,
    expected: Facts,
    arrays: dict[str, Tensor],
) -> None:
    before = state_of(stored)
    study = sr.Study.load(stored / name)
    assert plain(stored_net.study_facts(study)) == expected["studies"][name]
    found, wanted = stored_net.study_arrays(study), arrays_of(arrays, name)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    assert state_of(stored) == before


@pytest.mark.parametrize("name", ["run", "weights_only", "second_step"])
def test_a_stored_study_is_written_as_it_was(name: str, stored: Path, tmp_path: Path) -> None:
    model = stored_net.stored_model()
    if name == "second_step":
        model = sr.load(stored / "model", model=model)
    sr.Study.load(stored / name, model=model, progress=False).save(tmp_path / "again")
    old, new = contents_of(stored / name), contents_of(tmp_path / "again")
    # How far a run had come is for its own directory only.
    assert new.keys() == {file for file in old if file not in _PROGRESS and not file.startswith("apply/")}
    assert [file for file, content in new.items() if content != old[file]] == ["run.json"]
    # By now a run says what was asked for, too, and of which batches.
    was, now = (
        json.loads((folder / "run.json").read_text()) for folder in (stored / name, tmp_path / "again")
    )
    assert now.pop("asked")
    assert len(now.pop("batches")) == len(stored_net.stored_batches())
    assert now == was


@pytest.mark.parametrize("name", list(_PLANS))
def test_a_stored_study_gives_the_plan_that_it_gave(name: str, stored: Path, expected: Facts) -> None:
    source = {"weights_only": "weights_only", "two_steps": "second_step"}.get(name, "run")
    plan = _PLANS[name](sr.Study.load(stored / source), stored)
    found, wanted = plain(stored_net.plan_facts(plan)), dict(expected["plans"][name])
    assert isinstance(found, dict)
    for key in ("damage", "score_loss", "gap"):
        value, old = found.pop(key), wanted.pop(key)
        assert (value is None) == (old is None), key
        assert value is None or math.isclose(value, old, rel_tol=_ROUNDED, abs_tol=_ROUNDED), key  # type: ignore[arg-type]
    assert found == wanted


@pytest.mark.parametrize("name", list(_FILES))
def test_a_stored_plan_says_what_it_said_and_is_written_as_it_was(
    name: str, stored: Path, expected: Facts, tmp_path: Path
) -> None:
    file = stored / _FILES[name]
    plan = sr.Plan.load(file)
    assert plain(stored_net.plan_facts(plan)) == expected["plans"][name]
    plan.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["scores", "scores_part"])
def test_a_stored_score_table_says_what_it_said_and_is_written_as_it_was(
    name: str, stored: Path, expected: Facts, tmp_path: Path
) -> None:
    file = stored / f"{name}.json"
    table = sr.Scores.load(file)
    assert plain(stored_net.table_facts(table)) == expected["tables"][name]
    table.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


def test_a_stored_score_table_is_gone_on_with(stored: Path, expected: Facts) -> None:
    scored: list[nn.Module] = []

    def score(model: nn.Module) -> float:
        scored.append(model)
        return stored_net.score_of(model)

    study = sr.Study.load(stored / "run", model=stored_net.stored_model(), progress=False)
    path = stored / "scores_part.json"
    found = stored_net.table_facts(
        sr.measure_scores(study, score, candidates=(0.4, 0.7), path=path, progress=False)
    )
    known, whole = expected["tables"]["scores_part"], expected["tables"]["scores"]
    n_known, n_all = (
        sum(len(table[kind]) for kind in ("entries", "groups"))  # type: ignore[arg-type]
        for table in (known, whole)
    )
    assert len(scored) == n_all - n_known > 0
    for kind in ("entries", "groups"):
        entries, wanted = plain(found[kind]), whole[kind]
        assert isinstance(entries, list)
        assert isinstance(wanted, list)
        assert [entry[:-1] for entry in entries] == [entry[:-1] for entry in wanted]
        assert [entry for entry in entries if entry in known[kind]] == known[kind]  # type: ignore[operator]
        check_close(torch.tensor([e[-1] for e in entries]), torch.tensor([e[-1] for e in wanted]))
    assert plain(stored_net.table_facts(sr.Scores.load(path))) == plain(found)


@pytest.mark.parametrize("name", ["model", "model_two_steps"])
def test_a_saved_model_gives_the_outputs_that_it_gave(
    name: str, stored: Path, arrays: dict[str, Tensor]
) -> None:
    loaded = sr.load(stored / name, model=stored_net.StoredNet())
    check_close(stored_net.outputs_of(loaded), arrays[f"outputs.{name}"])
    state = load_file(stored / name / "model.safetensors")
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())


def test_a_stored_second_step_is_applied_and_saved_as_it_was(
    stored: Path, arrays: dict[str, Tensor], tmp_path: Path
) -> None:
    halfway = sr.load(stored / "model", model=stored_net.stored_model())
    study = sr.Study.load(stored / "second_step", model=halfway, progress=False)
    result = study.apply(sr.Plan.load(stored / "model_two_steps" / "plan.json"))
    check_close(stored_net.outputs_of(result.model), arrays["outputs.model_two_steps"])
    result.save(tmp_path / "again")
    old, new = contents_of(stored / "model_two_steps"), contents_of(tmp_path / "again")
    assert new["plan.json"] == old["plan.json"]
    # What was added since: nothing reads it.
    assert new["manifest.json"].keys() - {"agreement", "warnings", "exports"} == old["manifest.json"].keys()
    for key in ("format", "model", "costs", "unit", "damage_unit"):
        assert new["manifest.json"][key] == old["manifest.json"][key], key
    weights, old_weights = new["model.safetensors"], old["model.safetensors"]
    assert weights.pop("metadata") == old_weights.pop("metadata")
    assert {key: tensor[:2] for key, tensor in weights.items()} == {
        key: tensor[:2] for key, tensor in old_weights.items()
    }
    assert (tmp_path / "again" / "report.html").is_file()


def test_a_finished_run_is_read_and_not_measured_again(stored: Path, arrays: dict[str, Tensor]) -> None:
    run, wanted = stored / "run", arrays_of(arrays, "run")
    for file in run.glob("*-0*.safetensors"):
        double_entries(file, "damage")
    double_entries(run / "blocks.safetensors", "damage")
    double_entries(run / "gradients.safetensors", "")
    study = sr.study(
        stored_net.stored_model(),
        stored_net.stored_batches(),
        run_dir=run,
        **_OPTIONS,  # type: ignore[arg-type]
    )
    found = stored_net.study_arrays(study)
    for key, array in wanted.items():
        assert torch.equal(found[key], array * 2 if key.endswith(("damage", "grams")) else array), key
    reread = stored_net.study_arrays(sr.Study.load(run))
    assert all(torch.equal(reread[key], array) for key, array in found.items())


@pytest.mark.slow
def test_a_run_that_was_stopped_among_curves_goes_on(
    stored: Path, expected: Facts, arrays: dict[str, Tensor]
) -> None:
    run, wanted = stored / "run_curves", arrays_of(arrays, "run")
    kept = sorted(path.name for path in run.glob("curves-*"))
    assert kept == ["curves-0000.safetensors", "curves-0001.safetensors"]
    with pytest.raises(sr.StudyError, match="was not finished"):
        sr.Study.load(run)
    for name in kept:
        double_entries(run / name, "damage")
    gradients = state_of(run)["gradients.safetensors"]
    # The same run before it had measured any curve.
    earlier = shutil.copytree(run, run.with_name("run_without_curves"))
    for name in kept:
        (earlier / name).unlink()
    study = sr.study(
        stored_net.stored_model(),
        stored_net.stored_batches(),
        run_dir=run,
        **_OPTIONS,  # type: ignore[arg-type]
    )
    assert plain(stored_net.study_facts(study)) == expected["studies"]["run"]
    assert state_of(run)["gradients.safetensors"][1] == gradients[1]
    found = stored_net.study_arrays(study)
    # The curves of the first two layers come first.
    n_kept = sum(len(curve.ranks) for curve in study.curves if curve.layer in ("stem", "layer1.conv1"))
    damage = wanted.pop("curves.damage")
    assert torch.equal(found["curves.damage"][:n_kept], 2 * damage[:n_kept])
    rest = stored_net.study_arrays(
        sr.study(
            stored_net.stored_model(),
            stored_net.stored_batches(),
            run_dir=earlier,
            **_OPTIONS,  # type: ignore[arg-type]
        )
    )
    check_close(found["curves.damage"][n_kept:], rest["curves.damage"][n_kept:])
    files = {path.name for path in stored_net.STORED.joinpath("run").iterdir() if path.name != "apply"}
    assert {path.name for path in run.iterdir()} == files - {"blocks-measured.safetensors"} | {
        "blocks-dropped.safetensors",
        "events.jsonl",
    }
    for key in ("curves.ranks", "curves.macs", "groups.kept"):
        assert torch.equal(found[key], rest[key]), key
    for key in ("curves.error", "groups.error", "grams"):
        check_close(found[key], wanted[key])
    for key in ("groups.damage", "blocks.damage"):
        check_close(found[key], rest[key])


def test_a_run_that_was_stopped_among_blocks_goes_on(stored: Path, arrays: dict[str, Tensor]) -> None:
    run, wanted = stored / "run_blocks", arrays_of(arrays, "run")
    for file in run.glob("group-*"):
        double_entries(file, "damage")
    # One block was dropped; blocks are fitted to other samples by now, so it is dropped again.
    path = run / "blocks-measured.safetensors"
    assert load_file(path)["measured"].shape == (1,)
    before = path.read_bytes()
    study = sr.study(
        stored_net.stored_model(),
        stored_net.stored_batches(),
        run_dir=run,
        methods=("channel_pruning",),
        **_OPTIONS,  # type: ignore[arg-type]
    )
    found = stored_net.study_arrays(study)
    assert torch.equal(found["groups.order"], wanted["groups.order"])
    assert torch.equal(found["groups.damage"], 2 * wanted["groups.damage"])
    damages = {entry.block: entry.damage for entry in study.block_damages}
    assert set(damages) == {"layer1", "layer2"}
    assert all(0 < damage < math.inf for damage in damages.values())
    assert path.read_bytes() == before
    assert len(load_file(run / "blocks-dropped.safetensors")["measured"]) > 1


def test_an_apply_that_was_stopped_goes_on(stored: Path, arrays: dict[str, Tensor]) -> None:
    run = stored / "run"
    before = state_of(run / "apply")
    assert len(before) == 1
    plan = sr.Plan.load(stored / "model" / "plan.json")

    def applied() -> nn.Module:
        study = sr.Study.load(run, model=stored_net.stored_model(), run_dir=run, progress=False)
        return study.apply(plan).model

    check_close(stored_net.outputs_of(applied()), arrays["outputs.model"])
    after = state_of(run / "apply")
    assert {name: after[name] for name in before} == before
    # In the same directory, and as many as the plan has layers to fit.
    assert len({Path(name).parent for name in after}) == 1
    assert len(after) == len(plan.settings)
    (name,) = before
    kept = double_entries(run / "apply" / name, "first")["first"].float()
    weight = applied().state_dict()["layer1.conv2.0.weight"]
    assert torch.equal(weight.flatten().sort().values, kept.flatten().sort().values)


def test_a_training_that_was_stopped_goes_on(stored: Path, arrays: dict[str, Tensor]) -> None:
    model = sr.load(stored / "model", model=stored_net.stored_model())
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    epochs: list[int] = []
    trained = sr.distill(
        model,
        stored_net.stored_model(),
        stored_net.stored_batches(),
        epochs=3,
        lr=2e-3,
        on_epoch=lambda epoch: epochs.append(epoch.epoch),
        run_dir=stored / "run_distill",
        progress=False,
    )
    assert epochs == [2, 3]
    found = stored_net.outputs_of(trained)
    check_close(found, arrays["outputs.distill"])
    assert not torch.allclose(found, arrays["outputs.model"], rtol=0, atol=1e-2)
