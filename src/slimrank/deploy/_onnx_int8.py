# SPDX-License-Identifier: Apache-2.0
"""int8 in ONNX files: weights and activations for onnxruntime's integer kernels, or weights alone."""

import ast
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimrank.deploy._cpu import overflow_notes, sums_overflow
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
# What may lie between weights on disk and the operator.
_BEFORE_WEIGHTS = ("Transpose", "Cast", "DequantizeLinear", "Reshape", "Unsqueeze", "Squeeze")
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
    title = program.model.title
    model = _loaded(float_path)
    _turn_weights(model, kept, title)
    data = iter([feeds_of(program, model, batch) for batch in batches])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined,misc]
        def get_next(self) -> dict[str, object] | None:
            return next(data, None)

    wanted = _wanted(model, kept, title)
    # On x86 the integer kernels take unsigned activations and signed weights; others run slower than float.
    with warnings.catch_warnings():
        # Of masks with -inf, whose range it computes, too, though they stay in float.
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        quantization.quantize_static(
            model,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # Measured without VNNI on five networks: 28 to 33 dB, 10 to 16 with all 8 bits. Activations of
            # 7 bits lose up to 7 dB more; unsigned weights win 1 to 3 dB, and take up to 1.5 times as long.
            reduce_range=sums_overflow(),
            op_types_to_quantize=[*_PRODUCTS, *_BETWEEN],
            nodes_to_quantize=wanted,
            extra_options={"MatMulConstBOnly": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
        )
    made = _loaded(path)
    _free_values(made, wanted)
    _finish(made, float_path, path)
    layers, left = _outcome(made, kept, title)
    return Quantized(layers=layers, left=left, notes=overflow_notes("onnx", "weights"))


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
    del batches
    title = program.model.title
    quantization = onnx_package("onnxruntime.quantization")
    model = _loaded(float_path)
    _turn_weights(model, kept, title)
    by_weights = [node for node in model.graph.node if node.op_type in _BY_WEIGHTS]
    excluded = [node.name for node in by_weights if layer_of(node, title) in kept]
    weights = _weights(model)
    wanted = {}
    for node in model.graph.node:
        table = 0 if node.op_type == "Gather" else 1
        if node.op_type == "Gather" and (node.input[0] not in weights or weights[node.input[0]].n_sizes < 2):
            continue
        if layer_of(node, title) not in kept and (node.op_type == "Gather" or _multiplies(node, weights)):
            wanted[node.name] = (node, node.input[table])
    quantization.quantize_dynamic(
        model,
        path,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        # Of matrices alone: tables are not multiplied, and keep 8 bits.
        reduce_range=sums_overflow(),
        op_types_to_quantize=list(_BY_WEIGHTS),
        nodes_to_exclude=excluded,
        extra_options={"MatMulConstBOnly": True},
    )
    made = _loaded(path)
    _finish(made, float_path, path)
    # What it leaves in float, such as float64, it does not tell.
    stored = {value.name for value in made.graph.initializer}
    layers, left = [], []
    for node, weight in wanted.values():
        layer = layer_of(node, title)
        if stored & {f"{weight}_quantized", f"{weight}_Transposed_quantized"}:
            layers.append(layer)
        elif node.op_type in _BY_WEIGHTS:
            left.append((layer, _why_left(node, weights)))
        else:
            left.append((layer, f"onnxruntime has no {node.op_type} with int8 weights alone"))
    return Quantized(
        layers=tuple(dict.fromkeys(layers)),
        left=tuple(dict.fromkeys(left)),
        notes=overflow_notes("onnx", "weights"),
    )


def layer_of(node: "NodeProto", title: str) -> str:
    """The module that a node belongs to, as in ``named_modules()``.

    Args:
        node: of a file.
        title: of the model, for nodes that belong to no module in it.

    Returns:
        The name; that of the node where the file does not tell.
    """
    for entry in node.metadata_props:
        if entry.key == KEPT_NOTE:
            # From the outermost module to the node itself, within NamedModel, whose "model" is the user's.
            scopes: list[str] = ["", *ast.literal_eval(entry.value)]
            return scopes[-2].partition("model.")[2] or title
    return node.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """What a value that does not depend on inputs holds.

    Attributes:
        type: of its numbers, as ONNX counts types.
        n_sizes: its dimensions.
    """

    type: int
    n_sizes: int


def _weights(model: "ModelProto") -> dict[str, _Weight]:
    """Values that hold weights, as they are stored or behind what only lays them out."""
    found = {
        value.name: _Weight(type=value.data_type, n_sizes=len(value.dims))
        for value in model.graph.initializer
    }
    for node in model.graph.node:
        if node.op_type in _BEFORE_WEIGHTS and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _multiplies(node: "NodeProto", weights: Mapping[str, _Weight]) -> bool:
    """Whether a node multiplies values by weights."""
    if node.op_type in _FLOAT_ONLY and node.op_type != "Einsum":
        return True
    if node.op_type not in (*_PRODUCTS, *_FLOAT_ONLY):
        return False
    # Biases have one dimension.
    return any(name in weights and weights[name].n_sizes > 1 for name in node.input)


def _why_left(node: "NodeProto", weights: Mapping[str, _Weight]) -> str:
    """Why a product with weights stays in float."""
    if node.op_type in _FLOAT_ONLY:
        return f"onnxruntime has no {node.op_type} in int8"
    if node.input[1] not in weights:
        return f"onnxruntime has no {node.op_type} in int8 with weights on the left"
    kind = weights[node.input[1]].type
    types = onnx_package("onnx").TensorProto
    if kind != types.FLOAT and kind not in (types.INT8, types.UINT8):
        return f"onnxruntime makes int8 of float32 weights, and these are {types.DataType.Name(kind)}"
    return f"onnxruntime leaves this {node.op_type} in float"


def _outcome(
    made: "ModelProto", kept: Collection[str], title: str
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Layers whose products run in int8, and (layer, why) of other products with weights."""
    weights = _weights(made)
    types = onnx_package("onnx").TensorProto
    layers, left = [], []
    for node in made.graph.node:
        if not _multiplies(node, weights):
            continue
        layer, weight = layer_of(node, title), weights.get(node.input[1])
        is_stored = weight is not None and weight.type in (types.INT8, types.UINT8)
        if is_stored and node.op_type in _PRODUCTS:
            layers.append(layer)
        elif layer not in kept:
            left.append((layer, _why_left(node, weights)))
    return tuple(dict.fromkeys(layers)), tuple(dict.fromkeys(left))


def _turn_weights(model: "ModelProto", kept: Collection[str], title: str) -> None:
    """Stores matrices as products take them, where they are turned before, as of a tied head (in place).

    Onnxruntime quantises what is stored as the product takes it; the table stays for those who look rows up.
    """
    onnx = onnx_package("onnx")
    stored = {value.name: value for value in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if node.op_type == "Transpose"]:
        value = stored.get(node.input[0])
        readers = [other for other in model.graph.node if node.output[0] in other.input]
        if value is None or not readers or node.output[0] in outputs:
            continue
        if value.data_type != onnx.TensorProto.FLOAT or len(value.dims) != 2:
            continue
        # The file grows by a matrix, which int8 makes a quarter of: where it stays in float, it need not.
        if any(
            other.op_type not in ("MatMul", "Gemm") or layer_of(other, title) in kept for other in readers
        ):
            continue
        if list(onnx.helper.get_node_attr_value(node, "perm") if node.attribute else (1, 0)) != [1, 0]:
            continue
        array = onnx.numpy_helper.to_array(value).T
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.copy(), node.output[0]))
        model.graph.node.remove(node)


def _wanted(model: "ModelProto", kept: Collection[str], title: str) -> list[str]:
    """Names of the nodes to quantise: products with weights, and what lies between nothing but int8.

    What stands beside a layer in float would gain noise and no time, and so would what lies between a matrix
    product, which gives float as well, and nothing that takes int8. A convolution does not: what follows it
    is part of its kernel.
    """
    weights = {value.name for value in model.graph.initializer}
    in_int8: set[str] = set()
    # Values that come from a convolution, and from nothing in float.
    of_convs: set[str] = set()
    candidates = []
    for node in model.graph.node:
        values = [name for name in node.input if name and name not in weights]
        if node.op_type in _PRODUCTS:
            is_wanted = node.input[1] in weights and layer_of(node, title) not in kept
        else:
            is_wanted = node.op_type in _BETWEEN and bool(values) and in_int8.issuperset(values)
        if is_wanted:
            candidates.append(node)
            in_int8.update(node.output)
            if node.op_type == "Conv" or (node.op_type not in _PRODUCTS and of_convs.intersection(values)):
                of_convs.update(node.output)
    wanted: list[str] = []
    taken: set[str] = set()
    for node in reversed(candidates):
        if node.op_type in _PRODUCTS or (taken | of_convs).intersection(node.output):
            wanted.append(node.name)
            taken.update(node.input)
    return wanted[::-1]


def _free_values(model: "ModelProto", wanted: Collection[str]) -> None:
    """Leaves out the rounding of matrix products that only float takes: they give it as well (in place)."""
    outputs = {value.name for value in model.graph.output}
    for product in [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]:
        value = product.output[0]
        roundings = [node for node in model.graph.node if value in node.input]
        if value in outputs or len(roundings) != 1 or roundings[0].op_type != "QuantizeLinear":
            continue
        lasts = [node for node in model.graph.node if roundings[0].output[0] in node.input]
        if len(lasts) != 1 or lasts[0].op_type != "DequantizeLinear":
            continue
        if any(node.name in wanted for node in model.graph.node if lasts[0].output[0] in node.input):
            continue
        product.output[0] = lasts[0].output[0]
        model.graph.node.remove(lasts[0])
        model.graph.node.remove(roundings[0])


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
