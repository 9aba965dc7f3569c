# SPDX-License-Identifier: Apache-2.0
"""What each node of an IR takes in OpenVINO, by its own profile."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from slimrank.deploy._measure_script import profile_time
from slimrank.deploy._node_times import Graph, NodeTime, Profiler, program_graph, sources_of
from slimrank.deploy._openvino import compile_model, give_inputs, openvino_core, read_model
from slimrank.deploy._program import Program
from slimrank.forward import Batch

if TYPE_CHECKING:
    from openvino import InferRequest

# The profile counts whole microseconds of the average over all runs since the graph was compiled. Single runs
# are differences, which rounding spoils the more the more runs there were: so a graph makes few, and is
# compiled again until there are enough.
_COMPILED, _RUNS, _LEFT_OUT = 6, 8, 2
# What is interrupted takes several times as long, and what is not about the same each time.
_SHARE = 0.1
# Seconds below which microseconds are too coarse for one run of a node: all runs of a graph count as one.
_BRIEF, _CUT = 50e-6, 0.5e-6
# Name and kind.
_Node = tuple[str, str]


def profile_openvino(path: Path, program: Program, threads: int) -> Profiler:
    """Opens an IR in OpenVINO on the CPU, in float32, with its profile on.

    Args:
        path: of the ``.xml`` file.
        program: that was written.
        threads: of OpenVINO.

    Returns:
        What runs a batch some fifty times; of each node the time that a tenth of its runs stay below.

    Raises:
        ExportError: OpenVINO refuses the file.
        MissingPackageError: the package is not installed.
    """
    core = openvino_core()
    model = read_model(core, path, program)
    graph = program_graph(program.lowered or program.exported)

    def profile(batch: Batch) -> tuple[NodeTime, ...]:
        averages = []
        for _ in range(_COMPILED):
            compiled = compile_model(core, model, program, threads, profile=True)
            request = compiled.create_infer_request()
            give_inputs(request, program, batch)
            averages.append([_averages(request) for _ in range(_RUNS)])
        return _node_times(averages, graph)

    return profile


def _averages(request: "InferRequest") -> dict[_Node, float]:
    """Runs a batch; then what each node took, s, on average over all runs so far."""
    request.infer()
    return {
        (node.node_name, node.node_type): node.real_time.total_seconds()
        for node in request.get_profiling_info()
        if node.status.name == "EXECUTED"
    }


def single_runs(averages: Sequence[float]) -> tuple[float, ...]:
    """Times of the runs of one node, from averages that grow by a run each.

    Args:
        averages: over the first run, the first two, and so on, s.

    Returns:
        Of each run but the first ones, which warm up; of a node that is too brief for that, their mean.
    """
    # Averages are cut off, by half a microsecond in the middle.
    sums = [count * (average + _CUT) for count, average in enumerate(averages, start=1)]
    counted = sums[_LEFT_OUT - 1 :]
    mean = (counted[-1] - counted[0]) / (len(counted) - 1)
    if mean < _BRIEF:
        return (mean,)
    return tuple(later - sooner for sooner, later in pairwise(counted))


def _node_times(averages: Sequence[Sequence[Mapping[_Node, float]]], graph: Graph) -> tuple[NodeTime, ...]:
    """Times by node.

    Args:
        averages: by node, of each graph that was compiled after each of its runs.
        graph: as it was exported.
    """
    found: dict[_Node, list[float]] = {}
    for runs in averages:
        # An average of less than a microsecond counts as if the node had not been run.
        for key in dict.fromkeys(key for run in runs for key in run):
            found.setdefault(key, []).extend(single_runs([run.get(key, 0.0) for run in runs]))
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
                nanoseconds=1e9 * max(_CUT, profile_time(seconds, _SHARE)),
            )
        )
    return tuple(times)
