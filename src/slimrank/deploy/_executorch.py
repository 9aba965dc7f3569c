# SPDX-License-Identifier: Apache-2.0
"""The format "executorch": one ``.pte`` file for phones, run by XNNPACK on the CPU."""

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree

from slimrank._errors import ExportError
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program, node_origin
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.forward import Batch
from slimrank.records import Note

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager
    from executorch.runtime import Runtime as ExecutorchRuntime

EXTRA = "executorch"
PACKAGES = ("executorch",)
# Samples that a file takes at most where the caller does not time more at once. Memory is planned for so
# many; without a bound of ours ExecuTorch takes 15, and says nothing of it.
LARGEST_BATCH = 8
# Kernels that compute sizes, and views that copy nothing.
_FREE = ("executorch_prim::", "aten::sym_")
_ADVICE = "take format='torch' or 'onnx', or replace the operation by others"
_METHOD = "forward"


def write_executorch(program: Program, path: Path) -> ExportedProgram:
    """Writes a program for ExecuTorch: what XNNPACK has goes there, the rest to ExecuTorch's own kernels.

    Tensors go in and come out by position. Their names are kept in the file: it has the methods
    ``input_names`` and ``output_names``, which take nothing and return text.

    Args:
        program: the captured model.
        path: of the file.

    Returns:
        The program without changes in place, before it was taken apart.

    Raises:
        ExportError: an operation that ExecuTorch lacks.
        MissingPackageError: the package is not installed.
    """
    functional: ExportedProgram = program.exported
    exir = executorch_package("executorch.exir")
    try:
        with quiet_exporter(), torch.no_grad():
            functional = _functional(program)
        made = _lowered(exir, functional, _names(program, functional))
    except Exception as error:
        raise ExportError(_refusal(program, error)) from error
    lacking = _operators(made.buffer).keys() - set(_runtime().operator_registry.operator_names)
    if lacking:
        raise ExportError(_lacking(program, min(lacking)))
    with path.open("wb") as file:
        made.write_to_file(file)
    return functional


def open_executorch(path: Path, program: Program, threads: int) -> Runtime:
    """Opens a file in ExecuTorch, with XNNPACK on the CPU.

    Args:
        path: of the file.
        program: that was written.
        threads: of ExecuTorch. They belong to the process: programs that were loaded before with another
            number must be loaded again.

    Returns:
        What runs batches.

    Raises:
        ExportError: ExecuTorch refuses the file.
        MissingPackageError: the package is not installed.
    """
    set_executorch_threads(threads)
    return _opened(path.read_bytes(), program, len(program.outputs))


def set_executorch_threads(threads: int) -> None:
    """So many threads of ExecuTorch, for the whole process.

    Args:
        threads: wanted.
    """
    bindings = executorch_package("executorch.extension.pybindings.portable_lib")
    # Only where it must be: the pool is exchanged under programs that were loaded before.
    if bindings._threadpool_get_thread_count() != threads:
        bindings._unsafe_reset_threadpool(threads)


def executorch_inputs(program: Program, batch: Batch) -> list[object]:
    """The inputs of a file, by position: copies, since it may work on them in place.

    Args:
        program: that was written.
        batch: to run.
    """
    tensors = iter(program.model.input_tensors(batch).values())
    return [
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else _copy(next(tensors))
        for spec in program.exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]


def open_executorch_inside(
    path: Path, program: Program, names: Sequence[str]
) -> tuple[tuple[str, ...], Runtime]:
    """Writes the program anew with inner values as its outputs: a file cannot be asked for others.

    Args:
        path: of the file.
        program: that was written.
        names: of values that are wanted.

    Returns:
        The names that the new file has, and what runs batches to these values.
    """
    with quiet_exporter(), torch.no_grad():
        functional = _functional(program)
    found = _numbers(functional, names)
    inside = _with_outputs(functional, found)
    made = _lowered(executorch_package("executorch.exir"), inside, {})
    return found, _opened(made.buffer, program, len(found))


def executorch_notes(path: Path, program: Program) -> list[Note]:
    """How many samples a file takes, and what runs outside XNNPACK.

    Args:
        path: of the file.
        program: that was written.

    Returns:
        A note for each that applies.
    """
    notes = []
    if program.is_dynamic:
        text = (
            f"the file takes 1 to {program.largest_batch} samples at a time, for which memory is kept; a "
            "larger batch= moves that"
        )
        notes.append(Note(where="batch", text=text))
    outside = {name: count for name, count in _operators(path.read_bytes()).items() if not _is_free(name)}
    if outside:
        count = sum(outside.values())
        calls = ", ".join(f"{name.partition('.')[0]} ({count})" for name, count in sorted(outside.items()))
        text = f"{count} {'operation runs' if count == 1 else 'operations run'} outside XNNPACK: {calls}"
        notes.append(Note(where="executorch", text=text))
    return notes


def _functional(program: Program) -> ExportedProgram:
    """A program without changes in place, weights and inputs in plain order, which XNNPACK's passes want."""
    weights = program.exported.state_dict
    for name, tensor in weights.items():
        if not tensor.is_contiguous():
            plain = tensor.detach().contiguous()
            weights[name] = nn.Parameter(plain, False) if isinstance(tensor, nn.Parameter) else plain
    for node in program.exported.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            node.meta["val"] = value.contiguous()
    functional: ExportedProgram = program.exported.run_decompositions({})
    return functional


def _lowered(
    exir: ModuleType, functional: ExportedProgram, constants: dict[str, object]
) -> "ExecutorchProgramManager":
    partitioners = executorch_package("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    with quiet_exporter(), torch.no_grad(), _free_batch(functional):
        # The check of the file tells of state that outputs depend on; other state may start as it likes.
        warnings.filterwarnings("ignore", "Mutation on a buffer in the model is detected", UserWarning)
        edge = exir.to_edge_transform_and_lower(
            functional, partitioner=[partitioners.XnnpackPartitioner()], constant_methods=constants
        )
        return edge.to_executorch()


@contextlib.contextmanager
def _free_batch(functional: ExportedProgram) -> Iterator[None]:
    """Lets no operation bound the batch: torch picks kernels of its own for the example, of less than 16."""
    with contextlib.ExitStack() as stack:
        for node in functional.graph.nodes:
            value = node.meta.get("val")
            sizes = value.shape if node.op == "placeholder" and isinstance(value, Tensor) else ()
            for size in sizes:
                if isinstance(size, torch.SymInt):
                    stack.enter_context(size.node.shape_env.suppress_guards())
        yield


def _names(program: Program, functional: ExportedProgram) -> dict[str, object]:
    """Methods of the file that return the names of all that goes in and comes out, in order."""
    inputs = iter(program.inputs)
    specs = [spec for spec in functional.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    outputs = [
        f"changed_{spec.target}"
        for spec in functional.graph_signature.output_specs
        if spec.kind is OutputKind.USER_INPUT_MUTATION
    ]
    return {
        # None inside a container is an input, too.
        "input_names": [
            next(inputs) if isinstance(spec.arg, TensorArgument) else spec.arg.name for spec in specs
        ],
        "output_names": [*outputs, *program.outputs],
    }


def _opened(data: bytes, program: Program, n_outputs: int) -> Runtime:
    try:
        loaded = _runtime().load_program(data)
        loaded.load_method(_METHOD)
    except Exception as error:
        raise ExportError(
            f"ExecuTorch {version('executorch')} refuses the file of {program.model.title}: {told(error)}; "
            f"{_ADVICE}"
        ) from error

    def bind(batch: Batch) -> Bound:
        given = executorch_inputs(program, batch)

        def run() -> Sequence[Tensor]:
            try:
                # Asked of the program each time, which keeps it: a method alone outlives its memory.
                results = loaded.load_method(_METHOD).execute(given)
            except Exception as error:
                raise ExportError(
                    f"ExecuTorch fails on a batch of {batch.n_samples}: {error!s}; it printed the reason; "
                    f"{_ADVICE}"
                ) from error
            # Inputs that were changed come first.
            return list(results[len(results) - n_outputs :])

        return run

    return bind


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _operators(data: bytes) -> Counter[str]:
    """How often a file calls each kernel that is not XNNPACK's, by names as ``aten::add.out``."""
    read = executorch_package("executorch.exir._serialize._program").deserialize_pte_binary
    (plan,) = [plan for plan in read(data).program.execution_plan if plan.name == _METHOD]
    names = [f"{entry.name}.{entry.overload}" if entry.overload else entry.name for entry in plan.operators]
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    return Counter(names[call.op_index] for call in calls if type(call).__name__ == "KernelCall")


def _is_free(name: str) -> bool:
    return name.startswith(_FREE)


def _numbers(functional: ExportedProgram, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that are tensors of floating point."""
    values = {node.name: node.meta.get("val") for node in functional.graph.nodes}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tuple(name for name in names if name in tensors and tensors[name].is_floating_point())


def _with_outputs(functional: ExportedProgram, names: Sequence[str]) -> ExportedProgram:
    """A program with the values of these nodes as its outputs; the one that is given changes, too."""
    graph = functional.graph
    nodes = {node.name: node for node in graph.nodes}
    (output,) = [node for node in graph.nodes if node.op == "output"]
    output.args = (tuple(nodes[name] for name in names),)
    output.meta["val"] = tuple(nodes[name].meta["val"] for name in names)
    specs = [
        OutputSpec(kind=OutputKind.USER_OUTPUT, arg=TensorArgument(name=name), target=None) for name in names
    ]
    whole = functional.module_call_graph[0].signature
    if whole is None:
        raise ValueError("the program does not tell how it is called")
    signature = ModuleCallSignature(
        inputs=[], outputs=[], in_spec=whole.in_spec, out_spec=_pytree.tree_structure(tuple(names))
    )
    return ExportedProgram(
        root=functional.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(functional.graph_signature.input_specs, specs),
        state_dict=functional.state_dict,
        range_constraints=functional.range_constraints,
        module_call_graph=[ModuleCallEntry(fqn="", signature=signature)],
        example_inputs=functional.example_inputs,
        constants=functional.constants,
        verifiers=functional.verifiers,
    )


def _runtime() -> "ExecutorchRuntime":
    return executorch_package("executorch.runtime").Runtime.get()


def executorch_package(name: str) -> ModuleType:
    """A module of ExecuTorch.

    Raises:
        MissingPackageError: it is not installed.
    """
    # Libraries that it brings print and warn when they are imported.
    with quiet_exporter():
        return import_package(name, extra=EXTRA, what="format='executorch'")


def _lacking(program: Program, operation: str) -> str:
    """That there is no kernel for an operation as ``aten::sort.values``."""
    name = operation.partition(".")[0].replace("::", ".")
    return f"{program.model.title}: ExecuTorch has no kernel for {_origin(program, name)}; {_ADVICE}"


def _refusal(program: Program, error: BaseException) -> str:
    """Why a program cannot be lowered, with operation and module."""
    title = program.model.title
    message = str(error)
    found = re.search(r"(?:torch\._ops\.|EdgeOpOverload: )(\w+\.\w+)\S* is not in Core ATen", message)
    found = found or re.search(r"Missing out variants: \{'(\w+::\w+)", message)
    if found is not None:
        operation = _origin(program, found[1].replace("::", "."))
        return f"{title}: ExecuTorch has no translation of {operation}; {_ADVICE}"
    why = " ".join(line.strip() for line in told(error).splitlines() if line.strip())
    return f"{title} cannot be written for ExecuTorch: {why}; {_ADVICE}"


def _origin(program: Program, operation: str) -> str:
    """Module and line of an operation as ``aten.sort``; of the one it came from, where it was taken apart."""
    with quiet_exporter():
        lowered = program.exported.run_decompositions()
    for node in (*program.exported.graph.nodes, *lowered.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith(f"{operation}."):
            return node_origin(node)
    return operation
