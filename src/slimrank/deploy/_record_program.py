# SPDX-License-Identifier: Apache-2.0
"""A captured program written as JSON and tensors, which ``_recorded_model`` computes without code."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind
from torch.fx import GraphModule, Node

from slimrank._errors import ExportError
from slimrank._version import __version__
from slimrank.deploy._graph_values import function_name, value_to_json
from slimrank.deploy._named_model import output_tensors
from slimrank.deploy._outline import outline_of
from slimrank.deploy._program import Program, node_origin
from slimrank.files import Json

# Written into each file; a higher number would keep older versions from misreading a new layout.
PROGRAM_FORMAT = 1
# Before the names of tensors that the model does not name; longer where the model has this name itself.
_CONSTANTS = "constants"
# What the wrapper that names inputs and outputs puts before the names of the model's tensors.
_PREFIX = "model."
# Calls a part of the graph with gradients off or on: the part is written in line.
_GRAD_SWITCH = "wrap_with_set_grad_enabled"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """A program as data.

    Attributes:
        facts: JSON: arguments, operations, outputs.
        tensors: those that are in no state dict of the model: constants, and buffers that it does not save.
    """

    facts: dict[str, Json]
    tensors: dict[str, Tensor]


def record_program(program: Program, model: nn.Module, result: object) -> Recorded:
    """Writes a captured program as data.

    Args:
        program: captured of a copy of the model, with all its modules.
        model: the model, whose parameters are named.
        result: what the copy returned for a batch, for the structure of its outputs.

    Returns:
        The data.

    Raises:
        ExportError: the program calls what is no operation of torch's own, or changes what it keeps.
    """
    named, exported = program.model, program.exported
    tensors: dict[str, Tensor] = {}
    sources = _sources(exported, tensors, named.title, _free_prefix(named.model))
    writer = _Writer(named.title)
    placeholders = exported.graph.find_nodes(op="placeholder")
    results = writer.write(exported.graph_module, {node: sources.get(node.name) for node in placeholders})
    inputs = named.inputs_of(program.batch)
    arguments = dict(zip(named.arguments, (*inputs.args, *inputs.kwargs.values()), strict=True))
    input_numbers, output_numbers = count(), count()
    returned = {id(tensor) for _, tensor in output_tensors(result)}
    facts: dict[str, Json] = {
        "format": PROGRAM_FORMAT,
        "slimrank": __version__,
        "torch": torch.__version__,
        "class": named.title,
        "positional": list(named.positional),
        "keywords": list(named.keywords),
        "arguments": {
            name: outline_of(arguments.get(name, named.fixed.get(name)), lambda _: next(input_numbers))
            for name in (*named.positional, *named.keywords)
        },
        "inputs": _input_facts(program),
        "parameters": {
            name: parameter.requires_grad
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        "nodes": writer.nodes,
        "results": results,
        "outputs": outline_of(
            result, lambda tensor: next(output_numbers) if id(tensor) in returned else None
        ),
    }
    return Recorded(facts=facts, tensors=tensors)


def _input_facts(program: Program) -> list[Json]:
    """Name, shape (None for the number of samples) and dtype of every input tensor."""
    n_samples = program.batch.n_samples
    facts: list[Json] = []
    for name, tensor in program.model.input_tensors(program.batch).items():
        shape: list[Json] = list(tensor.shape)
        if program.is_dynamic and shape and shape[0] == n_samples:
            shape[0] = None
        facts.append({"name": name, "shape": shape, "dtype": value_to_json(tensor.dtype)})
    return facts


def _free_prefix(model: nn.Module) -> str:
    """What the names of constants begin with: no tensor and no module of the model is called so."""
    prefix = _CONSTANTS
    while hasattr(model, prefix):
        prefix += "_"
    return prefix


def _sources(
    exported: ExportedProgram, tensors: dict[str, Tensor], title: str, prefix: str
) -> dict[str, Json]:
    """What each input of the graph is: an input of the model, or one of its tensors.

    Args:
        exported: the program.
        tensors: gets those that are in no state dict, by name.
        title: of the model, for errors.
        prefix: of the names of constants.

    Returns:
        References by the name of the graph's input.
    """
    signature = exported.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        raise ExportError(
            f"{title} changes tensors that it keeps while it runs, so its architecture cannot be recorded"
        )
    sources: dict[str, Json] = {}
    inputs = count()
    for spec in signature.input_specs:
        # A container may hold more than tensors; the graph does not read that.
        if isinstance(spec.arg, ConstantArgument):
            continue
        if spec.kind is InputKind.USER_INPUT:
            sources[spec.arg.name] = {"input": next(inputs)}
            continue
        name = _tensor_name(spec, f"{prefix}.{len(tensors)}", title)
        sources[spec.arg.name] = {"tensor": name}
        if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
            tensors[name] = exported.constants[str(spec.target)]
    return sources


def _tensor_name(spec: InputSpec, constant: str, title: str) -> str:
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return str(spec.target).removeprefix(_PREFIX)
    if spec.kind is InputKind.CONSTANT_TENSOR:
        return constant
    raise ExportError(
        f"{title} computes with {spec.target}, which is no tensor ({spec.kind.name}), so its architecture "
        "cannot be recorded"
    )


class _Writer:
    """Operations of a graph in the order in which they are computed.

    Attributes:
        nodes: so far, as JSON.

    Args:
        title: of the model, for errors.
    """

    def __init__(self, title: str) -> None:
        self.nodes: list[Json] = []
        self._title = title

    def write(self, module: GraphModule, values: dict[Node, Json]) -> list[Json]:
        """Writes a graph.

        Args:
            module: that holds it, and the graphs that it calls.
            values: what stands for its inputs.

        Returns:
            What stands for its outputs.
        """
        results: Json = []
        for node in module.graph.nodes:
            if node.op == "output":
                results = self._value(node.args[0], values, node)
            elif node.op == "call_function":
                values[node] = self._called(node, module, values)
            elif node.op not in ("placeholder", "get_attr"):
                raise self._refused(node, f"it has a node {node.op}")
        return list(results) if isinstance(results, list) else [results]

    def _called(self, node: Node, module: GraphModule, values: dict[Node, Json]) -> Json:
        if getattr(node.target, "__name__", "") == _GRAD_SWITCH:
            inner = getattr(module, str(_node(node.args[1]).target))
            given = [self._value(value, values, node) for value in node.args[2:]]
            return self.write(inner, dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True)))
        if node.target is operator.getitem and isinstance(values.get(_node(node.args[0])), list):
            # Of what was written in line: the parts are known.
            return values[_node(node.args[0])][node.args[1]]  # type: ignore[index]
        name = function_name(node.target)
        if name is None:
            raise self._refused(
                node, "that is no operation of torch's own on tensors (aten), or one without checks"
            )
        entry: dict[str, Json] = {
            "call": name,
            "args": [self._value(value, values, node) for value in node.args],
        }
        if node.kwargs:
            entry["kwargs"] = {key: self._value(value, values, node) for key, value in node.kwargs.items()}
        self.nodes.append(entry)
        return {"node": len(self.nodes) - 1}

    def _value(self, value: object, values: Mapping[Node, Json], node: Node) -> Json:
        if isinstance(value, Node):
            if value not in values:
                raise self._refused(node, f"it is given {value.name}, a part of the program")
            return values[value]
        if isinstance(value, tuple | list):
            return [self._value(item, values, node) for item in value]
        try:
            return value_to_json(value)
        except TypeError as error:
            raise self._refused(node, f"it is given {error}") from error

    def _refused(self, node: Node, why: str) -> ExportError:
        return ExportError(
            f"the architecture of {self._title} cannot be recorded: {node_origin(node)}: {why}"
        )


def _node(value: object) -> Node:
    if not isinstance(value, Node):
        raise TypeError(f"{value!r} is no node of a graph")
    return value
