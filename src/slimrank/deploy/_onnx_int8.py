# SPDX-License-Identifier: Apache-2.0
"""int8 in ONNX files: weights and activations for onnxruntime's integer kernels, or weights alone."""

import ast
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimrank.deploy._onnx import KEPT_NOTE, feeds_of, onnx_package
from slimrank.deploy._program import Program
from slimrank.deploy._quantizer import Quantized
from slimrank.forward import Batch

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Operators with weights whose products onnxruntime has in int8 on a CPU.
_PRODUCTS = ("Conv", "Gemm", "MatMul")
# What else runs in int8 between them, so that values need not go to float and back.
_BETWEEN = (
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Pad", "Split", "Slice",
)  # fmt: skip
# Operators with weights that stay in float: onnxruntime has no int8 of them.
_FLOAT_ONLY = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum")
_MARK = ("onnx.infer", "onnx.quant.pre_process")


def write_onnx_int8(
    program: Program, float_path: Path, path: Path, batches: Sequence[Batch], kept: Collection[str]
) -> Quantized:
    """Writes an ONNX file with quantised weights and activations, as pairs of operators around each.

    Args:
        program: that the float file was made of.
        float_path: of the float file.
        path: of the int8 file.
        batches: to calibrate with.
        kept: layers that stay in float.

    Returns:
        What became of the layers.
    """
    quantization = onnx_package("onnxruntime.quantization")
    model = _loaded(float_path)
    data = iter([feeds_of(program, model, batch) for batch in batches])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined,misc]
        def get_next(self) -> dict[str, object] | None:
            return next(data, None)

    # On x86 the integer kernels take unsigned activations and signed weights; others run slower than float.
    quantization.quantize_static(
        model,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=[*_PRODUCTS, *_BETWEEN],
        nodes_to_exclude=[node.name for node in _products(model) if layer_of(node) in kept],
        extra_options={"MatMulConstBOnly": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
    )
    made = _finished(path, float_path)
    dequantised = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    layers = [layer_of(node) for node in _products(made) if node.input[1] in dequantised]
    return Quantized(layers=tuple(dict.fromkeys(layers)), left=tuple(_left(made)))


def layer_of(node: "NodeProto") -> str:
    """The module that a node belongs to, as in ``named_modules()``; the node where none is said."""
    for entry in node.metadata_props:
        if entry.key == KEPT_NOTE:
            # From the outermost module to the node itself, within NamedModel, whose "model" is the user's.
            scopes: list[str] = ["", *ast.literal_eval(entry.value)]
            return scopes[-2].partition("model.")[2] or node.name
    return node.name


def _products(model: "ModelProto") -> list["NodeProto"]:
    return [node for node in model.graph.node if node.op_type in _PRODUCTS]


def _left(model: "ModelProto") -> Iterator[tuple[str, str]]:
    """Layers of which onnxruntime has no int8."""
    for node in model.graph.node:
        if node.op_type in _FLOAT_ONLY:
            yield layer_of(node), f"onnxruntime has no {node.op_type} in int8"


def _loaded(path: Path) -> "ModelProto":
    """A float file, marked as prepared: what onnxruntime would do first was done when it was written."""
    onnx = onnx_package("onnx")
    model: ModelProto = onnx.load(path)
    model.metadata_props.add(key=_MARK[1], value="onnxruntime.quant")
    return model


def _finished(path: Path, float_path: Path) -> "ModelProto":
    """The file that onnxruntime wrote, named and described as the float file is."""
    onnx = onnx_package("onnx")
    model: ModelProto = onnx.load(path)
    plain: ModelProto = onnx.load(float_path)
    model.producer_name, model.producer_version = plain.producer_name, plain.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(plain.metadata_props)
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    path.write_bytes(data)
    return model
