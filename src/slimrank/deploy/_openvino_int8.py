# SPDX-License-Identifier: Apache-2.0
"""int8 in OpenVINO's files, by nncf: weights and activations, or weights alone."""

from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from slimrank.deploy._cpu import overflow_notes, sums_overflow
from slimrank.deploy._openvino import EXTRA, array_of, openvino_core
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program, node_layers
from slimrank.deploy._quantizer import Quantized
from slimrank.forward import Batch
from slimrank.records import Note

if TYPE_CHECKING:
    from openvino import Model, Node

PACKAGES = ("nncf",)
_ADVANCED, _RANGES = "nncf.quantization.advanced_parameters", "nncf.quantization.range_estimator"
# Operators with weights.
_PRODUCTS = (
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul",
    "LSTMSequence", "GRUSequence", "RNNSequence",
)  # fmt: skip
# What may lie between weights on disk and the operator.
_BEFORE_WEIGHTS = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize", "Squeeze")
_INT8 = ("i8", "u8")


def write_openvino_int8(
    program: Program, float_path: Path, path: Path, batches: Sequence[Batch], kept: Collection[str]
) -> Quantized:
    """Writes an IR whose weights and activations nncf has quantised.

    Args:
        program: that the float file was made of.
        float_path: of its ``.xml`` file.
        path: of the ``.xml`` file to write.
        batches: to calibrate with.
        kept: layers that stay in float.

    Returns:
        What became of the layers.
    """
    nncf = _package("nncf")
    model = openvino_core().read_model(float_path)
    data = [
        {name: array_of(name, tensor) for name, tensor in program.model.input_tensors(batch).items()}
        for batch in batches
    ]
    # Products of two values, as in attention, are laid out by nncf for transformers.
    is_transformer = any(
        node.get_type_name() == "ScaledDotProductAttention"
        or (node.get_type_name() == "MatMul" and _weights_of(node) is None)
        for node in model.get_ops()
    )
    advanced = _package(_ADVANCED)
    made = nncf.quantize(
        model,
        nncf.Dataset(data),
        # Values between factors have both signs, and seldom as much of both: the range need not be symmetric.
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(data),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        ignored_scope=_kept_scope(nncf, model, program, kept),
        # Measured on compressed networks: its quick correction of biases brings up to 8 dB of noise, moving
        # the spread of values into weights 12 dB (pairs are balanced already), and ranges that are means over
        # batches, which clip, 10 dB.
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            disable_bias_correction=True,
            # Otherwise it halves weights of the first convolutions alone.
            overflow_fix=nncf.OverflowFix.ENABLE if sums_overflow() else None,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
            activations_range_estimator_params=_package(_RANGES).RangeEstimatorParametersSet.MINMAX,
        ),
    )
    return _saved(made, program, path, kept, "nncf leaves", overflow_notes("openvino", "weights"))


def write_openvino_int8_weights(
    program: Program, float_path: Path, path: Path, batches: Sequence[Batch], kept: Collection[str]
) -> Quantized:
    """Writes an IR whose weights are stored in int8; values stay in float.

    Args:
        program: that the float file was made of.
        float_path: of its ``.xml`` file.
        path: of the ``.xml`` file to write.
        batches: not used.
        kept: layers that stay in float.

    Returns:
        What became of the layers.
    """
    del batches
    nncf = _package("nncf")
    model = openvino_core().read_model(float_path)
    made = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT8_SYM,
        ignored_scope=_kept_scope(nncf, model, program, kept),
    )
    return _saved(made, program, path, kept, "nncf stores the weights of")


def _package(name: str) -> ModuleType:
    return import_package(name, extra=EXTRA, what="int8 in format='openvino'")


def _kept_scope(nncf: ModuleType, model: "Model", program: Program, kept: Collection[str]) -> object:
    layers = node_layers(program)
    names = [
        node.get_friendly_name() for node in _products(model) if _layer_of(node, program, layers) in kept
    ]
    return nncf.IgnoredScope(names=names) if names else None


def _saved(
    made: "Model",
    program: Program,
    path: Path,
    kept: Collection[str],
    does: str,
    notes: tuple[Note, ...] = (),
) -> Quantized:
    import_package("openvino", extra=EXTRA, what="format='openvino'").save_model(
        made, path, compress_to_fp16=False
    )
    layers, left = [], []
    known = node_layers(program)
    for node in _products(made):
        name = _layer_of(node, program, known)
        if _weights_of(node) in _INT8:
            layers.append(name)
        elif name not in kept:
            left.append((name, f"{does} {node.get_type_name()} in float"))
    # A recurrent layer has several products, of which some may stay.
    left = [entry for entry in left if entry[0] not in layers]
    return Quantized(layers=tuple(dict.fromkeys(layers)), left=tuple(dict.fromkeys(left)), notes=notes)


def _products(model: "Model") -> list["Node"]:
    """Operators with weights, in order."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in _PRODUCTS and _weights_of(node) is not None
    ]


def _weights_of(node: "Node") -> str | None:
    """The type of an operator's weights as they are stored; None where it has none."""
    # Of recurrent ones the weights come after values, states and lengths.
    for value in node.input_values()[1:]:
        source = value.get_node()
        while source.get_type_name() in _BEFORE_WEIGHTS:
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) > 1:
            return str(source.get_output_element_type(0).get_type_name())
    return None


def _layer_of(node: "Node", program: Program, layers: dict[str, str]) -> str:
    """The module that a node belongs to, the model's class outside of all; the node's name where unknown."""
    name = node.get_friendly_name()
    return layers.get(name.partition("/")[0], name) or program.model.title
