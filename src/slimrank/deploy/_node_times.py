# SPDX-License-Identifier: Apache-2.0
"""What each node of a runtime takes, and which modules it belongs to."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from slimrank.deploy._program import node_layer
from slimrank.forward import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """One node of a file, as its runtime runs it.

    Attributes:
        name: in the runtime.
        kind: of the operation, in the runtime's word.
        module: innermost module that it was exported from; "" for the model itself, or where it is unknown.
        sources: modules of the nearest products with weights that its inputs come from, itself left out.
        nanoseconds: of one run.
        is_beside: the runtime put it behind a product of ``module``, and it is no part of that.
    """

    name: str
    kind: str
    module: str
    sources: tuple[str, ...]
    nanoseconds: float
    is_beside: bool = False


# Runs a batch with the runtime's own profile, and tells what each node took.
Profiler = Callable[[Batch], tuple[NodeTime, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """A node of the exported graph, by the name of the value that it makes.

    Attributes:
        module: innermost module that it was exported from.
        inputs: names of the values that it reads.
        is_product: it is a convolution or a product of matrices.
        has_weight: one factor of the product is a weight.
    """

    module: str
    inputs: tuple[str, ...]
    is_product: bool = False
    has_weight: bool = False


Graph = Mapping[str, GraphNode]
_PRODUCTS = frozenset(
    {
        *("convolution", "linear", "addmm", "mm", "bmm", "matmul", "baddbmm"),
        *(f"conv{what}{dims}d" for what in ("", "_transpose") for dims in (1, 2, 3)),
    }
)


def program_graph(lowered: ExportedProgram) -> dict[str, GraphNode]:
    """The nodes of a program by name, in the order that they run.

    Args:
        lowered: the program, as its file has it.
    """
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


def nearest_product(graph: Graph, name: str) -> str | None:
    """The product whose result a value is, or comes from through other operations; the nearest one.

    Args:
        graph: of the file.
        name: of a value.

    Returns:
        Name of the value of the product; None where there is none.
    """
    return next((found for found in _upwards(graph, name) if graph[found].is_product), None)


def sources_of(graph: Graph, name: str) -> tuple[str, ...]:
    """Modules of the nearest products with weights that the inputs of a value come from.

    Args:
        graph: of the file.
        name: of a value.

    Returns:
        Their names, each once.
    """
    return _sources_of_all(graph, graph[name].inputs)


def sources_behind(graph: Graph, name: str) -> tuple[str, ...]:
    """``sources_of`` a node that a runtime put behind a value: its own product counts, too."""
    return _sources_of_all(graph, (name,))


def _sources_of_all(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """Modules of the nearest products with weights among values and what they come from."""
    found: dict[str, None] = {}
    waiting, seen = list(names), set[str]()
    while waiting:
        value = waiting.pop()
        if value in seen or value not in graph:
            continue
        seen.add(value)
        node = graph[value]
        if node.is_product and node.has_weight:
            found[node.module] = None
        else:
            waiting += node.inputs
    return tuple(sorted(found))


def _upwards(graph: Graph, name: str) -> list[str]:
    """A value, and all that it comes from, the nearest first."""
    found, waiting = dict[str, None](), [name]
    while waiting:
        following: list[str] = []
        for value in waiting:
            if value in graph and value not in found:
                found[value] = None
                following += graph[value].inputs
        waiting = following
    return list(found)
