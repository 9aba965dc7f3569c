# SPDX-License-Identifier: Apache-2.0
"""What each operation of a ``.pte`` file takes in ExecuTorch, by its event tracer."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from slimrank._errors import ExportError
from slimrank.deploy._executorch import executorch_inputs, executorch_package, set_executorch_threads
from slimrank.deploy._measure_script import PROFILE_WARM_UP, profile_time
from slimrank.deploy._node_times import (
    Graph,
    NodeTime,
    Profiler,
    program_graph,
    sources_of,
)
from slimrank.deploy._program import Program
from slimrank.deploy._quiet import quiet_exporter
from slimrank.forward import Batch

_RUNS = 20
# Names of XNNPACK's operations that multiply by weights: (N, C) for Linear layers and 1x1 convolutions.
_PRODUCTS = ("Convolution", "Deconvolution", "Fully Connected")
# Events that hold others: whole delegates, whole runs, and calls of kernels that have an event of their own.
_WHOLE = ("DELEGATE_CALL", "Method::")
_CALL, _KERNEL = "OPERATOR_CALL", "native_call"
_RUN = "Execute"
# XNNPACK cuts times off to whole microseconds, by half of one in the middle; ns.
_CUT = 500.0


class Event(Protocol):
    """An event of a trace, in ExecuTorch's words."""

    name: str | None
    delegate_debug_id_str: str | None
    start_time: int
    end_time: int


def profile_executorch(path: Path, program: Program, threads: int) -> Profiler:
    """Opens a file in ExecuTorch with its event tracer.

    Args:
        path: of the file.
        program: that was written.
        threads: of ExecuTorch; they belong to the process.

    Returns:
        What runs a batch some twenty times; of each operation the time that a fifth of its runs stay below.

    Raises:
        ExportError: this build of ExecuTorch has no tracer, or its trace cannot be read.
        MissingPackageError: the package is not installed.
    """
    graph = program_graph(program.lowered or program.exported)

    def profile(batch: Batch) -> tuple[NodeTime, ...]:
        set_executorch_threads(threads)
        bindings = executorch_package("executorch.extension.pybindings.portable_lib")
        # Kept while the module runs, which reads its weights from here.
        data = path.read_bytes()
        module = bindings._load_for_executorch_from_buffer(data, enable_etdump=True)
        if not module.has_etdump():
            raise ExportError(
                "this build of ExecuTorch has no event tracer; pip install --upgrade executorch, or take "
                "another backend, such as 'onnxruntime'"
            )
        for _ in range(PROFILE_WARM_UP + _RUNS):
            module.run_method("forward", executorch_inputs(program, batch))
        with tempfile.TemporaryDirectory(prefix="slimrank-trace-") as folder:
            file = Path(folder) / "trace.etdp"
            module.write_etdump_result_to_file(str(file))
            read = executorch_package("executorch.devtools.etdump.serialize").deserialize_from_etdump_flatcc
            with quiet_exporter():
                trace = read(file.read_bytes())
        runs = [
            [event.profile_event for event in run.events if event.profile_event is not None]
            for run in trace.run_data
            if run.name == _RUN
        ]
        return trace_times(runs[PROFILE_WARM_UP:], graph)

    return profile


def trace_times(runs: Sequence[Sequence[Event]], graph: Graph) -> tuple[NodeTime, ...]:
    """Times of operations, from traces of several runs.

    Products come in the order of the graph. What runs between two of them belongs to what comes last
    between them in the graph, a sum with its activation for example.

    Args:
        runs: events of each.
        graph: of the program.

    Returns:
        By operation, in order.

    Raises:
        ExportError: the traces have other products than the graph.
    """
    names = [_names(run) for run in runs]
    wanted = [name for name, node in graph.items() if node.is_product and node.has_weight]
    found = [name for name in names[0] if name.startswith(_PRODUCTS)]
    if len(found) != len(wanted) or any(other != names[0] for other in names):
        raise ExportError(
            f"ExecuTorch's trace has {len(found)} products with weights, and the program has {len(wanted)}: "
            "some run outside XNNPACK, so that there are no times of layers; take another backend, such as "
            "'onnxruntime'"
        )
    times = [
        [
            event.end_time - event.start_time + (_CUT if event.delegate_debug_id_str else 0.0)
            for event in column
        ]
        for column in zip(*(_parts(run) for run in runs), strict=True)
    ]
    values = _values(names[0], graph, wanted)
    return tuple(
        NodeTime(
            name=f"{number} {name}",
            kind=name.partition(" #")[0],
            module="" if value is None else graph[value].module,
            sources=() if value is None else sources_of(graph, value),
            nanoseconds=profile_time(entries),
        )
        for number, (name, value, entries) in enumerate(zip(names[0], values, times, strict=True))
    )


def _parts(run: Sequence[Event]) -> list[Event]:
    """The events of a run that hold no others."""
    names = ["", *(event.name or "" for event in run)]
    return [
        event
        for event, (before, name) in zip(run, pairwise(names), strict=True)
        if not name.startswith(_WHOLE) and not (name == _CALL and before.startswith(_KERNEL))
    ]


def _names(run: Sequence[Event]) -> list[str]:
    return [event.delegate_debug_id_str or event.name or "" for event in _parts(run)]


def _values(names: Sequence[str], graph: Graph, wanted: Sequence[str]) -> Iterator[str | None]:
    """The value of the graph that each event makes; None before the first product."""
    after = _last_after(graph, wanted)
    products = iter(wanted)
    current: str | None = None
    for name in names:
        if name.startswith(_PRODUCTS):
            current = next(products)
            yield current
        else:
            yield None if current is None else after[current]


def _last_after(graph: Graph, wanted: Sequence[str]) -> Mapping[str, str]:
    """Of each product, the last value before the next one; itself where there is none between."""
    order = list(graph)
    positions = [*(order.index(name) for name in wanted), len(order)]
    return {order[start]: order[end - 1] for start, end in pairwise(positions)}
