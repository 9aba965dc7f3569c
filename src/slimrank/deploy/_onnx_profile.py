# SPDX-License-Identifier: Apache-2.0
"""What each node of an ONNX file takes in onnxruntime, by its own profile."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slimrank.deploy._node_times import (
    PROFILE_RUNS,
    PROFILE_WARM_UP,
    Graph,
    GraphNode,
    NodeTime,
    Profiler,
    nearest_product,
    profile_time,
    sources_of,
)
from slimrank.deploy._onnx import KEPT_NOTE, onnx_package, open_session, session_feeds
from slimrank.deploy._program import Program
from slimrank.forward import Batch

if TYPE_CHECKING:
    from onnx import ModelProto

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ROUNDINGS = ("QuantizeLinear", "DequantizeLinear")
# What onnxruntime hangs on the name of a convolution in its own layout of channels, and on that of an event.
_LAYOUT, _EVENT = "_nchwc", "_kernel_time"


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
    onnx = onnx_package("onnx")
    graph = _graph_of(onnx.load(path, load_external_data=False))

    def profile(batch: Batch) -> tuple[NodeTime, ...]:
        optimised = path.with_name("optimised.onnx")
        session = open_session(
            path.read_bytes(), program, threads, profile=path.with_name("profile"), optimised=optimised
        )
        feeds = session_feeds(session, program, batch)
        for _ in range(PROFILE_WARM_UP + PROFILE_RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
        made = {
            node.name: tuple(node.output)
            for node in onnx.load(optimised, load_external_data=False).graph.node
        }
        return _node_times(events, graph, made)

    return profile


def _node_times(
    events: list[dict[str, object]], graph: Graph, made: Mapping[str, tuple[str, ...]]
) -> tuple[NodeTime, ...]:
    """Times by node.

    Args:
        events: of onnxruntime's profile.
        graph: as it was exported.
        made: values of each node of the graph as onnxruntime made it.
    """
    micro: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        name, args = str(event.get("name", "")), event.get("args")
        if name.endswith(_EVENT) and isinstance(args, dict) and "op_name" in args:
            key = (name.removesuffix(_EVENT), str(args["op_name"]), str(args.get("node_index")))
            micro.setdefault(key, []).append(float(str(event["dur"])))
    times = []
    for (name, kind, _), found in micro.items():
        value = _value_of(name, graph, made)
        if value is not None and any(word in kind for word in ("Conv", "Gemm", "MatMul")):
            # Fused: it has the name of the last operation, and what takes the time is the product.
            value = nearest_product(graph, value) or value
        times.append(
            NodeTime(
                name=name,
                kind=kind,
                module="" if value is None else graph[value].module,
                sources=() if value is None else sources_of(graph, value),
                nanoseconds=1000 * profile_time(found[PROFILE_WARM_UP:]),
            )
        )
    return tuple(times)


def _value_of(name: str, graph: Graph, made: Mapping[str, tuple[str, ...]]) -> str | None:
    """The value of the exported graph that a node of the runtime makes; None where it has none."""
    plain = name.removesuffix(_LAYOUT)
    for value in (plain, plain.removeprefix("node_"), *made.get(name, ())):
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
