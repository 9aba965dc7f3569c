# SPDX-License-Identifier: Apache-2.0
"""Saved models that need no class: the architecture recorded as data, loaded without running any of it."""

import copy
import hashlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr

pytestmark = pytest.mark.filterwarnings("ignore")


def compressed(model: nn.Module, batches: list[object], **options: object) -> sr.Result:
    study = sr.study(model, batches, methods=("weight_svd",), progress=False, **options)  # type: ignore[arg-type]
    return study.apply(study.plan(macs=0.7))


def pair() -> tuple[nn.Linear, nn.Linear]:
    generator = torch.Generator().manual_seed(3)
    layers = nn.Linear(24, 32), nn.Linear(32, 16)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layers


@pytest.fixture(scope="module")
def saved(cnn_result: sr.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("architecture") / "cnn"
    cnn_result.save(path, architecture=True)
    return path


@pytest.fixture
def altered(saved: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, object]], None]], Path]:
    """A copy of which the architecture was changed, and the digest in the manifest as well."""

    def alter(change: Callable[[dict[str, object]], None]) -> Path:
        for file in saved.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        facts = json.loads((tmp_path / "architecture.json").read_text())
        change(facts)
        (tmp_path / "architecture.json").write_text(json.dumps(facts))
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        digest = hashlib.sha256((tmp_path / "architecture.json").read_bytes()).hexdigest()
        manifest["files_sha256"]["architecture.json"] = digest
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return tmp_path

    return alter


def test_loads_without_a_class(saved: Path, cnn_result: sr.Result, nets: ModuleType) -> None:
    loaded = sr.load(saved)
    assert not loaded.training
    assert loaded.state_dict().keys() == cnn_result.model.state_dict().keys()
    for size in (1, 3, 8):
        x = nets.noise(1, 8, 8, n=1, size=size, seed=5)[0]
        torch.testing.assert_close(loaded(x), cnn_result.model(x), rtol=1e-5, atol=1e-6)
    assert "recorded with torch" in repr(loaded)


def test_the_same_directory_loads_with_its_class(saved: Path, nets: ModuleType) -> None:
    x = nets.noise(1, 8, 8)[0]
    torch.testing.assert_close(sr.load(saved, model=nets.cnn())(x), sr.load(saved)(x), rtol=0, atol=0)


def test_a_loaded_model_trains_moves_copies_compiles_and_exports(saved: Path, nets: ModuleType) -> None:
    loaded, x = sr.load(saved), nets.noise(1, 8, 8)[0]
    expected = loaded(x)
    torch.testing.assert_close(copy.deepcopy(loaded)(x), expected)
    torch.testing.assert_close(torch.compile(loaded, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(loaded, (x,)).module()(x), expected)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    expected.square().mean().backward()
    optimizer.step()
    assert not torch.equal(loaded(x), expected)


def test_loading_unpickles_and_evaluates_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loading must not run what is in a file")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.export, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr("builtins.eval", refuse)
    monkeypatch.setattr("builtins.exec", refuse)
    monkeypatch.setattr("importlib.import_module", refuse)
    assert list(sr.load(saved).parameters())


# Operations that write where a file says, or read what they were not given, without a check.
UNCHECKED = (
    *("_sparse_coo_tensor_unsafe.default", "_sparse_compressed_tensor_unsafe.default"),
    *("_sparse_csr_tensor_unsafe.default", "sparse_coo_tensor.indices", "set_.source_Storage"),
    *("set_.source_Tensor_storage_offset", "set_data.default", "resize_.default", "resize_as_.default"),
    *("as_strided_.default", "_reshape_alias.default", "_resize_output_.default", "_fft_c2r.default"),
    *("_unsafe_masked_index.default", "_nested_view_from_buffer.default", "record_stream.default"),
    *("max_pool2d_with_indices_backward.default", "fbgemm_linear_int8_weight.default"),
    *("quantize_per_tensor.default", "native_batch_norm.default", "segment_reduce.default"),
    *("linalg_lu_solve.default", "fractional_max_pool2d.default", "_cufft_clear_plan_cache.default"),
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "no operation that a recorded program may call"),
        ("builtins.eval", "no operation that a recorded program may call"),
        ("operator.attrgetter", "no operation that a recorded program may call"),
        ("ops.load_library.default", "no operation that a recorded program may call"),
        ("aten.from_file.default", "may do more than compute"),
        ("aten.save.default", "computes no tensors|there is no operation"),
        *((f"aten.{name}", "may do more than compute") for name in UNCHECKED),
        ("aten.add.out", r"writes into tensors that it is given \(out=\)"),
        ("aten.__init__.__globals__", "there is no operation"),
        ("aten.conv2d.__call__", "there is no operation"),
    ],
)
def test_operations_that_do_more_than_compute_are_refused(
    name: str, message: str, altered: Callable[[Callable[[dict[str, object]], None]], Path]
) -> None:
    def change(facts: dict[str, object]) -> None:
        facts["nodes"][0]["call"] = name  # type: ignore[index]

    with pytest.raises(sr.FileError, match=message):
        sr.load(altered(change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 2, this version reads 1"),
        ("nodes", [{"call": "aten.relu.default", "args": [{"node": 0}]}], "no argument of a graph"),
        ("nodes", [{"call": "aten.relu.default", "args": [{"dtype": "load"}]}], "no argument of a graph"),
        ("results", [{"tensor": "no"}], "no file holds the tensors 'no'"),
        ("nodes", [{"call": "aten.relu.default", "args": [1, 2]}], "takes at most 1 arguments, not 2"),
        ("nodes", [{"call": "aten.relu.default", "args": [], "kwargs": {"x": 1}}], "takes no argument 'x'"),
        ("nodes", 3, "is no recorded architecture"),
        ("results", [5], "its results are not tensors"),
        ("results", [{"node": 10_000}], "no argument of a graph"),
        ("outputs", {"tensor": 99}, "the outputs name tensor 99 of 1"),
        ("outputs", {"list": [{"tensor": 0}, {"tensor": -1}]}, "the outputs name tensor -1 of 1"),
        ("outputs", {"tensor": True}, "the outputs name tensor True of 1"),
        ("outputs", {"pairs": [[[1], {"tensor": 0}]]}, "a structure of tensors"),
        ("outputs", 3, "a structure of tensors"),
        ("inputs", [], "no argument of a graph|is no recorded architecture"),
        ("arguments", {"x": {"tensor": 3}}, "is no recorded architecture"),
    ],
)
def test_what_is_no_record_is_refused(
    key: str, value: object, message: str, altered: Callable[[Callable[[dict[str, object]], None]], Path]
) -> None:
    def change(facts: dict[str, object]) -> None:
        facts[key] = value

    with pytest.raises(sr.FileError, match=message):
        sr.load(altered(change))


def test_operations_of_common_layers_are_allowed() -> None:
    named = seams.function_named
    for name in (
        *("conv2d.default", "relu_.default", "_softmax.default", "softmax.int", "lstm.input", "gru.input"),
        *("scaled_dot_product_attention.default", "batch_norm.default", "as_strided.default", "item.default"),
        *("unsafe_chunk.default", "_unsafe_view.default", "_weight_norm.default", "index_put_.default"),
        *("_assert_tensor_metadata.default", "_upsample_bilinear2d_aa.default", "fft_rfft2.default"),
        *("lift_fresh_copy.default", "to.dtype", "__and__.Tensor", "clone.default"),
    ):
        assert callable(named(f"aten.{name}", "file"))


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((5,), (1,), 0), ((1,), (1,), -1), ((2,), (-1,), 3), ((2,), (2**62,), 0)]
)
def test_as_strided_stays_within_the_memory_of_its_tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    function = seams.function_named("aten.as_strided.default", "file")
    with pytest.raises(RuntimeError, match=r"storage|Storage|Negative strides"):
        function(torch.zeros(4), size, stride, offset)


@pytest.mark.parametrize(("depth", "message"), [(900, "nested deeper than 100"), (100_000, "not whole JSON")])
def test_what_is_nested_too_deep_is_refused(depth: int, message: str, saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads((saved / "architecture.json").read_text())
    text = json.dumps({**facts, "nodes": "deep"}).replace('"deep"', "[" * depth + "]" * depth)
    (tmp_path / "architecture.json").write_text(text)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files_sha256"]["architecture.json"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sr.FileError, match=message):
        sr.load(tmp_path)


def test_a_torch_without_an_operation_is_told(
    altered: Callable[[Callable[[dict[str, object]], None]], Path],
) -> None:
    def change(facts: dict[str, object]) -> None:
        facts["torch"] = "9.9.0"
        facts["nodes"][0]["call"] = "aten.of_the_future.default"  # type: ignore[index]

    with pytest.raises(
        sr.FileError, match=r"no operation 'aten.of_the_future.default'.*with torch 9.9.0, this is"
    ):
        sr.load(altered(change))


def test_altered_and_missing_files_are_refused(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "architecture.json").write_text("{}")
    with pytest.raises(sr.FileError, match=r"architecture.json was altered"):
        sr.load(tmp_path)
    (tmp_path / "architecture.json").unlink()
    with pytest.raises(sr.FileError, match=r"architecture.json is missing"):
        sr.load(tmp_path)


def test_a_model_saved_without_it_says_what_to_do(cnn_result: sr.Result, tmp_path: Path) -> None:
    cnn_result.save(tmp_path / "out", architecture=True)
    cnn_result.save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "architecture.json").exists()
    with pytest.raises(sr.FileError, match=r"no architecture; pass model=.*architecture=True"):
        sr.load(tmp_path / "out")
    with pytest.raises(sr.FileError, match="is no directory"):
        sr.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(2, 1, 9, 8),), {}, r"x is \[2, 1, 9, 8\] float32.*x \(samples, 1, 8, 8\) float32"),
        ((torch.zeros(2, 1, 8, 8, dtype=torch.float64),), {}, "float64.*recorded for"),
        ((), {}, "x is missing"),
        ((3,), {}, "x is a int; give a tensor"),
        ((torch.zeros(2, 1, 8, 8),), {"x": 1}, "'x' is given by position and by name; give it once"),
        ((torch.zeros(2, 1, 8, 8), 1), {}, "2 positional arguments"),
        ((torch.zeros(2, 1, 8, 8),), {"mask": 1}, "no argument 'mask'"),
    ],
)
def test_other_inputs_are_refused(
    args: tuple[object, ...], kwargs: dict[str, object], message: str, saved: Path
) -> None:
    with pytest.raises(sr.BatchesError, match=message):
        sr.load(saved)(*args, **kwargs)


class Nested(nn.Module):
    """Keywords in no order, containers in and out, constants of several kinds, no_grad inside."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = pair()
        self.register_buffer("scale", torch.full((32,), 2.0), persistent=False)
        self.shift = torch.ones(32)

    def forward(
        self, x: Tensor, more: list[object], *, mask: Tensor, factor: float = 1.0
    ) -> dict[str, object]:
        with torch.no_grad():
            y = self.enter(x) * self.scale + self.shift * factor
        y = y * mask + more[0] * more[1]["q"]  # type: ignore[index, operator]
        return {"z": [self.out(y), None], "a": (y.sum(1), x.shape[0])}


def nested_batches() -> list[object]:
    generator = torch.Generator().manual_seed(0)

    def rows(width: int) -> Tensor:
        return torch.randn(8, width, generator=generator)

    return [
        {"x": rows(24), "more": [rows(32), {"r": 2, "q": rows(32)}], "mask": rows(32), "factor": 0.5}
        for _ in range(3)
    ]


def test_arguments_and_outputs_keep_their_structure(tmp_path: Path) -> None:
    batches = nested_batches()
    result = compressed(Nested().eval(), batches, fisher=False, outputs="z.0")
    result.save(tmp_path / "out", architecture=True)
    loaded, batch = sr.load(tmp_path / "out"), batches[0]
    assert isinstance(batch, dict)
    found, expected = loaded(**batch), result.model(**batch)
    assert list(found) == ["z", "a"]
    torch.testing.assert_close(found["z"][0], expected["z"][0], rtol=0, atol=0)
    torch.testing.assert_close(found["a"][0], expected["a"][0], rtol=0, atol=0)
    # What is no tensor may be another one for other samples.
    assert found["z"][1] is None
    assert found["a"][1] is None
    assert not {"scale", "constants.1"} & loaded.state_dict().keys()
    with pytest.raises(sr.BatchesError, match=r"factor=0.7: the architecture was recorded with factor=0.5"):
        loaded(**{**batch, "factor": 0.7})
    with pytest.raises(sr.BatchesError, match="more: give a list of 2"):
        loaded(**{**batch, "more": []})
    with pytest.raises(sr.BatchesError, match="keys r, q"):
        loaded(**{**batch, "more": [batch["more"][0], {}]})
    with pytest.raises(sr.BatchesError, match="inputs have 2 and 8 samples"):
        loaded(**{**batch, "x": batch["x"][:2]})


@pytest.mark.parametrize(
    "name",
    [
        *("_inputs", "_outputs", "_class", "_where", "_calls", "_results", "_homes", "_torch", "_arguments"),
        *("_program", "_keywords", "_positional", "_read", "_usage", "_tensors_of", "_add_tensors"),
    ],
)
def test_modules_may_have_any_name(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.get_submodule(name)(x)  # type: ignore[no-any-return]

    model, x = Named().eval(), torch.ones(3, 4)
    recorded, _ = seams.record_architecture(model, [seams.Batch(args=(x,), kwargs={})])
    loaded = seams.RecordedModel(recorded.facts, model.state_dict(), (), "file")
    torch.testing.assert_close(loaded(x), model(x))
    assert loaded.get_submodule(name).weight.shape == (4, 4)
    assert loaded.state_dict().keys() == model.state_dict().keys()


class Constants(nn.Module):
    """Has the names that constants would get, and returns dicts with keys of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = pair()
        self.constants = nn.ParameterList([nn.Parameter(torch.full((16,), 3.0))])
        self.constants_ = nn.Linear(16, 16)

    def forward(self, x: dict[int, Tensor]) -> dict[object, Tensor]:
        y = self.out(self.enter(x[0]).relu()) * self.constants[0] + torch.arange(16.0)
        return {0: y, 1: self.constants_(y) * torch.tensor([2.0] * 16), None: y, "1": y + 1}


def test_constants_and_keys_stay_apart_from_those_of_the_model() -> None:
    model, x = Constants().eval(), torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    recorded, _ = seams.record_architecture(model, [seams.Batch(args=({0: x},), kwargs={})])
    assert recorded.tensors
    assert all(name.startswith("constants__.") for name in recorded.tensors)
    facts = json.loads(json.dumps(recorded.facts))
    state = {**model.state_dict(), **recorded.tensors}
    loaded = seams.RecordedModel(facts, state, list(recorded.tensors), "file")
    found, expected = loaded({0: x}), model({0: x})
    assert list(found) == [0, 1, None, "1"]
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(sr.BatchesError, match="give a dict with the keys 0"):
        loaded({"0": x})


class Pairs(Constants):
    def forward(self, x: Tensor) -> dict[object, Tensor]:  # type: ignore[override]
        return {(0, 1): self.out(self.enter(x))}


def test_keys_that_no_file_keeps_are_refused() -> None:
    with pytest.raises(sr.ExportError, match=r"key \(0, 1\).*texts, whole numbers or None"):
        seams.record_architecture(Pairs().eval(), [seams.Batch(args=(torch.zeros(8, 24),), kwargs={})])


def test_constants_do_not_replace_weights(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "architecture.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files_sha256"]["architecture.safetensors"] = manifest["weights_sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sr.FileError, match="holds weights of the model"):
        sr.load(tmp_path)


class TwoStages(nn.Module):
    """Takes one number of samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enter(x.reshape(8, 24)).relu())


def test_a_fixed_batch_is_recorded_and_told(nets: ModuleType, tmp_path: Path) -> None:
    batches = nets.noise(24)
    result = compressed(TwoStages().eval(), batches, holdout=0.34)
    result.save(tmp_path / "out", architecture=True)
    notes = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]
    assert any("recorded for inputs of the shapes of the first batch alone" in note for note in notes)
    assert (
        "recorded for inputs of the shapes of the first batch alone"
        in (tmp_path / "out" / "report.html").read_text()
    )
    loaded = sr.load(tmp_path / "out")
    torch.testing.assert_close(loaded(batches[0]), result.model(batches[0]))
    with pytest.raises(sr.BatchesError, match=r"x \(8, 24\) float32"):
        loaded(batches[0][:2])


class Branches(TwoStages):
    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        return self.out(y + 1 if bool(y.sum() > 0) else y)


class Draws(TwoStages):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enter(x).relu() + torch.rand(x.shape[0], 32))


class Mixed(TwoStages):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.enter(x)
        return self.out(y.float())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Branches, "cannot be captured by torch.export.*leave architecture=True out"),
        (Draws, "answers otherwise than Draws.*leave architecture=True out"),
        (Mixed, "wrap_with_autocast: that is no operation of torch's own.*leave architecture=True out"),
    ],
)
def test_what_cannot_be_recorded_fails_before_anything_is_written(
    build: Callable[[], nn.Module], message: str, nets: ModuleType, tmp_path: Path
) -> None:
    result = compressed(build().eval(), nets.noise(24))
    with pytest.raises(sr.ExportError, match=message):
        result.save(tmp_path / "out", architecture=True)
    assert not list(tmp_path.iterdir())


def test_data_come_from_the_study_or_from_the_caller(nets: ModuleType, tmp_path: Path) -> None:
    plan = sr.study(nets.mlp(), nets.noise(24), progress=False).plan(macs=0.7)
    result = sr.apply(nets.mlp(), plan)
    with pytest.raises(sr.BatchesError, match="knows no data"):
        result.save(tmp_path / "out", architecture=True)
    with pytest.raises(sr.OptionError, match="go with architecture=True"):
        result.save(tmp_path / "out", batches=nets.noise(24))
    assert not list(tmp_path.iterdir())
    labelled = [(x, 0) for x in nets.noise(24)]
    result.save(tmp_path / "out", architecture=True, batches=labelled, inputs=lambda pair: pair[0])
    x = nets.noise(24)[0]
    torch.testing.assert_close(sr.load(tmp_path / "out")(x), result.model(x))


def test_a_directory_that_is_not_empty_is_refused_before_recording(
    cnn_result: sr.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("exported"))
    with pytest.raises(sr.NotEmptyError):
        cnn_result.save(tmp_path, architecture=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_models_of_transformers(kind: str, nets: ModuleType, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    mask = torch.ones(8, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=50, **sizes)
        model = transformers.BertForSequenceClassification(config)
        batches = [{"input_ids": ids, "attention_mask": mask} for ids in nets.tokens()]
    else:
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=16, patch_size=4, **sizes)
        )
        batches = [{"pixel_values": x} for x in nets.noise(3, 16, 16)]
    result = compressed(nets.settle(model).eval(), batches)
    result.save(tmp_path / "out", architecture=True)
    loaded = sr.load(tmp_path / "out")
    for size in (1, 5):
        batch = {name: tensor[:size] for name, tensor in batches[0].items()}
        torch.testing.assert_close(
            loaded(**batch)["logits"], result.model(**batch).logits, rtol=1e-5, atol=1e-6
        )
    result.save_pretrained(tmp_path / "pretrained")
    with pytest.raises(sr.FileError, match=r"slimrank\.from_pretrained"):
        sr.load(tmp_path / "pretrained")


@pytest.mark.parametrize("kind", ["tied", "recurrent", "checkpointed", "detector"])
def test_networks_of_many_kinds(kind: str, nets: ModuleType, tmp_path: Path) -> None:
    model, batches = {
        "tied": (nets.TiedWeights(), nets.tokens()),
        "recurrent": (nets.Recurrent(), nets.noise(6, 24)),
        "checkpointed": (nets.Checkpointed(), nets.noise(24)),
        "detector": (nets.Detector(), [([nets.noise(3, 8, 8, n=1, size=1)[0][0]] * 2,)] * 2),
    }[kind]
    result = compressed(nets.settle(model).eval(), batches)
    result.save(tmp_path / "out", architecture=True)
    loaded, given = sr.load(tmp_path / "out"), batches[0] if kind == "detector" else (batches[0],)
    torch.testing.assert_close(loaded(*given), result.model(*given), rtol=1e-5, atol=1e-6)
    # Tensors that the graph makes are made where the model is.
    meta = copy.deepcopy(loaded).to("meta")
    if kind != "detector":
        assert meta(given[0].to("meta")).device.type == "meta"
    if kind == "tied":
        assert loaded.embed.weight is loaded.head.weight


def test_a_loaded_model_is_exported_to_a_runtime(saved: Path, nets: ModuleType, tmp_path: Path) -> None:
    batches = nets.noise(1, 8, 8)
    exported = sr.export(sr.load(saved), tmp_path / "model.pt2", batches, format="torch")
    assert exported.max_error < 1e-5
    # Any number of samples, as the record has.
    assert not any("takes batches of" in str(note) for note in exported.notes)
    with pytest.raises(sr.ModelError, match=r"a recorded architecture.*load by slimrank\.load"):
        sr.study(sr.load(saved), batches, progress=False)


@pytest.mark.slow
def test_the_command_line_saves_and_exports_without_a_class(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batches = nets.noise(1, 8, 8)
    net = ModuleType("architecture_net")
    net.build, net.batches = nets.cnn, lambda: batches  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "architecture_net", net)
    refs = ("architecture_net:build", "architecture_net:batches")
    options = ("--macs", "0.7", "--no-compete", "--methods", "weight_svd", "--quiet")
    done = CliRunner().invoke(seams.cli, ["compress", *refs, "--out", "small", "--architecture", *options])
    assert done.exit_code == 0, done.output
    exported = ["export", "small", "small.pt2", "--batches", refs[1]]
    done = CliRunner().invoke(seams.cli, exported)
    assert done.exit_code == 0, done.output
    assert "small.pt2" in (tmp_path / "small" / "manifest.json").read_text()
    assert sr.load("small")(batches[0]).shape[0] == 8
