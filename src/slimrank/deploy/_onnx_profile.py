# SPDX-License-Identifier: Apache-2.0
"""What each node of an ONNX file takes in onnxruntime, by its own profile."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slimrank.deploy._measure_script import RunNode, profile_session
from slimrank.deploy._node_times import (
    Graph,
    GraphNode,
    NodeTime,
    Profiler,
    nearest_product,
    sources_of,
)
from slimrank.deploy._onnx import KEPT_NOTE, feeds_of, onnx_package, open_session, session_feeds
from slimrank.deploy._program import Program
from slimrank.forward import Batch

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ROUNDINGS = ("QuantizeLinear", "DequantizeLinear")
# What onnxruntime hangs on the name of a convolution in its own layout of channels.
_LAYOUT = "_nchwc"


def profile_onnx(path: Path, program: Program, threads: int) -> Profiler:
    """Opens an ONNX file in onnxruntime, on the CPU, with its profile on.

    Args:
        path: of the file; files of the profile are written beside it.
        program: that was written.
        threads: of onnxruntime.

    Returns:
        What runs a batch some thirty times; of each node the time that a fifth of its runs stay below.

    Raises:
        ExportError: onnxruntime refuses the file.
        MissingPackageError: a package is not installed.
    """
    graph = onnx_graph(path)

    def opened(profile: Path, optimised: Path) -> "InferenceSession":
        return open_session(path.read_bytes(), program, threads, profile=profile, optimised=optimised)

    def profile(batch: Batch) -> tuple[NodeTime, ...]:
        nodes = profile_session(opened, lambda session: session_feeds(session, program, batch), path.parent)
        return nodes_in_graph(nodes, graph)

    return profile


def onnx_graph(path: Path) -> dict[str, GraphNode]:
    """The nodes of an ONNX file by the values that they make.

    Args:
        path: of the file.

    Raises:
        MissingPackageError: the package is not installed.
    """
    return _graph_of(onnx_package("onnx").load(path, load_external_data=False))


def onnx_inputs(path: Path, program: Program, batch: Batch) -> dict[str, NDArray[np.generic]]:
    """A batch as onnxruntime takes it.

    Args:
        path: of the file.
        program: that was written.
        batch: of real inputs.

    Returns:
        Arrays by the names of the inputs that the file has.

    Raises:
        ExportError: an input of a type that numpy does not have.
        MissingPackageError: the package is not installed.
    """
    feeds = feeds_of(program, onnx_package("onnx").load(path, load_external_data=False), batch)
    return {name: np.asarray(value) for name, value in feeds.items()}


def nodes_in_graph(nodes: Iterable[RunNode], graph: Graph) -> tuple[NodeTime, ...]:
    """What nodes took, with the modules that they belong to.

    Args:
        nodes: as onnxruntime ran them.
        graph: as it was exported.

    Returns:
        The same nodes.
    """
    times = []
    for node in nodes:
        value = _value_of(node, graph)
        if value is not None and any(word in node.kind for word in ("Conv", "Gemm", "MatMul")):
            # Fused: it has the name of the last operation, and what takes the time is the product.
            value = nearest_product(graph, value) or value
        times.append(
            NodeTime(
                name=node.name,
                kind=node.kind,
                module="" if value is None else graph[value].module,
                sources=() if value is None else sources_of(graph, value),
                nanoseconds=node.nanoseconds,
            )
        )
    return tuple(times)


def _value_of(node: RunNode, graph: Graph) -> str | None:
    """The value of the exported graph that a node of the runtime makes; None where it has none."""
    plain = node.name.removesuffix(_LAYOUT)
    for value in (plain, plain.removeprefix("node_"), *node.values):
        if value in graph:
            return value
    return None


def _graph_of(model: "ModelProto") -> dict[str, GraphNode]:
    """The nodes of a file by the values that they make."""
    weights = {weight.name for weight in model.graph.initializer}
    found: dict[str, GraphNode] = {}
    for node in model.graph.node:
        inputs = tuple(name for name in node.input if name and name not in weights)
        if not inputs:
            # Weights that are stored in int8, for example.
            weights.update(node.output)
        is_product = node.op_type in _PRODUCTS
        module = _module_of({entry.key: entry.value for entry in node.metadata_props})
        if node.op_type in _ROUNDINGS and inputs and inputs[0] in found:
            # To int8 and back: put there when the file was quantised, and so of no module of its own.
            module = found[inputs[0]].module
        graph_node = GraphNode(
            module=module,
            inputs=inputs,
            is_product=is_product,
            has_weight=is_product and any(name in weights for name in node.input),
        )
        found |= dict.fromkeys(node.output, graph_node)
        # Outputs of the file have other names than their nodes.
        if node.name:
            found.setdefault(node.name, graph_node)
    return found


def _module_of(notes: Mapping[str, str]) -> str:
    """The user's innermost module, from a note such as "['', 'model', 'model.fc', 'linear']"."""
    scopes = ast.literal_eval(notes.get(KEPT_NOTE, "[]"))
    modules = [str(scope) for scope in scopes[:-1]]
    return modules[-1].partition("model.")[2] if modules else ""
