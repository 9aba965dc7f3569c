# SPDX-License-Identifier: Apache-2.0
"""int8 in ONNX files: weights and activations for onnxruntime's integer kernels, or weights alone."""

import ast
from collections.abc import Collection, Sequence
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
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Pad", "Split", "Slice",
)  # fmt: skip
# Operators with weights that stay in float: onnxruntime has no int8 of them.
_FLOAT_ONLY = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum")
# With measured activations onnxruntime has matrix products alone, and can look rows up.
_BY_WEIGHTS = ("MatMul", "Gemm", "Gather")
# Tells onnxruntime that it need not simplify a graph first: that was done when it was written.
_MARK = "onnx.quant.pre_process"


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
        nodes_to_quantize=_wanted(model, kept),
        extra_options={"MatMulConstBOnly": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
    )
    made = _loaded(path)
    _free_outputs(made)
    _finish(made, float_path, path)
    dequantised = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    layers = [layer_of(node) for node in _products(made) if node.input[1] in dequantised]
    left = [
        (layer_of(node), f"onnxruntime has no {node.op_type} in int8")
        for node in made.graph.node
        if node.op_type in _FLOAT_ONLY
    ]
    return Quantized(layers=tuple(dict.fromkeys(layers)), left=tuple(dict.fromkeys(left)))


def write_onnx_int8_weights(
    program: Program, float_path: Path, path: Path, batches: Sequence[Batch], kept: Collection[str]
) -> Quantized:
    """Writes an ONNX file with matrices and tables in int8; activations are measured while it runs.

    Args:
        program: not used.
        float_path: of the float file.
        path: of the int8 file.
        batches: not used.
        kept: layers that stay in float.

    Returns:
        What became of the layers.
    """
    del program, batches
    quantization = onnx_package("onnxruntime.quantization")
    model = _loaded(float_path)
    weights = {value.name for value in model.graph.initializer}
    taken, left, excluded = [], [], []
    for node in model.graph.node:
        name = layer_of(node)
        table = 0 if node.op_type == "Gather" else 1
        has_weights = len(node.input) > table and node.input[table] in weights
        if node.op_type in _BY_WEIGHTS and has_weights:
            if name in kept:
                excluded.append(node.name)
            else:
                taken.append((name, node.input[table]))
        elif node.op_type in (*_PRODUCTS, *_FLOAT_ONLY) and has_weights:
            left.append((name, f"onnxruntime has no {node.op_type} with int8 weights alone"))
    quantization.quantize_dynamic(
        model,
        path,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=list(_BY_WEIGHTS),
        nodes_to_exclude=excluded,
        extra_options={"MatMulConstBOnly": True},
    )
    made = _loaded(path)
    _finish(made, float_path, path)
    # What it leaves in float, such as float64, it does not tell.
    stored = {value.name for value in made.graph.initializer}
    layers = [
        layer for layer, weight in taken if stored & {f"{weight}_quantized", f"{weight}_Transposed_quantized"}
    ]
    return Quantized(layers=tuple(dict.fromkeys(layers)), left=tuple(dict.fromkeys(left)))


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


def _wanted(model: "ModelProto", kept: Collection[str]) -> list[str]:
    """Names of the nodes to quantise: products with weights, and what lies between nothing but int8.

    What stands beside a layer in float would gain noise and no time.
    """
    weights = {value.name for value in model.graph.initializer}
    in_int8: set[str] = set()
    wanted = []
    for node in model.graph.node:
        values = [name for name in node.input if name and name not in weights]
        if node.op_type in _PRODUCTS:
            is_wanted = node.input[1] in weights and layer_of(node) not in kept
        else:
            is_wanted = node.op_type in _BETWEEN and bool(values) and in_int8.issuperset(values)
        if is_wanted:
            wanted.append(node.name)
            in_int8.update(node.output)
    return wanted


def _free_outputs(model: "ModelProto") -> None:
    """Leaves out the rounding of outputs behind matrix products, which give float as well (in place)."""
    nodes = {name: node for node in model.graph.node for name in node.output}
    for value in model.graph.output:
        last = nodes.get(value.name)
        rounding = (
            nodes.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
        )
        if last is None or rounding is None or rounding.op_type != "QuantizeLinear":
            continue
        product = nodes.get(rounding.input[0])
        readers = [
            node for node in model.graph.node if {rounding.output[0], rounding.input[0]} & {*node.input}
        ]
        if product is None or product.op_type not in ("Gemm", "MatMul") or len(readers) != 2:
            continue
        product.output[0] = value.name
        model.graph.node.remove(last)
        model.graph.node.remove(rounding)


def _loaded(path: Path) -> "ModelProto":
    """A file, marked so that onnxruntime does not ask to simplify it first."""
    model: ModelProto = onnx_package("onnx").load(path)
    model.metadata_props.add(key=_MARK, value="onnxruntime.quant")
    return model


def _finish(model: "ModelProto", float_path: Path, path: Path) -> None:
    """Writes what onnxruntime made, named and described as the float file is."""
    onnx = onnx_package("onnx")
    plain: ModelProto = onnx.load(float_path)
    # Of roundings that were left out: onnxruntime warns of them each time it opens the file.
    used = {name for node in model.graph.node for name in node.input}
    for weight in [weight for weight in model.graph.initializer if weight.name not in used]:
        model.graph.initializer.remove(weight)
    model.producer_name, model.producer_version = plain.producer_name, plain.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(plain.metadata_props)
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    path.write_bytes(data)
