# SPDX-License-Identifier: Apache-2.0
"""ONNX files read as modules; a small converter stands in for onnx2torch."""

import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slimrank as sr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

helper = onnx.helper
FLOAT = onnx.TensorProto.FLOAT


def _weight(name: str, *shape: int) -> object:
    generator = np.random.default_rng(len(name) + sum(shape))
    return onnx.numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) / 4, name)


def write(path: Path, middle: str = "Relu", *, free: bool = True, domain: str = "") -> Path:
    """A file of two matrix products with one operation between."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node(middle, ["h"], ["a"], name="between", domain=domain),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="last", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, ["n" if free else 4, 6])],
        [helper.make_tensor_value_info("y", FLOAT, ["n" if free else 4, 3])],
        [_weight("w1", 16, 6), _weight("b1", 16), _weight("w2", 3, 16), _weight("b2", 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _convert(path: str, *, error: float = 0.0) -> nn.Module:
    """As onnx2torch: a layer for each node, and its error where it knows none."""
    graph = onnx.load(path).graph
    weights = {value.name: torch.tensor(onnx.numpy_helper.to_array(value)) for value in graph.initializer}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for node in graph.node:
        if node.op_type == "Gemm":
            weight = weights[node.input[1]]
            layers[node.name] = nn.Linear(*reversed(weight.shape))
            layers[node.name].load_state_dict({"weight": weight + error, "bias": weights[node.input[2]]})
        elif node.op_type == "Relu":
            layers[node.name] = nn.ReLU()
        else:
            raise NotImplementedError(
                "Converter is not implemented (OperationDescription(domain='', "
                f"operation_type='{node.op_type}', version=17))"
            )
    return nn.Sequential(layers)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("onnx2torch")
    module.convert = _convert
    monkeypatch.setitem(sys.modules, "onnx2torch", module)
    return module


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize("free", [True, False])
def test_a_file_becomes_a_module_that_can_be_compressed(tmp_path: Path, free: bool) -> None:
    model = sr.from_onnx(write(tmp_path / "m.onnx", free=free))
    assert not model.training
    assert [name for name, _ in model.named_children()] == ["first", "between", "last"]
    batches = [torch.randn(8, 6, generator=torch.Generator().manual_seed(0))] * 2
    result = sr.compress(model, batches, macs=0.6, compete=False, effort="fast", progress=False)
    assert result.keep_ratio() <= 0.6


@pytest.mark.usefixtures("converter")
def test_an_operation_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    with pytest.raises(sr.ModelError, match=r"m\.onnx cannot be converted: .* operation Tanh \(between\)"):
        sr.from_onnx(write(tmp_path / "m.onnx", "Tanh"))


def test_a_module_that_answers_otherwise_is_refused(tmp_path: Path, converter: ModuleType) -> None:
    converter.convert = lambda path: _convert(path, error=0.1)
    with pytest.raises(
        sr.ModelError, match=r"output 'y' of the converted module differs by .*more than 1e-03"
    ):
        sr.from_onnx(write(tmp_path / "m.onnx"))


def test_a_module_with_other_outputs_is_refused(tmp_path: Path, converter: ModuleType) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    converter.convert = lambda _path: Twice()
    with pytest.raises(sr.ModelError, match="gives 2 outputs, the file 1"):
        sr.from_onnx(write(tmp_path / "m.onnx"))


def test_a_module_that_fails_is_refused(tmp_path: Path, converter: ModuleType) -> None:
    converter.convert = lambda _path: nn.Linear(5, 3)
    with pytest.raises(sr.ModelError, match=r"converted module fails on inputs float32 \[2, 6\].*example="):
        sr.from_onnx(write(tmp_path / "m.onnx"))


@pytest.mark.usefixtures("converter")
def test_examples_are_checked_and_used(tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx")
    assert isinstance(sr.from_onnx(file, example=[torch.zeros(3, 6)]), nn.Sequential)
    with pytest.raises(sr.BatchesTypeError, match=r"example holds 2 \(Tensor, Tensor\), .*takes 1: 'x'"):
        sr.from_onnx(file, example=[torch.zeros(3, 6)] * 2)
    with pytest.raises(sr.ModelError, match=r"onnxruntime fails on inputs float32 \[3, 7\]"):
        sr.from_onnx(file, example=[torch.zeros(3, 7)])


def test_a_quantised_file_is_refused(tmp_path: Path) -> None:
    """Before any converter is asked for."""
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415

    quantize_dynamic(write(tmp_path / "m.onnx"), tmp_path / "int8.onnx")
    with pytest.raises(sr.ModelError, match=r"int8\.onnx is quantised .*give the float file"):
        sr.from_onnx(tmp_path / "int8.onnx")


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sr.FileError, match=r"none\.onnx is not there"):
        sr.from_onnx(tmp_path / "none.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(sr.FileError, match=r"m\.onnx is no ONNX file"):
        sr.from_onnx(tmp_path / "m.onnx")


@pytest.mark.usefixtures("converter")
def test_a_file_that_onnxruntime_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sr.ModelError, match=r"onnxruntime cannot open it"):
        sr.from_onnx(write(tmp_path / "m.onnx", "Mystery", domain="nobody"))


def test_without_the_converter_the_line_for_pip_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(sr.MissingPackageError, match=r"pip install 'slimrank\[onnx2torch\]'"):
        sr.from_onnx(write(tmp_path / "m.onnx"))
