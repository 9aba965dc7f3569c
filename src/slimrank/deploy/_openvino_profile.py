# SPDX-License-Identifier: Apache-2.0
"""What each node of an IR takes in OpenVINO, by its own profile."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from slimrank.deploy._measure_script import profile_time
from slimrank.deploy._node_times import Graph, NodeTime, Profiler, program_graph, sources_behind, sources_of
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
# What OpenVINO numbers.
_NUMBER = re.compile(r"_\d+$")
_LAYOUT = "Reorder"
# Name and kind.
RunNode = tuple[str, str]


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
        averages: list[list[Mapping[RunNode, float]]] = []
        inputs: dict[str, tuple[str, ...]] = {}
        for _ in range(_COMPILED):
            compiled = compile_model(core, model, program, threads, profile=True)
            request = compiled.create_infer_request()
            give_inputs(request, program, batch)
            runtime = [
                (
                    node.get_friendly_name(),
                    [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()],
                )
                for node in compiled.get_runtime_model().get_ordered_ops()
            ]
            stable = stable_names([name for name, _ in runtime], graph)
            inputs = {stable[name]: tuple(stable[source] for source in sources) for name, sources in runtime}
            averages.append([_averages(request, stable) for _ in range(_RUNS)])
        return node_times(averages, inputs, graph)

    return profile


def stable_names(names: Iterable[str], graph: Graph) -> dict[str, str]:
    """Names of the nodes of a compiled graph that are the same each time that it is compiled.

    What OpenVINO makes of a node of the file is called after it. All else it numbers, and the numbers grow
    from one compilation to the next.

    Args:
        names: in the order of the compiled graph.
        graph: as it was exported.

    Returns:
        For each name: itself where it has that of a node of the file, else the kind and which of them it is.
    """
    found: dict[str, str] = {}
    counts = Counter[str]()
    for name in names:
        if _value_of(name) in graph:
            found[name] = name
        else:
            kind = _NUMBER.sub("", name)
            found[name] = f"{kind} #{counts[kind]}"
            counts[kind] += 1
    return found


def _value_of(name: str) -> str:
    """The value of the program that a node is called after."""
    return name.partition("/")[0]


def _averages(request: "InferRequest", stable: Mapping[str, str]) -> dict[RunNode, float]:
    """Runs a batch; then what each node took, s, on average over all runs so far."""
    request.infer()
    return {
        (stable.get(node.node_name, node.node_name), node.node_type): node.real_time.total_seconds()
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


def node_times(
    averages: Sequence[Sequence[Mapping[RunNode, float]]],
    inputs: Mapping[str, Sequence[str]],
    graph: Graph,
) -> tuple[NodeTime, ...]:
    """Times by node.

    Args:
        averages: by node, s, of each graph that was compiled after each of its runs.
        inputs: names of the nodes that each node of the compiled graph reads.
        graph: as it was exported.

    Returns:
        The times. A node that OpenVINO put in belongs behind the nearest one of the file that it reads.
    """
    found: dict[RunNode, list[float]] = {}
    for runs in averages:
        # An average of less than a microsecond counts as if the node had not been run.
        for key in dict.fromkeys(key for run in runs for key in run):
            found.setdefault(key, []).extend(single_runs([run.get(key, 0.0) for run in runs]))
    times = []
    for (name, kind), seconds in found.items():
        value: str | None = _value_of(name)
        # Another layout of the channels bears the name of what it follows.
        is_put_in = value not in graph or kind == _LAYOUT
        if value not in graph:
            value = _nearest_of_file(name, inputs, graph)
        sources = () if value is None else (sources_behind if is_put_in else sources_of)(graph, value)
        times.append(
            NodeTime(
                name=name,
                kind=kind,
                module="" if value is None else graph[value].module,
                sources=sources,
                nanoseconds=1e9 * max(_CUT, profile_time(seconds, _SHARE)),
                is_beside=is_put_in and value is not None and graph[value].has_weight,
            )
        )
    return tuple(times)


def _nearest_of_file(name: str, inputs: Mapping[str, Sequence[str]], graph: Graph) -> str | None:
    """The value of the nearest node of the file that a node of the compiled graph reads; None for none."""
    waiting, seen = list(inputs.get(name, ())), set[str]()
    while waiting:
        following: list[str] = []
        for source in waiting:
            if _value_of(source) in graph:
                return _value_of(source)
            if source not in seen:
                seen.add(source)
                following += inputs.get(source, ())
        waiting = following
    return None
