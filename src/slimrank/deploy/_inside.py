# SPDX-License-Identifier: Apache-2.0
"""Where in a network a file starts to differ."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from slimrank.deploy._difference import relative_difference
from slimrank.deploy._program import Program, node_origin
from slimrank.deploy._runtime import Runtime
from slimrank.forward import Batch


def first_difference(
    lowered: ExportedProgram,
    program: Program,
    names: Sequence[str],
    runtime: Runtime,
    batch: Batch,
    bound: float,
) -> str | None:
    """The first inner value of a file that differs from the same value in torch.

    Args:
        lowered: the program as it was written: its nodes have the names of the file's values.
        program: that was captured.
        names: of the values that the runtime gives, in its order.
        runtime: with the file.
        batch: to run.
        bound: largest relative difference that counts as equal.

    Returns:
        Operation, module, line and difference in words; None where none of these values differs.
    """
    values = inner_values(lowered, list(program.model.input_tensors(batch).values()))
    found = dict(zip(names, runtime(batch)(), strict=True))
    for node in lowered.graph.nodes:
        if node.name not in found or node.name not in values:
            continue
        difference = relative_difference(values[node.name], found[node.name])
        if difference > bound:
            return f"{node_origin(node)} (differs by {difference:.2g} of its largest value)"
    return None


def inner_names(lowered: ExportedProgram) -> list[str]:
    """Names of everything that a program computes."""
    return [node.name for node in lowered.graph.nodes if node.op == "call_function"]


def inner_values(lowered: ExportedProgram, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every tensor of one run of a program in torch, by the name of its node.

    Args:
        lowered: the program.
        inputs: its input tensors, in order.

    Returns:
        The tensors.
    """
    return _Recorder(lowered).values(inputs)


class _Recorder(torch.fx.Interpreter):
    """Runs a program node by node and keeps every tensor.

    Args:
        lowered: the program.
    """

    def __init__(self, lowered: ExportedProgram) -> None:
        super().__init__(lowered.graph_module)
        self._lowered = lowered
        self._values: dict[str, Tensor] = {}

    def values(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every tensor of one run, by the name of its node."""
        given = iter(inputs)
        lowered = self._lowered
        arguments: list[object] = []
        for spec in lowered.graph_signature.input_specs:
            target = spec.target
            if spec.kind is InputKind.USER_INPUT:
                arguments.append(next(given))
            elif target in lowered.state_dict:
                arguments.append(lowered.state_dict[target])
            else:
                arguments.append(lowered.constants[str(target)])
        with torch.no_grad():
            self.run(*arguments, enable_io_processing=False)
        return self._values

    def run_node(self, n: torch.fx.Node) -> object:
        """One node."""
        result: object = super().run_node(n)
        if isinstance(result, Tensor):
            self._values[n.name] = result
        return result
