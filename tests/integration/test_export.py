# SPDX-License-Identifier: Apache-2.0
"""Models as files of other runtimes: read there by hand, compared, refused with reasons."""

import copy
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank import demo

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
if HAS_OPENVINO:
    SUFFIXES["openvino"] = ".xml"
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
HAS_EXECUTORCH = importlib.util.find_spec("executorch") is not None
if HAS_EXECUTORCH:
    SUFFIXES["executorch"] = ".pte"
needs_executorch = pytest.mark.skipif(not HAS_EXECUTORCH, reason="executorch is not installed")


def _own_words(text: str) -> str:
    """What was printed, without the log of ExecuTorch's C++ code, which Python cannot catch."""
    return re.sub(r"^\[\w+\.cpp:\d+\] .*\n", "", text, flags=re.MULTILINE)


def _unusual(exported: sr.Exported) -> list[object]:
    """Notes but those that tell how busy the machine is, and what every file of ExecuTorch has."""
    usual = ("spread", "samples at a time, for which memory is kept", "outside XNNPACK")
    return [note for note in exported.notes if not any(words in note.text for words in usual)]


def _notes(exported: sr.Exported) -> str:
    return "\n".join(str(note) for note in exported.notes)


def _run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_outputs()]
    results = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(np.asarray(result)) for name, result in zip(names, results, strict=True)}


def _run_openvino(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    openvino = seams.import_package("openvino", extra="openvino", what="this test")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
    return {port.any_name: torch.from_numpy(np.asarray(results[port])) for port in compiled.outputs}


def _executorch(module: str) -> ModuleType:
    with warnings.catch_warnings():
        # Where the first import of it fails, all later ones do.
        warnings.simplefilter("ignore")
        return seams.import_package(f"executorch.{module}", extra="executorch", what="this test")


def _run_executorch(path: Path, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    program = _executorch("runtime").Runtime.get().load_program(path.read_bytes())

    def call(method: str, *given: Tensor | None) -> list[Tensor]:
        return program.load_method(method).execute(given)  # type: ignore[no-any-return]

    given = [inputs[str(name)] for name in call("input_names")]
    return dict(zip(map(str, call("output_names")), call("forward", *given), strict=True))


def _run(
    format: str, path: Path, inputs: Mapping[str, Tensor], *, has_keywords: bool = False
) -> dict[str, Tensor]:
    """The outputs of a file by their names, read without the library."""
    if format == "onnx":
        return _run_onnx(path, inputs)
    if format == "openvino":
        return _run_openvino(path, inputs)
    if format == "executorch":
        return _run_executorch(path, inputs)
    module = torch.export.load(path).module()
    result = module(**inputs) if has_keywords else module(*inputs.values())
    return result if isinstance(result, dict) else {"output": result}


def _files(path: Path) -> set[Path]:
    """All files of an export."""
    return {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}


class Residual(nn.Module):
    """Convolutions with norms around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.conv = nn.Conv2d(16, 16, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head((x + self.norm(self.conv(x))).relu().mean((2, 3)))


class Text(nn.Module):
    """Keywords in, a dict out, with what is no tensor in both."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *, scaled: bool = False
    ) -> dict[str, object]:
        x = self.mix(self.embed(input_ids)).relu() * attention_mask[..., None]
        pooled = x.sum(1) / attention_mask.sum(1, keepdim=True)
        logits = self.head(pooled) * (8.0 if scaled else 1.0)
        return {"logits": logits, "cache": None, "states": (x, pooled), "name": "text"}


class Vit(nn.Module):
    """Patches, a class token of the size of the batch, torch's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(24, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.encoder(x)[:, 0])


class Gate(nn.Module):
    """A branch on the data, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Singular(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x[:, None] * x[:, :, None])


class Sorted(nn.Module):
    """An operation that ExecuTorch can write, and cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1)[0]


class FixedBatch(nn.Module):
    """The number of samples is taken out of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.full((int(str(len(x))), 1), 0.5)


def _images(n_batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(10, 3, 8, 8, generator=generator) for _ in range(n_batches)]


def _texts(nets: ModuleType) -> list[dict[str, object]]:
    return [
        {"input_ids": ids, "attention_mask": torch.ones(ids.shape), "scaled": True}
        for ids in nets.tokens(size=6)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_a_result_is_written_checked_and_timed(
    format: str,
    cnn_result: sr.Result,
    nets: ModuleType,
    tmp_path: Path,
    snapshot: Callable[[nn.Module], object],
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(cnn_result.model)
    path = tmp_path / f"model{SUFFIXES[format]}"
    exported = cnn_result.export(path, format=format, batch=2)
    assert snapshot(cnn_result.model) == before
    said, warned = capfd.readouterr()
    assert (said, _own_words(warned) if format == "executorch" else warned) == ("", "")
    assert set(tmp_path.iterdir()) == _files(path)
    assert (exported.path, exported.format, exported.batch) == (path, format, 2)
    assert exported.bytes == sum(file.stat().st_size for file in _files(path))
    assert exported.max_error < 1e-5
    assert exported.before_ms is not None
    assert exported.before_ms > 0
    assert exported.after_ms > 0
    assert exported.after_spread >= 0
    assert f"ratio {exported.after_ms / exported.before_ms:.2f}" in exported.summary()
    # Apart from the library: another number of samples, other values.
    (x,) = nets.noise(1, 8, 8, n=1, size=7, seed=9)
    expected = copy.deepcopy(cnn_result.model).eval()(x)
    found = _run(format, path, {"x": x})["output"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_printed_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = f"""
import slimrank, torch
class Branch(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x
batches = [torch.randn(8, 4)]
slimrank.export(torch.nn.Linear(4, 2), {str(tmp_path / "model.onnx")!r}, batches)
try:
    slimrank.export(Branch(), {str(tmp_path / "branch.onnx")!r}, batches)
except slimrank.ExportError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_onnx_files_say_who_wrote_them_and_nothing_of_the_machine(
    cnn_result: sr.Result, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    cnn_result.export(path)
    model = onnx.load(path)
    assert (model.producer_name, model.producer_version) == ("slimrank", sr.__version__)
    assert [(value.name, value.type.tensor_type.shape.dim[0].dim_param) for value in model.graph.input] == [
        ("x", "batch")
    ]
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
    assert sys.prefix.encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_names_of_keywords_and_of_a_dict_are_kept(format: str, nets: ModuleType, tmp_path: Path) -> None:
    model, batches = nets.settle(Text().eval()), _texts(nets)
    path = tmp_path / f"text{SUFFIXES[format]}"
    exported = sr.export(model, path, batches, format=format, likelihood="categorical", outputs="logits")
    assert exported.agreement == 1.0
    assert exported.before_ms is None
    assert "scaled: this argument is True in the file" in _notes(exported)
    inputs = {"input_ids": nets.tokens(size=3, seed=5)[0], "attention_mask": torch.ones(3, 6)}
    expected = model(**inputs, scaled=True)
    found = _run(format, path, inputs, has_keywords=True)
    assert list(found) == ["logits", "states_0", "states_1"]
    torch.testing.assert_close(found["logits"], expected["logits"])
    torch.testing.assert_close(found["states_1"], expected["states"][1])


@pytest.mark.slow
@pytest.mark.parametrize("build", [Residual, Vit])
def test_networks_that_were_never_compressed(build: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    exported = sr.export(model, tmp_path / "model.onnx", _images(), likelihood="categorical")
    assert model.training
    assert exported.max_error < 1e-5
    assert exported.agreement == 1.0
    assert [note for note in exported.notes if "spread" not in note.text] == []
    images = _images()[1][:4]
    found = _run_onnx(exported.path, {"image": images})["output"]
    torch.testing.assert_close(found, model.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pairs_and_fewer_channels_around_a_shortcut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    study = sr.study(Residual(), _images(4), progress=False)
    result = study.apply(study.plan(macs=0.5))
    exported = result.export(tmp_path / "model.onnx")
    assert exported.max_error < 1e-5
    sizes = [tuple(tensor.dims) for tensor in onnx.load(exported.path).graph.initializer]
    assert sum(int(np.prod(size)) for size in sizes) < sum(p.numel() for p in Residual().parameters())


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [2, 3])
def test_several_outputs_have_their_index_for_a_name(outputs: int, tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> tuple[object, ...]:
            return (x + 1, x.argmax(1), [None, x * 2])[:outputs]

    batches = [torch.randn(6, 5)]
    exported = sr.export(Several(), tmp_path / "model.onnx", batches)
    found = _run_onnx(exported.path, {"x": batches[0]})
    assert list(found) == ["output_0", "output_1", "output_2_1"][:outputs]
    assert torch.equal(found["output_1"], batches[0].argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=needs_openvino)])
def test_outputs_named_like_what_is_inside(format: str, nets: ModuleType, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.linear(x)
            return {
                "relu": y.relu() + 1,
                "same": y,
                "again": y,
                "linear": -y,
                "x": x,
                "bias": self.linear.bias,
            }

    model = Named()
    exported = sr.export(model, tmp_path / f"model{SUFFIXES[format]}", nets.noise(24), format=format)
    (x,) = nets.noise(24, n=1)
    found, expected = _run(format, exported.path, {"x": x}), model(x)
    assert list(found) == ["relu", "same", "again", "linear", "output_x", "bias"]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[f"output_{name}" if name == "x" else name], tensor.detach())


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_tensors_in_containers_and_inputs_changed_in_place(format: str, tmp_path: Path) -> None:
    class Nested(nn.Module):
        def forward(self, pair: list[object], options: Mapping[str, Tensor]) -> Tensor:
            first = pair[0]
            return first.mul_(2) + options["bias"]  # type: ignore[attr-defined]

    # As many as one of the batches of the check: that one is not cut out, so it is the caller's own.
    batches = [([torch.randn(5, 3), None], {"bias": torch.randn(5, 3)}) for _ in range(2)]
    before = batches[0][0][0].clone()
    path = tmp_path / f"model{SUFFIXES[format]}"
    exported = sr.export(Nested(), path, batches, format=format)
    assert _unusual(exported) == []
    assert torch.equal(batches[0][0][0], before)
    if format in ("onnx", "openvino"):
        inputs = {"pair_0": torch.randn(3, 3), "options_bias": torch.randn(3, 3)}
        expected = 2 * inputs["pair_0"] + inputs["options_bias"]
        torch.testing.assert_close(_run(format, path, inputs)["output"], expected)
    if format == "executorch":
        # Every member of a container is an input, and inputs that change come back first.
        first, bias = torch.randn(3, 3), torch.randn(3, 3)
        wanted = {"changed_pair_0": 2 * first, "output": 2 * first + bias}
        given = {"pair_0": first.clone(), "pair_1": None, "options_bias": bias}
        torch.testing.assert_close(_run_executorch(path, given), wanted)


def test_a_model_of_integers_has_no_classes(tmp_path: Path) -> None:
    class Labels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    exported = sr.export(Labels(), tmp_path / "model.pt2", [torch.randn(6, 5)], format="torch")
    assert (exported.max_error, exported.agreement) == (0.0, None)


@pytest.mark.slow
def test_a_batch_that_cannot_be_free_is_fixed_and_told(nets: ModuleType, tmp_path: Path) -> None:
    exported = sr.export(FixedBatch(), tmp_path / "model.onnx", nets.noise(24), batch=3)
    assert exported.batch == 3
    assert "batch: the file takes batches of 3 only: FixedBatch cannot be captured" in _notes(exported)
    assert "takes the number of samples for fixed" in _notes(exported)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        _run_onnx(exported.path, {"x": torch.zeros(2, 24)})
    assert _run_onnx(exported.path, {"x": torch.zeros(3, 24)})["output"].shape == (3, 6)


def test_a_branch_on_the_number_of_samples_is_told(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] > 3 else x * 3

    exported = sr.export(Branch(), tmp_path / "model.pt2", [torch.randn(10, 4)], format="torch")
    assert "batches of 1 only" in _notes(exported)
    assert "treats some numbers of samples otherwise" in _notes(exported)


def test_a_list_with_a_tensor_for_each_sample_fixes_their_number(tmp_path: Path) -> None:
    class First(nn.Module):
        def forward(self, images: list[Tensor]) -> Tensor:
            return images[0] * 2

    path, x = tmp_path / "model.pt2", torch.randn(3, 4)
    exported = sr.export(First(), path, [([x],)], format="torch")
    assert "batches of 1 only: the file fails in torch on 1 sample" in _notes(exported)
    assert torch.equal(torch.export.load(path).module()([x]), x * 2)


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_one_tensor_for_two_arguments_is_two_inputs(format: str, tmp_path: Path) -> None:
    class Weighted(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first + 2 * second

    path, x = tmp_path / f"model{SUFFIXES[format]}", torch.randn(2, 4)
    sr.export(Weighted(), path, [(x, x)], format=format)
    inputs = {"first": torch.ones(2, 4), "second": torch.zeros(2, 4)}
    assert torch.equal(_run(format, path, inputs)["output"], torch.ones(2, 4))


def test_what_torch_cannot_prove_of_the_batch_is_told(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = torch.split(torch.cat([x, x * 2]).relu(), x.shape[0])
            return first - second

    exported = sr.export(Pair(), tmp_path / "model.pt2", [torch.randn(8, 6)], format="torch")
    assert "torch cannot tell that it does not: " in _notes(exported)
    assert "TORCH_LOGS" not in _notes(exported)
    assert "size()" not in _notes(exported)


def test_a_model_that_takes_its_own_batch_only(tmp_path: Path) -> None:
    class Four(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(4, 6) * 2

    exported = sr.export(Four(), tmp_path / "model.pt2", [torch.randn(4, 6)] * 2, format="torch")
    assert exported.batch == 4
    assert "the file takes batches of 4 only: Four refuses" in _notes(exported)


def test_samples_of_other_shapes_are_left_out_and_told(tmp_path: Path) -> None:
    batches = [torch.randn(4, 5, 6), torch.randn(4, 7, 6)]
    exported = sr.export(nn.Linear(6, 3), tmp_path / "model.pt2", batches, format="torch")
    assert "those of the first batch, argument 0 (batch, 5, 6)" in _notes(exported)


def test_control_flow_on_data_names_module_and_line(nets: ModuleType, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 8), nn.Sequential(nn.ReLU(), Gate()))
    with pytest.raises(
        sr.ExportError, match=r"\(module 1\.1, Gate\).*test_export.py:\d+ `if x.sum\(\) > 0:`"
    ):
        sr.export(model, tmp_path / "model.onnx", nets.noise(24))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_named_with_its_module(nets: ModuleType, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 4), Singular())
    with pytest.raises(
        sr.ExportError, match=r"no translation of aten\._?linalg_svd.* in module 1 at .*; take"
    ):
        sr.export(model, tmp_path / "model.onnx", nets.noise(24))
    assert list(tmp_path.iterdir()) == []


def _with_a_wrong_number(row: object, name: str) -> Callable[[object, Path], object]:
    """Writes a file and changes a weight in it."""

    def write(program: object, path: Path) -> object:
        lowered = row.write(program, path)  # type: ignore[attr-defined]
        model = onnx.load(path)
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith(name)]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.5, tensor.name))
        onnx.save(model, path)
        return lowered

    return write


def test_a_program_of_torch_that_answers_otherwise_is_not_written(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = seams.FORMATS["torch"]

    def write(program: object, path: Path) -> object:
        (weight,) = [
            tensor
            for name, tensor in program.exported.state_dict.items()  # type: ignore[attr-defined]
            if name.endswith("2.weight")
        ]
        with torch.no_grad():
            weight.mul_(1.5)
            written = row.write(program, path)  # type: ignore[arg-type]
            weight.div_(1.5)
        return written

    seams.change_format(monkeypatch, "torch", write=write)
    model = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(sr.ExportError, match=r"first inner value that differs is aten\S* in module 2 \("):
        sr.export(model, tmp_path / "model.pt2", nets.noise(24), format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_outputs_without_a_finite_value_cannot_be_checked(
    format: str, nets: ModuleType, tmp_path: Path
) -> None:
    model = nn.Linear(24, 8)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(sr.ExportError, match=r"output of Linear holds nothing but nan and inf"):
        sr.export(model, tmp_path / f"model{SUFFIXES[format]}", nets.noise(24), format=format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_written(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = seams.FORMATS["onnx"]
    seams.change_format(monkeypatch, "onnx", write=_with_a_wrong_number(row, "2.weight"))
    path = tmp_path / "model.onnx"
    path.write_text("earlier")
    with pytest.raises(
        sr.ExportError, match=r"output differs by .*first inner value that differs is aten\S* in module 2 \("
    ):
        sr.export(nets.mlp(), path, nets.noise(24))
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_for_which_the_batch_is_fixed_after_all_is_found_out(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = seams.FORMATS["torch"]

    def first_sample_only(path: Path, program: object, threads: int) -> object:
        bind = row.open(path, program, threads)  # type: ignore[arg-type]
        return lambda batch: lambda: [tensor[:1] for tensor in bind(batch)()]

    seams.change_format(monkeypatch, "torch", open=first_sample_only)
    exported = sr.export(nn.Linear(24, 8), tmp_path / "model.pt2", nets.noise(24), format="torch")
    assert "batches of 1 only" in _notes(exported)
    assert "output is [1, 8] where the model's is [2, 8]" in _notes(exported)


@pytest.mark.slow
def test_a_difference_that_cannot_be_located_is_told_all_the_same(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> object:
        raise KeyError("no such value")

    row = seams.FORMATS["torch"]
    seams.change_format(
        monkeypatch,
        "torch",
        open=lambda *args: lambda batch: lambda: [2 * tensor for tensor in row.open(*args)(batch)()],
        open_inside=fail,
    )
    with pytest.raises(sr.ExportError, match=r"output differs by 1 .* could not be found out \(KeyError"):
        sr.export(nn.Linear(24, 8), tmp_path / "model.pt2", nets.noise(24), format="torch")


def test_what_torch_cannot_write_is_told(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("custom object")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(
        sr.ExportError, match=r"Linear cannot be written by torch.export: RuntimeError: custom"
    ):
        sr.export(nn.Linear(24, 8), tmp_path / "model.pt2", nets.noise(24), format="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(sr.FileError, match=r"No space left.*give a folder with room"):
        sr.export(nn.Linear(24, 8), tmp_path / "model.pt2", nets.noise(24), format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_that_draws_is_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(sr.ExportError, match=r"aten.rand_like.* draws random numbers"):
        sr.export(Noisy(), tmp_path / "model.onnx", [torch.zeros(4, 3)])
    with pytest.raises(
        sr.ExportError, match=r"first inner value that differs is aten.rand_like.*; a model that draws"
    ):
        sr.export(Noisy(), tmp_path / "model.pt2", [torch.zeros(4, 3)], format="torch")


def test_an_original_that_cannot_be_written_is_told(nets: ModuleType, tmp_path: Path) -> None:
    exported = sr.export(
        nn.Linear(24, 8), tmp_path / "model.pt2", nets.noise(24), format="torch", original=nets.Control()
    )
    assert exported.before_ms is None
    assert (
        "the original cannot be written, so there is neither its size nor its time: Control cannot"
        in _notes(exported)
    )


def test_an_existing_file_is_replaced(nets: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("earlier")
    sr.export(nn.Linear(24, 8), path, nets.noise(24), format="torch")
    assert torch.export.load(path).module()(torch.zeros(2, 24)).shape == (2, 8)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("file", "options", "error", "message"),
    [
        ("m.onnx", {"format": "onxx"}, sr.UnknownNameError, "format='onxx'; did you mean 'onnx'"),
        ("m.onnx", {"format": None}, sr.UnknownNameError, "format=None"),
        ("m.pt2", {}, sr.ExportError, "end in .onnx; pass format='torch', or give .*m.onnx"),
        ("m", {}, sr.ExportError, "files of format='onnx' end in .onnx; give .*m.onnx"),
        ("none/m.onnx", {}, sr.FileError, "there is no folder .*none; make it first"),
        ("file/m.onnx", {}, sr.FileError, "there is no folder .*file"),
        ("folder.onnx", {}, sr.FileError, "is a folder; give the path of a file"),
        ("m.onnx", {"batch": 0}, sr.OptionError, "batch=0; give a whole number from 1 on"),
        ("m.onnx", {"threads": 1.5}, sr.OptionError, "threads=1.5"),
        ("m.onnx", {"original": 3}, sr.OptionError, "give a torch.nn.Module"),
        ("m.onnx", {"inputs": lambda b: b["x"]}, sr.BatchesError, "inputs= failed"),
        ("m.onnx", {"likelihood": "normal"}, sr.OptionError, "likelihood='normal'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    file: str, options: Mapping[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    there = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        sr.export(nn.Linear(4, 2), tmp_path / file, [torch.zeros(3, 4)], **options)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == there


def test_no_tensor_comes_out(tmp_path: Path) -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> dict[str, str]:
            return {"name": str(x.shape)}

    with pytest.raises(sr.OutputError, match="holds no tensor"):
        sr.export(Words(), tmp_path / "model.onnx", [torch.zeros(3, 4)])


def test_a_missing_package_gives_the_line_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime.*pip install 'slimrank\[export\]'") as caught:
        sr.export(nn.Linear(4, 2), tmp_path / "model.onnx", [torch.zeros(3, 4)])
    assert isinstance(caught.value, sr.MissingPackageError)


@pytest.mark.slow
@pytest.mark.parametrize("error", [onnx.checker.ValidationError("bad node"), ValueError("bad node")])
def test_a_file_that_onnx_refuses_is_not_written(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_data: bytes) -> None:
        raise error

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(sr.ExportError, match=r"Linear cannot be written as ONNX: .*bad node.*format='torch'"):
        sr.export(nn.Linear(4, 2), tmp_path / "model.onnx", [torch.zeros(3, 4)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_that_one_onnx_file_cannot_hold_are_told(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = nn.Linear(24, 8), tmp_path / "model.onnx"
    n_bytes = 4 * (24 * 8 + 8)
    path.write_text("earlier")
    seams.limit_onnx_files(monkeypatch, n_bytes - 1)
    with pytest.raises(
        sr.ExportError,
        match=r"the weights of Linear take 800 bytes, and one ONNX file holds 799; take format='torch', or a",
    ):
        sr.export(model, path, nets.noise(24))
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
    seams.limit_onnx_files(monkeypatch, n_bytes)
    assert sr.export(model, path, nets.noise(24)).max_error < 1e-5


class Half(nn.Module):
    """Few digits inside, float32 and numbers of tokens outside."""

    def __init__(self, dtype: torch.dtype, *, ends: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16, dtype=dtype), nn.Linear(16, 20, dtype=dtype)
        self.ends = ends

    def forward(self, ids: Tensor) -> Tensor:
        y = self.head(self.embed(ids).mean(1).relu())
        return y.float() if self.ends else y


# Models of few digits in each format: the words of the refusal, or None where they are written.
_REFUSED = {
    ("onnx", torch.bfloat16, True): "onnxruntime .* refuses the file of Half.*model.float()",
    ("onnx", torch.bfloat16, False): "onnxruntime .* refuses the file of Half.*model.float()",
    ("openvino", torch.bfloat16, False): "output output is torch.bfloat16.*OpenVINO.*model.float()",
}


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", SUFFIXES)
def test_half_precision_is_written_right_or_refused(
    format: str, dtype: torch.dtype, ends: bool, nets: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, path = Half(dtype, ends=ends), tmp_path / f"model{SUFFIXES[format]}"
    batches = [torch.randint(20, (10, 6), generator=nets.seeded()) for _ in range(2)]
    refused = _REFUSED.get((format, dtype, ends))
    if refused is not None:
        with pytest.raises(sr.ExportError, match=refused):
            sr.export(model, path, batches, format=format)
        assert list(tmp_path.iterdir()) == []
        return
    exported = sr.export(model, path, batches, format=format)
    assert "batches of" not in _notes(exported)
    found = _run(format, path, {"ids": batches[1][:3]})["output"]
    with torch.no_grad():
        expected = model(batches[1][:3])
    assert found.dtype == expected.dtype
    # Some roundings of the type: not all runtimes compute in it.
    close = 8 * torch.finfo(dtype).eps * float(expected.float().abs().max())
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=close)


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_convolutions_and_norms_in_float16(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / f"model{SUFFIXES[format]}"
    exported = sr.export(Residual().half(), path, [x.half() for x in _images()], format=format)
    assert exported.max_error < 4 * torch.finfo(torch.float16).eps
    assert "batches of" not in _notes(exported)


@pytest.mark.slow
def test_a_type_that_onnxruntime_does_not_take_is_told(tmp_path: Path) -> None:
    model, batches = nn.Linear(4, 2).bfloat16(), [torch.ones(3, 4, dtype=torch.bfloat16)]
    with pytest.raises(sr.ExportError, match=r"Linear.*half precision.*model.float\(\).*format='torch'"):
        sr.export(model, tmp_path / "model.onnx", batches)
    assert sr.export(model, tmp_path / "model.pt2", batches, format="torch").max_error == 0


@pytest.mark.slow
def test_float64_convolutions_which_onnxruntime_lacks_are_told(tmp_path: Path) -> None:
    model, batches = nn.Conv2d(3, 4, 3).double(), [x.double() for x in _images()]
    with pytest.raises(sr.ExportError, match=r"Conv2d.*float64 on a CPU: export model.float\(\)"):
        sr.export(model, tmp_path / "model.onnx", batches)


def test_whole_numbers_of_numpy_are_taken(tmp_path: Path) -> None:
    exported = sr.export(
        nn.Linear(24, 8),
        tmp_path / "model.pt2",
        [torch.ones(4, 24)],
        format="torch",
        batch=np.int64(4),  # type: ignore[arg-type]
        threads=np.int64(1),  # type: ignore[arg-type]
    )
    assert (type(exported.batch), exported.batch, type(exported.threads)) == (int, 4, int)


def test_threads_that_export_take_turns(tmp_path: Path) -> None:
    def export(name: str) -> float:
        return sr.export(nn.Linear(24, 8), tmp_path / name, [torch.ones(4, 24)], format="torch").max_error

    output = sys.stdout, sys.stderr
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(export, ("same.pt2", "same.pt2", "other.pt2"))) == [0, 0, 0]
    assert (sys.stdout, sys.stderr) == output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pt2", "same.pt2"]


class Counter(nn.Module):
    """A buffer that every forward changes, and that outputs may depend on."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.linear, self.reads = nn.Linear(4, 3), reads

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.linear(x) * (self.count if self.reads else 1)


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_a_model_that_keeps_state_is_refused_where_its_outputs_depend_on_it(
    format: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{SUFFIXES[format]}"
    with pytest.raises(sr.ExportError, match=r"Counter keeps state.*output differs by \S+ of its.*; make"):
        sr.export(Counter(reads=True), path, [torch.ones(10, 4)], format=format)
    assert list(tmp_path.iterdir()) == []
    model = Counter(reads=False)
    assert sr.export(model, path, [torch.ones(10, 4)], format=format).max_error < 1e-5
    assert float(model.count) == 0


def test_both_parts_of_complex_outputs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x)

    path, batches = tmp_path / "model.pt2", [torch.randn(10, 6)]
    assert sr.export(Spectrum(), path, batches, format="torch").max_error == 0
    row = seams.FORMATS["torch"]
    seams.change_format(
        monkeypatch,
        "torch",
        open=lambda *args: lambda batch: lambda: [tensor.conj() for tensor in row.open(*args)(batch)()],
    )
    with pytest.raises(sr.ExportError, match=r"output differs by"):
        sr.export(Spectrum(), path, batches, format="torch")


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_outputs_whose_length_depends_on_values(format: str, tmp_path: Path) -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    path = tmp_path / f"model{SUFFIXES[format]}"
    # The first sample has none.
    x = torch.tensor([[-1.0, -2.0], [3.0, -4.0], [5.0, 6.0]])
    assert sr.export(Positive(), path, [x], format=format).max_error == 0
    assert torch.equal(_run(format, path, {"x": x})["output"], torch.tensor([3.0, 5.0, 6.0]))


@needs_openvino
class TestOpenvino:
    @pytest.mark.slow
    def test_files_say_who_wrote_them_and_nothing_of_the_machine(
        self, cnn_result: sr.Result, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.xml"
        cnn_result.export(path, format="openvino")
        openvino = seams.import_package("openvino", extra="openvino", what="this test")
        model = openvino.Core().read_model(path)
        assert model.get_rt_info(["slimrank", "version"]).astype(str) == sr.__version__
        (value,) = model.inputs
        assert (value.names, str(value.partial_shape)) == ({"x"}, "[?,1,8,8]")
        for place in (str(Path(__file__).parent), sys.prefix):
            assert place.encode() not in path.read_bytes()

    def test_weights_stay_float32(self, nets: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "model.xml"
        sr.export(nn.Linear(24, 8), path, nets.noise(24), format="openvino")
        assert path.with_suffix(".bin").stat().st_size >= 4 * 24 * 8

    @pytest.mark.slow
    def test_threads_precision_and_hint_reach_the_runtime(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        openvino = seams.import_package("openvino", extra="openvino", what="this test")
        compiled = []
        plain = openvino.Core.compile_model

        def watched(*args: object, **options: object) -> object:
            compiled.append(plain(*args, **options))
            return compiled[-1]

        monkeypatch.setattr(openvino.Core, "compile_model", watched)
        sr.export(nn.Linear(24, 8), tmp_path / "model.xml", nets.noise(24), format="openvino", threads=2)
        assert compiled
        for model in compiled:
            assert model.get_property("INFERENCE_NUM_THREADS") == 2
            assert model.get_property("NUM_STREAMS") == 1
            assert model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
            assert str(model.get_property("PERFORMANCE_HINT")).endswith("LATENCY")

    @pytest.mark.slow
    @pytest.mark.parametrize("build", [Residual, Vit])
    def test_networks_that_were_never_compressed(self, build: type[nn.Module], tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, path = build(), tmp_path / "model.xml"
        exported = sr.export(model, path, _images(), format="openvino", likelihood="categorical")
        assert (exported.max_error < 1e-5, exported.agreement) == (True, 1.0)
        assert [note for note in exported.notes if "spread" not in note.text] == []
        images = _images()[1][:4]
        found = _run_openvino(path, {"image": images})["output"]
        torch.testing.assert_close(found, model.eval()(images), rtol=1e-4, atol=1e-5)

    def test_a_batch_that_cannot_be_free_is_fixed_and_told(self, nets: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "model.xml"
        exported = sr.export(FixedBatch(), path, nets.noise(24), format="openvino", batch=3)
        assert "batch: the file takes batches of 3 only" in _notes(exported)
        with pytest.raises(RuntimeError, match="shape"):
            _run_openvino(path, {"x": torch.zeros(2, 24)})
        assert _run_openvino(path, {"x": torch.zeros(3, 24)})["output"].shape == (3, 6)

    @pytest.mark.slow
    def test_an_operation_that_it_turns_into_a_wrong_one_is_named(self, tmp_path: Path) -> None:
        # With as many tokens as channels of a head, this release takes the one for the other.
        config = transformers.GPTNeoXConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
        )
        model, path = transformers.GPTNeoXForCausalLM(config).eval(), tmp_path / "model.xml"
        batches = [{"input_ids": torch.randint(50, (4, 16))}]
        exported = sr.export(model, path, batches, format="openvino", outputs="logits")
        assert "OpenVINO fails on aten.linear.default in module gpt_neox.layers.0." in _notes(exported)
        assert "Incompatible MatMul matrix dimension" in _notes(exported)

    @pytest.mark.slow
    def test_a_missing_operation_is_named_with_its_module(self, nets: ModuleType, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(24, 4), Singular())
        with pytest.raises(
            sr.ExportError, match=r"OpenVINO has no translation of aten\.\S*svd\S* in module 1 at .*; take"
        ):
            sr.export(model, tmp_path / "model.xml", nets.noise(24), format="openvino")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_a_file_that_answers_otherwise_replaces_nothing(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = seams.FORMATS["openvino"]

        def write(program: object, path: Path) -> object:
            lowered = row.write(program, path)  # type: ignore[arg-type]
            weights = path.with_suffix(".bin")
            values = np.fromfile(weights, dtype=np.float32)
            # The last layer's weights come last.
            values[-40:] *= 1.5
            values.tofile(weights)
            return lowered

        seams.change_format(monkeypatch, "openvino", write=write)
        path = tmp_path / "model.xml"
        path.write_text("earlier graph")
        path.with_suffix(".bin").write_text("earlier weights")
        with pytest.raises(
            sr.ExportError,
            match=r"output differs by .*first inner value that differs is aten\S* in module 4 \(",
        ):
            sr.export(nets.mlp(), path, nets.noise(24), format="openvino")
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
            "model.xml": "earlier graph",
            "model.bin": "earlier weights",
        }

    def test_both_files_are_replaced(self, nets: ModuleType, tmp_path: Path) -> None:
        path, model = tmp_path / "model.xml", nn.Linear(24, 8)
        for file in _files(path):
            file.write_text("earlier")
        sr.export(model, path, nets.noise(24), format="openvino")
        assert set(tmp_path.iterdir()) == _files(path)
        (x,) = nets.noise(24, n=1)
        torch.testing.assert_close(_run_openvino(path, {"input": x})["output"], model(x))

    def test_a_folder_in_the_place_of_the_weights_is_kept(self, nets: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "model.bin").mkdir()
        with pytest.raises(sr.FileError, match=r"model\.bin is a folder; give another name"):
            sr.export(nn.Linear(24, 8), tmp_path / "model.xml", nets.noise(24), format="openvino")
        assert [(file.name, file.is_dir()) for file in tmp_path.iterdir()] == [("model.bin", True)]

    def test_a_full_disk_is_told(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        openvino = seams.import_package("openvino", extra="openvino", what="this test")

        def fail(_model: object, path: Path, **_options: object) -> None:
            path.write_text("half of it")
            raise RuntimeError("basic_ios::clear: iostream error")

        monkeypatch.setattr(openvino, "save_model", fail)
        with pytest.raises(sr.FileError, match=r"OpenVINO: .*iostream error.*give a folder with room"):
            sr.export(nn.Linear(24, 8), tmp_path / "model.xml", nets.noise(24), format="openvino")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_half_precision_that_python_cannot_hand_over_is_told(self, tmp_path: Path) -> None:
        class Rounded(nn.Module):
            def forward(self, input: Tensor) -> Tensor:
                return input.float() * 2

        model, batches = Rounded(), [torch.ones(3, 4, dtype=torch.bfloat16)]
        with pytest.raises(sr.ExportError, match=r"input is torch.bfloat16.*model.float\(\).*format='torch'"):
            sr.export(model, tmp_path / "model.xml", batches, format="openvino")

    def test_inputs_that_nothing_reads_keep_their_place(self, tmp_path: Path) -> None:
        class Second(nn.Module):
            def forward(self, ids: Tensor, x: Tensor, mask: Tensor) -> Tensor:
                return x * 2

        path = tmp_path / "model.xml"
        batches = [(torch.ones(6, 2, dtype=torch.long), torch.randn(6, 4), torch.ones(6))]
        sr.export(Second(), path, batches, format="openvino")
        openvino = seams.import_package("openvino", extra="openvino", what="this test")
        inputs = [
            (value.any_name, str(value.partial_shape), value.get_element_type().get_type_name())
            for value in openvino.Core().read_model(path).inputs
        ]
        assert inputs == [("ids", "[?,2]", "i64"), ("x", "[?,4]", "f32"), ("mask", "[?]", "f32")]

    @pytest.mark.slow
    def test_nothing_is_printed_and_nothing_reported(self, tmp_path: Path) -> None:
        code = f"""
import sys, slimrank, torch
batches = [torch.randn(8, 4)]
slimrank.export(torch.nn.Linear(4, 2), {str(tmp_path / "model.xml")!r}, batches, format="openvino")
reporting = [name for name in sys.modules if name.partition(".")[0] == "openvino_telemetry"]
assert reporting == [], reporting
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


class Separable(nn.Module):
    """Convolutions of one row and one column with padding "same", as spatial SVD makes them, and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.column = nn.Conv2d(3, 8, (5, 1), padding="same")
        self.row = nn.Conv2d(8, 8, (1, 5), padding="same")
        self.head = nn.Linear(8, 6)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.row(self.column(image).relu()).relu().mean((2, 3)))


class Everything(nn.Module):
    """A dict of outputs of several kinds, of words and a factor given by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, words: Tensor, *, factor: Tensor) -> dict[str, object]:
        states = self.encoder(self.embed(words))
        logits = self.head(states.mean(1)) * factor
        return {"logits": logits, "best": logits.argmax(1), "states": (states, states[:, 0]), "words": words}


@needs_executorch
class TestExecutorch:
    def _export(self, model: nn.Module, path: Path, batches: object, **options: object) -> sr.Exported:
        return sr.export(model, path, batches, format="executorch", **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("build", [Residual, Separable, Vit])
    def test_networks_that_were_never_compressed(self, build: type[nn.Module], tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, path = build(), tmp_path / "model.pte"
        exported = self._export(model, path, _images(), likelihood="categorical")
        assert (exported.max_error < 1e-5, exported.agreement) == (True, 1.0)
        assert _unusual(exported) == []
        assert "batch: the file takes 1 to 8 samples at a time" in _notes(exported)
        for size in (1, 2, 5, 8):
            images = _images()[1][:size]
            found = _run_executorch(path, {"image": images})["output"]
            torch.testing.assert_close(found, model.eval()(images), rtol=1e-4, atol=1e-5)
        for place in (str(Path(__file__).parent), sys.prefix):
            assert place.encode() not in path.read_bytes()

    def test_weights_and_images_with_channels_last(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = Separable().to(memory_format=torch.channels_last)
        images = [batch.to(memory_format=torch.channels_last) for batch in _images()]
        exported = self._export(model, tmp_path / "model.pte", images)
        assert exported.max_error < 1e-5
        assert model.column.weight.is_contiguous(memory_format=torch.channels_last)
        found = _run_executorch(exported.path, {"image": images[1][:3].contiguous()})["output"]
        torch.testing.assert_close(found, model(images[1][:3]), rtol=1e-4, atol=1e-5)

    def test_words_keywords_and_outputs_of_all_kinds(self, nets: ModuleType, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model, path = Everything().eval(), tmp_path / "model.pte"
        batches = [{"words": ids, "factor": torch.rand(len(ids), 1) + 1} for ids in nets.tokens(size=6)]
        exported = self._export(model, path, batches, outputs="logits", likelihood="categorical")
        assert exported.agreement == 1.0
        inputs = {"words": nets.tokens(size=3, seed=5)[0], "factor": torch.rand(3, 1)}
        assert inputs["words"].dtype == torch.int64
        found, expected = _run_executorch(path, inputs), model(**inputs)
        assert list(found) == ["logits", "best", "states_0", "states_1", "output_words"]
        for name, tensor in (("logits", expected["logits"]), ("states_1", expected["states"][1])):
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(found["best"], expected["best"])
        assert torch.equal(found["output_words"], inputs["words"])

    def test_a_split_model_and_what_runs_where(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        study = sr.study(Separable(), _images(4), progress=False)
        result = study.apply(study.plan(macs=0.6))
        path = tmp_path / "model.pte"
        exported = result.export(path, format="executorch", batch=20)
        assert exported.max_error < 1e-5
        assert (exported.batch, "takes 1 to 20 samples" in _notes(exported)) == (20, True)
        assert "executorch: 1 operation runs outside XNNPACK: aten::mean (1)" in _notes(exported)
        assert _run_executorch(path, {"image": torch.zeros(20, 3, 8, 8)})["output"].shape == (20, 6)
        with pytest.raises(RuntimeError, match="set_inputs"):
            _run_executorch(path, {"image": torch.zeros(21, 3, 8, 8)})

    def test_operations_outside_xnnpack_are_counted(self, tmp_path: Path) -> None:
        class Sums(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x + 1).cumsum(1).cumsum(1)

        path = tmp_path / "model.pte"
        exported = self._export(Sums(), path, [torch.randn(6, 5)])
        assert re.search(
            r"executorch: \d operations run outside XNNPACK: aten::cumsum \(2\)", _notes(exported)
        )

    def test_threads_reach_the_runtime(self, nets: ModuleType, tmp_path: Path) -> None:
        bindings = _executorch("extension.pybindings.portable_lib")
        for threads in (2, 1):
            self._export(nn.Linear(24, 8), tmp_path / "model.pte", nets.noise(24), threads=threads)
            assert bindings._threadpool_get_thread_count() == threads

    def test_a_batch_that_cannot_be_free_is_fixed_and_told(self, nets: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "model.pte"
        exported = self._export(FixedBatch(), path, nets.noise(24), batch=3)
        assert "batch: the file takes batches of 3 only" in _notes(exported)
        assert "samples at a time" not in _notes(exported)
        assert _run_executorch(path, {"x": torch.zeros(3, 24)})["output"].shape == (3, 6)

    @pytest.mark.parametrize(
        ("operation", "message"),
        [
            (Singular(), r"no translation of aten\.\S*svd\S* in module 1 at test_export.py:\d+ .*; take"),
            (Sorted(), r"no kernel for aten\.sort\S* in module 1 at test_export.py:\d+ .*; take"),
        ],
    )
    def test_a_missing_operation_is_named_with_its_module(
        self, operation: nn.Module, message: str, nets: ModuleType, tmp_path: Path
    ) -> None:
        model = nn.Sequential(nn.Linear(24, 4), operation)
        with pytest.raises(sr.ExportError, match=f"ExecuTorch has {message}"):
            self._export(model, tmp_path / "model.pte", nets.noise(24))
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_answers_otherwise_replaces_nothing(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row, model = seams.FORMATS["executorch"], nets.mlp()

        def write(program: object, path: Path) -> object:
            lowered = row.write(program, path)  # type: ignore[arg-type]
            weights = model[4].bias.detach().numpy().tobytes()
            assert path.read_bytes().count(weights) == 1
            path.write_bytes(
                path.read_bytes().replace(weights, np.full(len(weights) // 4, 3.0, "f4").tobytes())
            )
            return lowered

        seams.change_format(monkeypatch, "executorch", write=write)
        path = tmp_path / "model.pte"
        path.write_text("earlier")
        with pytest.raises(
            sr.ExportError, match=r"output differs by .*no inner value differs when it is made"
        ):
            self._export(model, path, nets.noise(24))
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"model.pte": "earlier"}

    def test_the_first_value_that_differs_is_named(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = seams.FORMATS["executorch"]
        assert row.open_inside is not None

        def wrong(path: Path, program: object, names: Sequence[str]) -> tuple[tuple[str, ...], object]:
            found, bind = row.open_inside(path, program, names)  # type: ignore[arg-type, misc]
            assert len(found) > 3
            return found, lambda batch: lambda: [tensor * 1.5 for tensor in bind(batch)()]

        seams.change_format(
            monkeypatch,
            "executorch",
            open=lambda *args: lambda batch: lambda: [1.5 * tensor for tensor in row.open(*args)(batch)()],
            open_inside=wrong,
        )
        with pytest.raises(
            sr.ExportError, match=r"first inner value that differs is aten\S* in module 0 \(differs"
        ):
            self._export(nets.mlp(), tmp_path / "model.pte", nets.noise(24))

    def test_what_fails_while_it_runs_is_told(self, tmp_path: Path) -> None:
        # ExecuTorch has a kernel of this name, which does not take three dimensions.
        with pytest.raises(
            sr.ExportError, match=r"ExecuTorch fails on a batch of \d: .*printed the reason; take"
        ):
            self._export(nn.Conv3d(2, 4, 3), tmp_path / "model.pte", [torch.randn(6, 2, 4, 4, 4)])
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_is_none_is_refused(
        self, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = seams.FORMATS["executorch"]

        def write(program: object, path: Path) -> object:
            lowered = row.write(program, path)  # type: ignore[arg-type]
            path.write_bytes(b"no program at all")
            return lowered

        seams.change_format(monkeypatch, "executorch", write=write)
        with pytest.raises(sr.ExportError, match=r"ExecuTorch \d\S+ refuses the file of Linear: .*; take"):
            self._export(nn.Linear(24, 8), tmp_path / "model.pte", nets.noise(24))
        assert list(tmp_path.iterdir()) == []

    def test_the_example_of_the_page_prints_what_the_page_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = (Path(__file__).parents[2] / "docs" / "howto" / "phone.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
        monkeypatch.chdir(tmp_path)
        self._export(demo.build(), Path("model.pte"), demo.calibration_batches()[:1])
        capsys.readouterr()
        exec(compile(code, "docs/howto/phone.md", "exec"), {})
        said = capsys.readouterr().out
        assert len(said.splitlines()) == 3
        assert f"```\n{said}```" in page

    def test_libraries_that_it_brings_keep_quiet(self, tmp_path: Path) -> None:
        code = f"""
import slimrank, torch
batches = [torch.randn(8, 4)]
slimrank.export(torch.nn.Linear(4, 2), {str(tmp_path / "model.pte")!r}, batches, format="executorch")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, _own_words(done.stderr)) == ("", "")


def test_a_missing_executorch_gives_the_line_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(
        ImportError, match=r"needs executorch.*pip install 'slimrank\[executorch\]'"
    ) as caught:
        sr.export(nn.Linear(4, 2), tmp_path / "model.pte", [torch.zeros(3, 4)], format="executorch")
    assert isinstance(caught.value, sr.MissingPackageError)


def test_a_missing_openvino_gives_the_line_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"needs openvino.*pip install 'slimrank\[openvino\]'") as caught:
        sr.export(nn.Linear(4, 2), tmp_path / "model.xml", [torch.zeros(3, 4)], format="openvino")
    assert isinstance(caught.value, sr.MissingPackageError)


class TestResultsKnowTheirData:
    def test_copies_share_them(self, cnn_result: sr.Result, tmp_path: Path) -> None:
        exported = copy.deepcopy(cnn_result).export(tmp_path / "model.pt2", format="torch")
        assert exported.before_ms is not None

    def test_a_pickled_result_needs_batches(
        self, cnn_result: sr.Result, nets: ModuleType, tmp_path: Path
    ) -> None:
        restored: sr.Result = pickle.loads(pickle.dumps(cnn_result))
        with pytest.raises(sr.BatchesError, match="pass batches="):
            restored.export(tmp_path / "model.pt2", format="torch")
        exported = restored.export(tmp_path / "model.pt2", format="torch", batches=nets.noise(1, 8, 8))
        assert exported.before_ms is None

    def test_a_result_without_data_needs_batches(
        self, cnn_study: sr.Study, nets: ModuleType, tmp_path: Path
    ) -> None:
        result = sr.apply(nets.cnn(), cnn_study.plan(macs=0.8), progress=False)
        with pytest.raises(sr.BatchesError, match="pass batches="):
            result.export(tmp_path / "model.pt2", format="torch")

    def test_other_batches_and_their_inputs(
        self, cnn_result: sr.Result, nets: ModuleType, tmp_path: Path
    ) -> None:
        labelled = [(batch, torch.zeros(len(batch))) for batch in nets.noise(1, 8, 8, seed=4)]
        path = tmp_path / "model.pt2"
        exported = cnn_result.export(path, format="torch", batches=labelled, inputs=lambda b: b[0])
        assert exported.max_error < 1e-5
        with pytest.raises(sr.OptionError, match="inputs= goes with batches="):
            cnn_result.export(path, format="torch", inputs=lambda b: b[0])

    @pytest.mark.slow
    def test_as_a_model(self, cnn_result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        batches, path = nets.noise(1, 8, 8), tmp_path / "model.pt2"
        assert sr.export(cnn_result, path, batches, format="torch").before_ms is not None
        with pytest.raises(sr.OptionError, match="brings its own"):
            sr.export(cnn_result, path, batches, format="torch", original=nets.cnn())

    @pytest.mark.slow
    def test_of_several_steps(self, cnn_result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
        study = sr.study(cnn_result, nets.noise(1, 8, 8), progress=False)
        exported = study.apply(study.plan(macs=0.8)).export(tmp_path / "model.pt2", format="torch")
        assert "before is the model that the last step started from" in _notes(exported)


@pytest.fixture
def net_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory holds export_net.py, for references."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    nets_file = Path(__file__).parent / "nets.py"
    Path("export_net.py").write_text(
        f"{nets_file.read_text()}\ndef batches():\n    return noise(1, 8, 8)\n", encoding="utf-8"
    )
    monkeypatch.delitem(sys.modules, "export_net", raising=False)


class TestCommand:
    @pytest.fixture(autouse=True)
    def saved(self, net_file: None, cnn_result: sr.Result) -> None:
        cnn_result.save("small")

    def _run(self, *args: str, code: int = 0) -> str:
        done = CliRunner().invoke(seams.cli, ["export", *args], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.stderr

    @pytest.mark.slow
    def test_a_saved_model_beside_the_original(self) -> None:
        said = self._run(
            "small",
            "small.onnx",
            "--model",
            "export_net.py:cnn",
            "--batches",
            "export_net.py:batches",
            "--json",
        )
        facts = json.loads(said)
        assert facts["path"] == "small.onnx"
        assert facts["bytes"] == Path("small.onnx").stat().st_size
        assert facts["before_ms"] > 0
        assert facts["max_error"] < 1e-5

    def test_a_model_as_it_is(self) -> None:
        said = self._run(
            "export_net.py:cnn",
            "net.pt2",
            "--batches",
            "export_net.py:batches",
            "--format",
            "torch",
            "--batch",
            "2",
        )
        assert "net.pt2 (torch)" in said
        assert "batch 2, 1 thread" in said

    def test_a_saved_model_needs_its_original(self) -> None:
        said = self._run("small", "small.onnx", "--batches", "export_net.py:batches", code=2)
        assert "--model" in said


class TestCompressCommand:
    _COMPRESS = ("export_net.py:cnn", "export_net.py:batches", "--out", "small", "--quiet")
    _FAST = ("--no-compete", "--methods", "weight_svd")

    @pytest.fixture(autouse=True)
    def folder(self, net_file: None) -> None:
        Path("folder.onnx").mkdir()

    def _run(self, *args: str, code: int = 0) -> str:
        done = CliRunner().invoke(seams.cli, ["compress", *self._COMPRESS, *args], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else " ".join(done.stderr.split())

    @pytest.mark.slow
    @pytest.mark.parametrize("format", SUFFIXES)
    def test_the_model_is_saved_and_exported(self, format: str, nets: ModuleType) -> None:
        # In the directory of the model, which is not there before.
        path = Path("small") / f"model{SUFFIXES[format]}"
        # The ending says the format.
        options = ("--likelihood", "categorical", "--export", str(path))
        said = self._run("--macs", "0.8", *self._FAST, *options)
        size = sum(file.stat().st_size for file in _files(path))
        assert f"{path} ({format}): {size / 1e6:,.3f} MB, original " in said
        for words in ("Saved in small", "largest relative error", "equal classes", "original ", "ratio "):
            assert words in said
        model = sr.load("small", model=nets.cnn())
        batch = nets.noise(1, 8, 8)[0]
        # As many as files of every format take.
        (found,) = _run(format, path, {"x": batch[:8]}).values()
        torch.testing.assert_close(found, model(batch[:8]), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_the_numbers_stand_in_json(self) -> None:
        facts = json.loads(self._run("--macs", "0.8", *self._FAST, "--export", "small.onnx", "--json"))
        exported = facts["exported"]
        assert exported["path"] == "small.onnx"
        assert exported["bytes"] == Path("small.onnx").stat().st_size
        assert exported["max_error"] < 1e-5
        assert min(exported["before_ms"], exported["after_ms"]) > 0
        assert facts["model"] == "small"

    @pytest.mark.slow
    def test_the_smallest_within_a_drop_is_exported(self) -> None:
        said = self._run("--max-drop", "0.5", "--methods", "weight_svd", "--export", "small.onnx")
        assert "small.onnx (onnx)" in said

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--export", "none/m.onnx"), "there is no folder none; make it first"),
            (("--export", "folder.onnx"), "is a folder; give the path of a file"),
            (("--export", "m.net"), "files of format='onnx' end in .onnx"),
            (("--export", "m.pt2", "--export-format", "onnx"), "files of format='onnx' end in .onnx"),
            (("--export", "m.onnx", "--export-format", "onxx"), "did you mean 'onnx'"),
            (("--export-format", "torch"), "--export-format: it is about the file of --export FILE"),
            (("--export", "small.onnx", "--out", "small.onnx"), "give another path"),
            (("--export", "a.onnx", "--out", "a.onnx/small"), "there is no folder a.onnx"),
        ],
    )
    def test_what_would_fail_late_is_refused_before_the_work(
        self, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seams.forbid_copies(monkeypatch)
        there = sorted(Path().iterdir())
        assert message in self._run("--macs", "0.8", *options, code=2)
        assert sorted(Path().iterdir()) == there

    def test_a_missing_package_is_told_before_the_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seams.forbid_copies(monkeypatch)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        said = self._run("--macs", "0.8", "--export", "m.onnx", code=2)
        assert "needs onnxruntime, which" in said
        assert "pip install 'slimrank[export]'" in said
        assert not Path("small").exists()

    def test_a_folder_without_rights_is_refused_before_the_work(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_rights(**_: object) -> str:
            raise PermissionError(13, "Permission denied")

        # As a user without rights sees it: for root, who may run this test, there is no such folder.
        seams.forbid_copies(monkeypatch)
        monkeypatch.setattr(tempfile, "mkdtemp", no_rights)
        assert "Permission denied" in self._run("--macs", "0.8", "--export", "m.onnx", code=2)

    def test_a_model_that_cannot_be_exported_is_saved_all_the_same(
        self, nets: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(*_: object) -> None:
            raise sr.ExportError("operator none: not there; try another format")

        seams.change_format(monkeypatch, "onnx", write=write)
        said = self._run("--macs", "0.8", *self._FAST, "--export", "m.onnx", code=2)
        assert "the model is saved in small, but m.onnx was not written: " in said
        assert "operator none" in said
        assert not Path("m.onnx").exists()
        assert isinstance(sr.load("small", model=nets.cnn()), nn.Module)
