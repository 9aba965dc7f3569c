# SPDX-License-Identifier: Apache-2.0
"""What each node of an IR takes in OpenVINO, by its own profile."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from slimrank.deploy._measure_script import PROFILE_RUNS, PROFILE_WARM_UP, profile_time
from slimrank.deploy._node_times import Graph, GraphNode, NodeTime, Profiler, sources_of
from slimrank.deploy._openvino import compile_model, give_inputs, openvino_core, read_model
from slimrank.deploy._program import Program, node_layer
from slimrank.forward import Batch

if TYPE_CHECKING:
    from openvino import ProfilingInfo

# Nodes run in a thread of OpenVINO's own, which other work on the machine interrupts more often than the
# caller's: most runs of a node are then too long, and only many of them hold some that are not.
_MAX_RUNS, _SECONDS, _SHARE = 200, 6.0, 0.02
_PRODUCTS = ("convolution", "conv1d", "conv2d", "conv3d", "linear", "addmm", "mm", "bmm", "matmul", "baddbmm")


def profile_openvino(path: Path, program: Program, threads: int) -> Profiler:
    """Opens an IR in OpenVINO on the CPU, in float32, with its profile on.

    Args:
        path: of the ``.xml`` file.
        program: that was written.
        threads: of OpenVINO.

    Returns:
        What runs a batch for some seconds, thirty times at least; of each node about its shortest time.

    Raises:
        ExportError: OpenVINO refuses the file.
        MissingPackageError: the package is not installed.
    """
    core = openvino_core()
    compiled = compile_model(core, read_model(core, path, program), program, threads, profile=True)
    graph = _graph_of(program.lowered or program.exported)

    def profile(batch: Batch) -> tuple[NodeTime, ...]:
        request = compiled.create_infer_request()
        give_inputs(request, program, batch)
        runs: list[Sequence[ProfilingInfo]] = []
        for _ in range(PROFILE_WARM_UP):
            request.infer()
        start = time.perf_counter()
        while len(runs) < PROFILE_RUNS or (len(runs) < _MAX_RUNS and time.perf_counter() - start < _SECONDS):
            request.infer()
            runs.append(request.get_profiling_info())
        return _node_times(runs, graph)

    return profile


def _node_times(runs: Sequence[Sequence["ProfilingInfo"]], graph: Graph) -> tuple[NodeTime, ...]:
    """Times by node, of the profile of each run."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for node in run:
            if node.status.name == "EXECUTED":
                key = (node.node_name, node.node_type)
                found.setdefault(key, []).append(node.real_time.total_seconds())
    times = []
    for (name, kind), seconds in found.items():
        # Nodes are called after the node of the program that they were made from. What OpenVINO puts
        # between two nodes bears the names of both, and belongs to neither.
        value = name.partition("/")[0]
        is_known = value in graph
        times.append(
            NodeTime(
                name=name,
                kind=kind,
                module=graph[value].module if is_known else "",
                sources=sources_of(graph, value) if is_known else (),
                nanoseconds=1e9 * profile_time(seconds, _SHARE),
            )
        )
    return tuple(times)


def _graph_of(lowered: ExportedProgram) -> dict[str, GraphNode]:
    """The nodes of a program by name."""
    weights = {
        spec.arg.name
        for spec in lowered.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    found = {}
    for node in lowered.graph.nodes:
        if node.op != "call_function":
            continue
        name = node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""
        is_product = name.partition("::")[2].partition(".")[0] in _PRODUCTS
        inputs = [source.name for source in node.all_input_nodes]
        found[node.name] = GraphNode(
            module=node_layer(node),
            inputs=tuple(name for name in inputs if name not in weights),
            is_product=is_product,
            has_weight=is_product and any(name in weights for name in inputs),
        )
    return found
