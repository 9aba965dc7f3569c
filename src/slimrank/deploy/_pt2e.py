# SPDX-License-Identifier: Apache-2.0
"""A captured program with pairs of quantize and dequantize operations, by torchao."""

import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from slimrank._errors import ExportError
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program, batch_shapes, node_layer
from slimrank.deploy._quiet import quiet_exporter
from slimrank.forward import Batch

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer as GraphQuantizer

EXTRA = "torchao"
PACKAGES = ("torchao",)

_ATEN = torch.ops.aten
# Batch norm in a graph without changes in place.
_NORM = _ATEN._native_batch_norm_legit_no_training.default
# What quantizers look for, by the operation that it is in a graph. Torch's own record of it takes all calls
# of one module for one piece, which they refuse.
_SOURCES: dict[object, object] = {
    _ATEN.conv1d.default: nn.Conv1d,
    _ATEN.conv2d.default: nn.Conv2d,
    _ATEN.linear.default: nn.Linear,
    _ATEN.relu.default: nn.ReLU,
    _ATEN.hardtanh.default: nn.Hardtanh,
    _ATEN.hardswish.default: nn.Hardswish,
    _ATEN.silu.default: nn.SiLU,
    _ATEN.leaky_relu.default: nn.LeakyReLU,
    _ATEN.tanh.default: nn.Tanh,
    _ATEN.gelu.default: nn.GELU,
    _ATEN.add.Tensor: operator.add,
}
# Operations with weights: products of a layer.
_PRODUCTS = frozenset(
    name
    for kind in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    for name in (f"aten.{kind}.default", f"aten.{kind}.input", f"aten.{kind}.padding")
) | {"aten.linear.default", "aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8Program:
    """A program whose products run in int8.

    Attributes:
        program: as the float one, with quantize and dequantize operations in its graph.
        layers: names of the layers whose weights and inputs are quantised.
        left: names of other layers that were not asked to stay in float, and their operations.
    """

    program: Program
    layers: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def quantize_program(
    program: Program,
    make_quantizer: Callable[[Callable[[Node], bool]], "GraphQuantizer"],
    batches: Sequence[Batch],
    kept: Collection[str],
) -> Int8Program:
    """Quantises a program after training: ranges are read off the values of real batches.

    Args:
        program: in float32; it is not changed.
        make_quantizer: what torchao asks which operations to quantise, and how. It is given a function that
            tells whether a node may be.
        batches: to calibrate with, of sizes that the program takes; none where ranges are found at run time.
        kept: names of layers that stay in float, with all that is inside them.

    Returns:
        The program in int8; it takes the batches that the float one takes.

    Raises:
        ExportError: the program is not in float32.
        MissingPackageError: torchao is not installed.
    """
    title = program.model.title
    pt2e = torchao_package("torchao.quantization.pt2e.quantize_pt2e")
    with quiet_exporter(), torch.no_grad():
        # It warns of each pooling that stays in float, which costs nothing.
        warnings.filterwarnings("ignore", "The input of maxpool2d is not quantized", UserWarning)
        # Without changes in place: what is quantised in between would be changed as well.
        graph = program.exported.run_decompositions({}).module(check_guards=False)
        if not isinstance(graph, GraphModule):
            raise TypeError(f"a program became a {type(graph).__name__}")
        products = {node.name: node for node in graph.graph.nodes if is_product(node)}
        _check_float(title, products.values())
        _split_weights(graph)
        _label(graph, kept, title)
        prepared = pt2e.prepare_pt2e(graph, make_quantizer(lambda node: not _is_kept(node, kept, title)))
        # Ranges of weights are read in a run, too.
        for batch in batches or [program.batch]:
            inputs = program.model.inputs_of(batch)
            prepared(*inputs.args, **inputs.kwargs)
        _rename(prepared, _NORM, _norm)
        converted = pt2e.convert_pt2e(prepared)
        _rename(converted, _norm, _NORM)
        _clean(converted)
        exported = _captured(program, converted)
    quantised = {node.name for node in converted.graph.nodes if _is_quantised(node)}
    others = {name: node for name, node in products.items() if name not in quantised}
    return Int8Program(
        program=replace(program, exported=exported),
        layers=tuple(
            dict.fromkeys(layer_of(node, title) for name, node in products.items() if name in quantised)
        ),
        left=tuple(
            dict.fromkeys(
                (layer_of(node, title), _operation(node))
                for node in others.values()
                if not _is_kept(node, kept, title)
            )
        ),
    )


def torchao_package(name: str) -> ModuleType:
    """A module of torchao.

    Raises:
        MissingPackageError: it is not installed.
    """
    before = torch._inductor.config.pre_grad_custom_pass
    try:
        # It prints which of its own libraries do not fit this machine when it is imported.
        with quiet_exporter():
            return import_package(name, extra=EXTRA, what="quantize= with format='torch' or 'executorch'")
    finally:
        # Some of its modules put a pass of theirs into everything that is compiled from then on.
        torch._inductor.config.pre_grad_custom_pass = before


def is_product(node: Node) -> bool:
    """Whether a node multiplies by the weights of a layer."""
    return node.op == "call_function" and str(node.target) in _PRODUCTS


def layer_of(node: Node, title: str) -> str:
    """The layer that a node belongs to, as in ``named_modules()``; the model's title where it is in none."""
    return node_layer(node) or title


def _operation(node: Node) -> str:
    """As "conv2d"."""
    return str(node.target).split(".")[1]


def _is_kept(node: Node, kept: Collection[str], title: str) -> bool:
    name = layer_of(node, title)
    return any(name == layer or name.startswith(f"{layer}.") for layer in kept)


def _check_float(title: str, products: Iterable[Node]) -> None:
    for node in products:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype is not torch.float32:
            raise ExportError(
                f"{title}: layer {layer_of(node, title)!r} computes in {value.dtype}, and int8 is made of "
                "float32; export model.float(), or pass quantize=None"
            )


def _split_weights(graph: GraphModule) -> None:
    """Gives every reader of a weight a node of its own: quantizers skip layers whose weight they know."""
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        for user in list(node.users)[1:]:
            with graph.graph.inserting_after(node):
                own = graph.graph.get_attr(str(node.target))
            own.meta = dict(node.meta)
            user.replace_input_with(node, own)
    graph.recompile()


def _label(graph: GraphModule, kept: Collection[str], title: str) -> None:
    """Tells quantizers what each node is: a piece of its own, or nothing where it stays in float."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        source = None if _is_kept(node, kept, title) and is_product(node) else _SOURCES.get(node.target)
        if source is operator.add and not _adds_alike(node):
            source = None
        # Also where it is nothing: a node without a label is taken for what its module is.
        node.meta["source_fn_stack"] = [(node.name, source)]


def _adds_alike(node: Node) -> bool:
    """Whether two tensors of one shape are added, as a kernel can after its products."""
    values = [arg.meta.get("val") if isinstance(arg, Node) else None for arg in node.args]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _norm(*args: object) -> tuple[Tensor, ...]:
    """A batch norm under a name that torchao does not know: with its own it would search for long."""
    return _NORM(*args)  # type: ignore[no-any-return]


def _rename(graph: GraphModule, before: Callable[..., object], after: Callable[..., object]) -> None:
    """Has nodes call another function that does the same."""
    for node in graph.graph.nodes:
        if node.target is before:
            node.target = after
    graph.recompile()


def _is_quantised(node: Node) -> bool:
    """Whether a product takes an input and weights that were quantised."""
    if not is_product(node):
        return False
    given = [arg for arg in node.args[:2] if isinstance(arg, Node)]
    return len(given) == 2 and all("dequantize" in str(arg.target) for arg in given)


def _clean(graph: GraphModule) -> None:
    """Drops labels, and weights in float that nothing reads any more."""
    for node in graph.graph.nodes:
        node.meta.pop("source_fn_stack", None)
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in read:
            path, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(path), attribute)


def _captured(program: Program, converted: GraphModule) -> ExportedProgram:
    """The graph as a program that takes what the float one takes."""
    inputs = program.model.inputs_of(program.batch)
    shapes = batch_shapes(program.model, inputs, program.batch.n_samples, program.largest_batch)
    exported = torch.export.export(
        converted, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes if program.is_dynamic else None
    )
    for node in exported.graph.nodes:
        # Where torchao made each node from: much text, which says nothing of the model.
        node.meta.pop("from_node", None)
    return exported


def products_in_order(exported: ExportedProgram) -> Iterator[Node]:
    """Nodes that multiply by weights: as many in a float program and in one that was made of it."""
    return (node for node in exported.graph.nodes if is_product(node))
