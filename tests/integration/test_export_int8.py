# SPDX-License-Identifier: Apache-2.0
"""int8 files: in every format that has them, read by hand; layers kept in float; what is refused."""

import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr

HAS_NNCF = all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))
ONNX = [("onnx", "int8"), ("onnx", "int8_weights")]
BOTH = [*ONNX, *([("openvino", "int8"), ("openvino", "int8_weights")] if HAS_NNCF else [])]
needs_nncf = pytest.mark.skipif(not HAS_NNCF, reason="openvino or nncf is not installed")


@pytest.fixture(autouse=True)
def quick_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed for a moment only: these tests do not look at how long they take."""
    seams.time_shortly(monkeypatch)


class Small(nn.Module):
    """A convolution, a pair, a shortcut, two linear layers; classes out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.pair = nn.Sequential(
            nn.Conv2d(width, 8, (3, 1), padding=(1, 0), bias=False),
            nn.Conv2d(8, width, (1, 3), padding=(0, 1)),
        )
        self.mix = nn.Linear(width, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = (x + self.pair(x)).relu().mean((2, 3))
        return self.head(self.mix(x).relu())


class Uneven(nn.Module):
    """One feature is so large that one scale for all leaves nothing of the others, which alone matter."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(24, 16)
        self.last = nn.Linear(16, 4)
        with torch.no_grad():
            self.mix.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones(24)
        scale[0] = 1e5
        return self.last(self.mix(x * scale).relu())


class Classes(nn.Module):
    """Whole numbers out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(-1)


class Masked(nn.Module):
    """Some outputs are -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(24, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(x).relu()).masked_fill(torch.arange(4) < 2, float("-inf"))


class Transposed(nn.Module):
    """A layer of which onnxruntime has no int8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.conv(x).relu())


def _images(n_batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Not as much of both signs: photographs are not, either.
    return [torch.randn(16, 3, 8, 8, generator=generator).abs() for _ in range(n_batches)]


def _small() -> nn.Module:
    torch.manual_seed(0)
    model = Small().eval()
    model.stem[1].running_var.uniform_(0.5, 2)
    return model


def _uneven() -> nn.Module:
    torch.manual_seed(0)
    return Uneven().eval()


def _rows(n_batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 24, generator=generator) for _ in range(n_batches)]


def _notes(exported: sr.Exported) -> str:
    return "\n".join(str(note) for note in exported.notes)


def _int8(exported: sr.Exported) -> sr.Int8:
    assert exported.int8 is not None
    return exported.int8


def _openvino() -> object:
    return seams.import_package("openvino", extra="openvino", what="this test")


def _run(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """The single output of a file, read without the library."""
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(["output"], given)
    else:
        compiled = _openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # type: ignore[attr-defined]
        found = compiled(given)["output"]
    return torch.from_numpy(np.array(found))


def _products_in_int8(path: Path) -> int:
    """Operators that the runtime itself says to run in int8, or whose weights it reads so."""
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
        # Operators of this machine are made at the last level, which it warns of.
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = ("QLinearConv", "QGemm", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
        return sum(node.op_type in names for node in onnx.load(options.optimized_model_filepath).graph.node)
    model = _openvino().Core().read_model(path)  # type: ignore[attr-defined]
    return sum(
        node.get_type_name() == "Constant"
        and node.get_element_type().get_type_name() in ("i8", "u8")
        and len(node.get_output_shape(0)) > 1
        and int(np.prod(node.get_output_shape(0))) > 32
        for node in model.get_ops()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("format", "precision"), BOTH)
def test_an_int8_file_answers_like_the_model(
    format: str,
    precision: str,
    tmp_path: Path,
    snapshot: Callable[[nn.Module], object],
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = _small()
    before, handlers = snapshot(model), list(logging.root.handlers)
    path = tmp_path / f"model{seams.FORMATS[format].suffix}"
    exported = sr.export(model, path, _images(), format=format, quantize=precision, original=model)  # type: ignore[arg-type]
    assert snapshot(model) == before
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")
    files = {path, path.with_suffix(".bin")} if format == "openvino" else {path}
    assert set(tmp_path.iterdir()) == files
    assert exported.bytes == sum(file.stat().st_size for file in files)
    int8 = _int8(exported)
    assert int8.precision == precision
    assert 25 < int8.noise_db < 90
    assert 0 < exported.max_error < 0.1
    assert exported.before_ms is not None
    assert int8.float_ms > 0
    assert "too few" not in _notes(exported)
    linear, convs = {"mix", "head"}, {"stem.0", "pair.0", "pair.1"}
    is_linear = (format, precision) == ("onnx", "int8_weights")
    assert set(int8.layers) == (linear if is_linear else linear | convs)
    assert set(int8.left) == (convs if is_linear else set())
    assert _products_in_int8(path) == len(int8.layers)
    for size in (1, 3):
        image = _images(1)[0][:size] * 0.9
        with torch.no_grad():
            expected = model(image)
        found = _run(path, {"image": image})
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.1


@pytest.mark.slow
def test_names_sizes_and_origin_are_those_of_the_float_file(tmp_path: Path) -> None:
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    sr.export(_small(), plain, _images())
    sr.export(_small(), small, _images(), quantize="int8")
    models = [onnx.load(path) for path in (plain, small)]

    def told(model: onnx.ModelProto) -> object:
        values = [*model.graph.input, *model.graph.output]
        sizes = [
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
        ]
        props = {entry.key: entry.value for entry in model.metadata_props}
        return [value.name for value in values], sizes, props, model.producer_name, model.producer_version

    assert told(models[0]) == told(models[1])
    assert small.stat().st_size < plain.stat().st_size


def _largest_weights(path: Path) -> dict[str, int]:
    """The largest size of a number in each value that a file stores in int8, zero points left out."""
    stored = [
        value for value in onnx.load(path).graph.initializer if value.data_type == onnx.TensorProto.INT8
    ]
    arrays = {value.name: onnx.numpy_helper.to_array(value).astype(int) for value in stored}
    return {name: int(np.abs(array).max()) for name, array in arrays.items() if array.ndim > 1}


# Processor, whether it has VNNI, the largest size of a weight.
_CPUS = [("x86_64", False, 64), ("AMD64", False, 64), ("x86_64", True, 127), ("aarch64", False, 127)]


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "has_vnni", "largest"), _CPUS)
@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_sums_of_two_products_stay_within_16_bits_where_there_is_no_vnni(
    precision: str,
    machine: str,
    has_vnni: bool,
    largest: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seams.pretend_cpu(monkeypatch, machine, has_vnni=has_vnni)
    path, options = tmp_path / "m.onnx", {"quantize": precision, "max_quant_drop": float("inf")}
    exported = sr.export(_small(), path, _images(), **options)  # type: ignore[arg-type]
    found = _largest_weights(path)
    assert len(found) == len(_int8(exported).layers)
    assert set(found.values()) == {largest}
    # Two products of a weight and the largest activation, in 16 bits with a sign.
    assert (2 * 255 * largest < 2**15) is (largest == 64)
    told = "this machine has no VNNI: weights have 7 bits, so that sums do not overflow"
    assert (told in _notes(exported)) is (largest == 64)


@pytest.mark.slow
@needs_nncf
@pytest.mark.parametrize(("has_vnni", "n_reduced"), [(False, 5), (True, 1)])
def test_openvino_halves_all_weights_where_there_is_no_vnni(
    has_vnni: bool, n_reduced: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.pretend_cpu(monkeypatch, "x86_64", has_vnni=has_vnni)
    path, options = tmp_path / "m.xml", {"format": "openvino", "quantize": "int8"}
    exported = sr.export(_small(), path, _images(), max_quant_drop=float("inf"), **options)  # type: ignore[arg-type]
    nodes = _openvino().Core().read_model(path).get_ops()  # type: ignore[attr-defined]
    stored = [node.get_data() for node in nodes if node.get_type_name() == "Constant"]
    largest = [np.abs(data.astype(int)).max() for data in stored if data.dtype == np.int8 and data.ndim > 1]
    assert len(largest) == 5
    # With VNNI nncf does so to the first convolution alone.
    assert sum(size <= 64 for size in largest) == n_reduced
    assert ("no VNNI: weights have 7 bits" in _notes(exported)) is not has_vnni


@pytest.mark.slow
def test_tables_keep_8_bits_where_there_is_no_vnni(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.pretend_cpu(monkeypatch, "x86_64", has_vnni=False)
    torch.manual_seed(0)
    path, ids = tmp_path / "m.onnx", [torch.randint(0, 40, (8, 5)) for _ in range(4)]
    sr.export(Products().eval(), path, ids, quantize="int8_weights")
    model = onnx.load(path)
    stored = {value.name: onnx.numpy_helper.to_array(value).astype(int) for value in model.graph.initializer}
    (table,) = (stored[node.input[0]] for node in model.graph.node if node.op_type == "Gather")
    assert table.max() - table.min() > 250
    assert set(_largest_weights(path).values()) == {64}


@pytest.mark.slow
@needs_nncf
def test_nncf_neither_reports_nor_compiles(tmp_path: Path, python: Callable[..., object]) -> None:
    done = python(
        f"""
import sys, slimrank
from torch.utils import cpp_extension
cpp_extension.load = cpp_extension._jit_compile = None
model = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
slimrank.export(model, {str(tmp_path / "m.xml")!r}, [torch.randn(32, 24)], format="openvino", quantize="int8")
from unittest.mock import MagicMock
from nncf.telemetry.wrapper import telemetry
print(isinstance(telemetry, MagicMock), "openvino_telemetry" in sys.modules)
"""
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=needs_nncf)])
def test_a_layer_that_hurts_stays_in_float(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{seams.FORMATS[format].suffix}"
    options = {"format": format, "quantize": "int8"}
    with pytest.raises(sr.ExportError, match=r"leaves little.*worst layers are mix \(.* dB\), last"):
        sr.export(_uneven(), path, _rows(), **options)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
    any_file = sr.export(_uneven(), path, _rows(), max_quant_drop=float("inf"), **options)  # type: ignore[arg-type]
    assert _int8(any_file).noise_db < 6
    (warning,) = (note for note in any_file.notes if "little is left of the outputs: " in note.text)
    assert warning.is_warning
    assert "max_quant_drop=inf takes it all the same" in warning.text
    assert _int8(any_file).kept == ()
    kept = sr.export(_uneven(), path, _rows(), max_quant_drop=0.01, **options)  # type: ignore[arg-type]
    assert (_int8(kept).kept, _int8(kept).layers) == (("mix",), ("last",))
    divergence = _int8(kept).divergence
    assert divergence is not None
    assert divergence <= 0.01
    assert "kept in float, so that int8 adds at most 0.01 of divergence per sample: mix (" in _notes(kept)
    (x,) = _rows(1)
    with torch.no_grad():
        expected = _uneven()(x)
    torch.testing.assert_close(_run(path, {"x": x}), expected, rtol=0, atol=0.1)


@pytest.mark.slow
def test_a_drop_that_no_int8_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sr.ExportError, match=r"adds .* and more than max_quant_drop=0 as long as any layer"):
        sr.export(_uneven(), tmp_path / "m.onnx", _rows(), quantize="int8", max_quant_drop=0)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_whole_numbers_are_judged_by_those_that_are_equal(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(sr.ExportError, match=r"leaves little.*% of their values differ \(allowed 25%\)"):
        sr.export(Classes(_uneven()), path, _rows(), quantize="int8")
    assert not any(tmp_path.iterdir())
    kept = sr.export(Classes(_uneven()), path, _rows(), quantize="int8", max_quant_drop=0.2)
    assert _int8(kept).kept == ("model.mix",)
    assert _int8(kept).divergence is None
    assert "adds at most 0.2 as the share of whole numbers that differ: model.mix (" in _notes(kept)
    assert "outputs hold whole numbers only: " in _notes(kept)


@pytest.mark.slow
def test_a_model_with_infinite_outputs_is_judged_by_the_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    with pytest.raises(sr.ExportError, match=r"outputs 'output' of Masked hold inf or nan, so divergence"):
        sr.export(model, tmp_path / "m.onnx", _rows(), quantize="int8", max_quant_drop=0.1)
    assert not any(tmp_path.iterdir())
    exported = sr.export(model, tmp_path / "m.onnx", _rows(), quantize="int8")
    assert _int8(exported).divergence is None
    assert 20 < _int8(exported).noise_db < 90
    assert "outputs 'output' of the model itself hold inf or nan" in _notes(exported)


class Attending(nn.Module):
    """A layer is given a mask with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((3, 3), float("-inf")).triu(1)
        return self.last(self.layer(x.reshape(-1, 3, 8), src_mask=mask).mean(1))


@pytest.mark.slow
def test_layers_behind_a_mask_are_ranked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attending().eval()
    plain = _int8(sr.export(model, tmp_path / "m.onnx", _rows(), quantize="int8"))
    assert plain.divergence is not None
    drop = plain.divergence / 2
    exported = sr.export(model, tmp_path / "m.onnx", _rows(), quantize="int8", max_quant_drop=drop)
    assert _int8(exported).kept
    assert "(nan" not in _notes(exported)
    assert "inf dB" not in _notes(exported)


def test_threads_take_turns_from_the_first_import_on(tmp_path: Path) -> None:
    # While another export runs, not even what is refused at once goes on: it would put the output back.
    def refused() -> None:
        with pytest.raises(sr.UnknownNameError):
            sr.export(_uneven(), tmp_path / "m.onnx", _rows(1), quantize="int9")  # type: ignore[arg-type]

    thread = threading.Thread(target=refused)
    with seams.EXPORT_TURN:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.slow
def test_onnxruntime_does_not_report(tmp_path: Path, python: Callable[..., object]) -> None:
    done = python(
        f"""
import os, pathlib, time, slimrank
os.environ["HOME"] = {str(tmp_path)!r}
model = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
slimrank.export(model, {str(tmp_path / "m.onnx")!r}, [torch.randn(32, 24)])
time.sleep(1)
print("ORT_DISABLE_TELEMETRY" in os.environ, list(pathlib.Path({str(tmp_path)!r}).rglob("*onnxruntime*")))
"""
    )
    assert (done.stdout, done.stderr) == ("False []\n", "")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_operator_without_int8_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = sr.export(Transposed().eval(), tmp_path / "m.onnx", _images(), quantize="int8")
    assert (_int8(exported).layers, _int8(exported).left) == (("conv",), ("up",))
    assert "kept in float: 'up'; onnxruntime has no ConvTranspose in int8" in _notes(exported)


@pytest.mark.slow
def test_few_samples_judge_what_they_calibrate(tmp_path: Path) -> None:
    exported = sr.export(_small(), tmp_path / "m.onnx", [_images()[0][:10]], quantize="int8")
    assert "10 samples: too few to keep some for judging" in _notes(exported)


def test_slower_than_float_is_a_warning() -> None:
    fast, slow = (seams.Times(milliseconds=value, spread=0.1) for value in (1.0, 1.2))
    (note,) = seams.int8_timing_notes(fast, slow, "onnx", "int8", "a cure")
    assert note.is_warning
    assert note.text == "int8 gains no time here: 1.2 ms, and 1 ms in float; a cure"
    (note,) = seams.int8_timing_notes(fast, slow, "onnx", "int8_weights", "a cure")
    assert not note.is_warning
    assert seams.int8_timing_notes(slow, fast, "onnx", "int8", "a cure") == []


@pytest.mark.parametrize(
    ("precision", "n_layers", "n_float", "is_float32", "cure"),
    [
        ("int8", 4, 1, True, "narrow layers"),
        ("int8", 2, 3, True, "3 of 5 layers stay in float"),
        ("int8", 4, 0, False, r"export model\.float\(\)"),
        ("int8_weights", 4, 0, True, "take quantize='int8'"),
    ],
)
def test_the_cure_is_for_what_is_slow(
    precision: str, n_layers: int, n_float: int, is_float32: bool, cure: str
) -> None:
    found = seams.int8_cure(precision, n_layers=n_layers, n_float=n_float, is_float32=is_float32)
    assert re.search(cure, found)


class Products(nn.Module):
    """A head tied to a table, weights on the left, weights in float64, and products of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.query = nn.Linear(8, 8, bias=False)
        self.exact = nn.Linear(8, 8).double()
        self.left = nn.Parameter(torch.randn(5, 5))
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.query(self.table(ids))
        x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        x = self.left @ self.exact(x.double()).float()
        return self.head(x)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_every_product_with_weights_is_named(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, ids = tmp_path / "m.onnx", [torch.randint(0, 40, (8, 5)) for _ in range(4)]
    int8 = _int8(sr.export(Products().eval(), path, ids, quantize=precision))  # type: ignore[arg-type]
    assert set(int8.layers) - {"table"} == {"query", "head"}
    assert set(int8.left) == {"exact", "Products"}
    model = onnx.load(path)
    stored = {value.name for value in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    rounded = {name for name, node in made.items() if node.op_type == "DequantizeLinear"}
    of_weights = {name for name in rounded if made[name].input[0] in stored}
    # What attention multiplies stays as the layer before it gives it.
    attention = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and not (stored | of_weights).intersection(node.input)
    ]
    assert len(attention) >= 2
    before = {name for node in attention for name in node.input}
    before |= {name for value in before if made[value].op_type == "Transpose" for name in made[value].input}
    assert not before & rounded


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=needs_nncf)])
def test_a_layer_that_is_the_whole_model_has_its_class_as_name(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / f"m{seams.FORMATS[format].suffix}"
    exported = sr.export(nn.Linear(24, 4), path, _rows(), format=format, quantize="int8")  # type: ignore[arg-type]
    assert _int8(exported).layers == ("Linear",)


# Batches, options, error, message.
_CASES: Mapping[str, tuple[list[Tensor], Mapping[str, object], type[Exception], str]] = {
    "no batch": ([], {"quantize": "int8"}, sr.BatchesError, "batches is empty; give at least one batch"),
    "a precision": (
        _rows(1),
        {"quantize": "int9"},
        sr.UnknownNameError,
        r"did you mean 'int8'\? \(None writes",
    ),
    "a type": (_rows(1), {"quantize": 8}, sr.UnknownNameError, "quantize=8"),
    "no int8 to limit": (_rows(1), {"max_quant_drop": 0.1}, sr.OptionError, "goes with quantize=, which"),
    "a negative drop": (
        _rows(1),
        {"quantize": "int8", "max_quant_drop": -1},
        sr.OptionError,
        "max_quant_drop=-1; give the divergence",
    ),
    "no drop": (
        _rows(1),
        {"quantize": "int8", "max_quant_drop": float("nan")},
        sr.OptionError,
        "max_quant_drop=nan; give the divergence",
    ),
    "constant inputs": (
        [torch.ones(16, 24)] * 2,
        {"quantize": "int8"},
        sr.BatchesError,
        "every sample in them is the same, or one constant; give real inputs",
    ),
    "zeros of either sign": (
        [rows * 0 for rows in _rows(1)],
        {"quantize": "int8"},
        sr.BatchesError,
        "every sample in them is the same, or one constant; give real inputs",
    ),
    "one sample many times": (
        [_rows(1)[0][:1].expand(16, 24).clone()] * 2,
        {"quantize": "int8_weights"},
        sr.BatchesError,
        "every sample in them is the same, or one constant; give real inputs",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
def test_bad_input_is_refused(case: str, tmp_path: Path) -> None:
    batches, options, error, message = _CASES[case]
    with pytest.raises(error, match=message):
        sr.export(_uneven(), tmp_path / "m.onnx", batches, **options)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        sr.ExportError, match=r"ReLU has no layer that format='onnx' runs with quantize='int8'"
    ):
        sr.export(nn.ReLU(), tmp_path / "m.onnx", _rows(), quantize="int8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_weights_that_stay_as_they_are_are_not_called_int8(precision: str, tmp_path: Path) -> None:
    batches = [rows.double() for rows in _rows()]
    with pytest.raises(sr.ExportError, match=r"has no layer that .*export model\.float\(\)"):
        sr.export(_uneven().double(), tmp_path / "m.onnx", batches, quantize=precision)  # type: ignore[arg-type]


def test_a_format_without_int8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seams.FORMATS, "torch", replace(seams.FORMATS["torch"], precisions={}))
    with pytest.raises(sr.OptionError, match=r"format='torch' has no quantize='int8'; take format='onnx'"):
        sr.export(_uneven(), tmp_path / "m.pt2", _rows(1), format="torch", quantize="int8")


@needs_nncf
def test_a_missing_package_is_told_with_the_line_for_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(sr.MissingPackageError, match=r"pip install 'slimrank\[openvino\]'"):
        sr.export(_uneven(), tmp_path / "m.xml", _rows(1), format="openvino", quantize="int8")


@pytest.mark.slow
def test_outputs_that_are_no_numbers_any_more_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = seams.FORMATS["onnx"]
    quantizer = row.precisions["int8"]

    def broken(path: Path, program: object, threads: int) -> Callable[[object], Callable[[], list[Tensor]]]:
        return lambda batch: lambda: [torch.full((batch.n_samples, 4), float("nan"))]  # type: ignore[attr-defined]

    precisions = {"int8": replace(quantizer, open=broken)}
    monkeypatch.setitem(seams.FORMATS, "onnx", replace(row, precisions=precisions))
    # Whatever is asked for.
    with pytest.raises(sr.ExportError, match=r"outputs 'output' of the int8 file hold nan or inf"):
        sr.export(_uneven(), tmp_path / "m.onnx", _rows(), quantize="int8", max_quant_drop=float("inf"))


@pytest.mark.slow
def test_a_quantiser_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = seams.FORMATS["onnx"]

    def fail(*_: object) -> None:
        raise KeyError("an operator")

    precisions = {"int8": replace(row.precisions["int8"], write=fail)}  # type: ignore[arg-type]
    monkeypatch.setitem(seams.FORMATS, "onnx", replace(row, precisions=precisions))
    with pytest.raises(sr.ExportError, match=r"cannot be written with quantize='int8' for .*'an operator'"):
        sr.export(_uneven(), tmp_path / "m.onnx", _rows(), quantize="int8")


_MODULE = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    body = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 6)).eval()


def batches():
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8) for _ in range(4)]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the module ``int8_net`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "int8_net", raising=False)
    Path("int8_net.py").write_text(_MODULE, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_one_command_compresses_quantises_and_names_the_file(module: Path) -> None:
    args = ["int8_net:net", "int8_net:batches", "--macs", "0.7", "--out", "small", "--quiet", "--methods",
            "spatial_svd", "--no-compete"]  # fmt: skip
    told = CliRunner().invoke(seams.cli, ["compress", *args, "--quantize", "int8"])
    assert told.exit_code == 2
    assert "about the file of --export FILE, which is not given" in " ".join(told.stderr.split())
    file = ["--export", "model.onnx", "--quantize"]
    told = CliRunner().invoke(seams.cli, ["compress", *args, *file, "int9"])
    assert told.exit_code == 2
    assert not Path("small").exists()
    done = CliRunner().invoke(seams.cli, ["compress", *args, *file, "int8"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "model.onnx (onnx, int8): " in done.stdout
    assert "layers in int8" in done.stdout
    assert _products_in_int8(Path("model.onnx").resolve()) > 1
    assert "onnx, int8" in Path("small/report.html").read_text(encoding="utf-8")
    again = CliRunner().invoke(
        seams.cli,
        ["export", "small", "again.onnx", "--model", "int8_net:net", "--batches", "int8_net:batches",
         "--quantize", "int8", "--max-quant-drop", "inf"],
        catch_exceptions=False,
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert "again.onnx (onnx, int8): " in again.stdout


@pytest.mark.slow
def test_a_result_takes_the_batches_of_its_study(cnn_result: sr.Result, tmp_path: Path) -> None:
    exported = cnn_result.export(tmp_path / "m.onnx", quantize="int8", max_quant_drop=float("inf"))
    assert exported.before_ms is not None
    assert _int8(exported).noise_db > 15
    assert len(_int8(exported).layers) > 1
