# SPDX-License-Identifier: Apache-2.0
"""The format "openvino": a graph in an ``.xml`` file, weights in a ``.bin`` file, run in OpenVINO."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.utils import _pytree

from slimrank._errors import ExportError
from slimrank._version import __version__
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program, node_origin
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.forward import Batch

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

EXTRA = "openvino"
PACKAGES = ("openvino",)
_ADVICE = "take format='torch' or 'onnx', or replace the operation by others"
_FLOAT_ADVICE = "export a float32 model (model.float()), or take format='torch'"


def write_openvino(program: Program, path: Path) -> ExportedProgram:
    """Writes a program as OpenVINO's IR, weights in float32 in a file beside it.

    Args:
        program: the captured model.
        path: of the ``.xml`` file; the ``.bin`` file has its name.

    Returns:
        The program with the operations that OpenVINO translates; its nodes have the names of the file's.

    Raises:
        ExportError: an operation that OpenVINO lacks.
        OSError: the files cannot be written.
        MissingPackageError: the package is not installed.
    """
    openvino = _package("openvino")
    decoder = _package("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    kept = _package("openvino.frontend.pytorch.torchdynamo.export_decompositions").ops_to_not_decompose()
    lowered: ExportedProgram = program.exported
    try:
        with quiet_exporter(), torch.no_grad():
            table = torch.export.default_decompositions()
            for operation in kept:
                table.pop(operation, None)
            lowered = program.exported.run_decompositions(table)
            graph, positions = _plain_graph(lowered)
            # Not the ExportedProgram itself: then keys of a dict are taken for names of tensors, and every
            # dimension is made free.
            model = openvino.convert_model(decoder(graph))
            _restore_inputs(openvino, model, graph)
            _name_values(openvino, model, program, positions)
            model.validate_nodes_and_infer_types()
            model.set_rt_info(__version__, ["slimrank", "version"])
    except Exception as error:
        raise ExportError(_refusal(program, lowered, error)) from error
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        # So it tells of a full disk.
        raise OSError(f"OpenVINO: {told(error)}") from error
    return lowered


def open_openvino(path: Path, program: Program, threads: int) -> Runtime:
    """Opens an IR in OpenVINO on the CPU, in float32, made for short times of one batch.

    Args:
        path: of the ``.xml`` file.
        program: that was written.
        threads: of OpenVINO.

    Returns:
        What runs batches.

    Raises:
        ExportError: OpenVINO refuses the file, or an output has a type that Python cannot be given.
        MissingPackageError: the package is not installed.
    """
    core = openvino_core()
    model = read_model(core, path, program)
    for port, name in zip(model.outputs, program.outputs, strict=True):
        if port.get_element_type().get_type_name() == "bf16":
            raise ExportError(
                f"output {name} is torch.bfloat16, which OpenVINO hands to Python as other numbers; "
                f"{_FLOAT_ADVICE}"
            )
    return _compiled(core, model, program, threads)


def open_openvino_inside(
    path: Path, program: Program, names: Sequence[str]
) -> tuple[tuple[str, ...], Runtime]:
    """Opens an IR with inner values as its outputs.

    Args:
        path: of the ``.xml`` file.
        program: that was written.
        names: of values that are wanted.

    Returns:
        The names that the file has, and what runs batches to these values.
    """
    openvino = _package("openvino")
    core = openvino_core()
    model = read_model(core, path, program)
    # Nodes are called after the node of the program that they were made from; the last one has its value.
    last = {
        node.get_friendly_name().partition("/")[0]: node
        for node in model.get_ordered_ops()
        if "/" in node.get_friendly_name() and node.get_output_size() == 1
    }
    found = tuple(name for name in names if name in last)
    results = [openvino.opset8.result(last[name].output(0)) for name in found]
    inside = openvino.Model(results, model.get_parameters(), "inside")
    return found, _compiled(core, inside, program, threads=1)


def openvino_core() -> "Core":
    """OpenVINO's entry."""
    core = _package("openvino").Core()
    # A file that is mapped into memory cannot be moved on Windows.
    core.set_property({"ENABLE_MMAP": False})
    return core


def read_model(core: "Core", path: Path, program: Program) -> "Model":
    """The graph of a file.

    Raises:
        ExportError: OpenVINO refuses the file.
    """
    try:
        return core.read_model(path)
    except Exception as error:
        raise ExportError(_open_refusal(program, error)) from error


def compile_model(
    core: "Core", model: "Model", program: Program, threads: int, *, profile: bool = False
) -> "CompiledModel":
    """A graph made ready for the CPU, in float32, for short times of one batch.

    Args:
        core: OpenVINO's entry.
        model: the graph.
        program: that was written.
        threads: of OpenVINO.
        profile: take the time of each node; with one thread in that of the caller, since one of OpenVINO's
            own is interrupted at the same node of nearly every run where the machine does other work.

    Returns:
        The graph, ready to run.

    Raises:
        ExportError: OpenVINO refuses the file.
    """
    options = {
        # The default is bfloat16 where the CPU has it: 4e-3 away from the model, and not always faster.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 0 if profile and threads == 1 else 1,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profile,
    }
    try:
        return core.compile_model(model, "CPU", options)
    except Exception as error:
        raise ExportError(_open_refusal(program, error)) from error


def give_inputs(request: "InferRequest", program: Program, batch: Batch) -> None:
    """Hands the tensors of a batch to a request.

    Raises:
        ExportError: OpenVINO refuses one.
    """
    openvino = _package("openvino")
    for name, tensor in program.model.input_tensors(batch).items():
        array = array_of(name, tensor)
        try:
            # A copy: OpenVINO's own memory is aligned, and numpy's may be read-only.
            given = openvino.Tensor(array, shared_memory=False)
            request.set_tensor(name, given)
        except Exception as error:
            raise ExportError(_run_refusal(batch, error)) from error


def _compiled(core: "Core", model: "Model", program: Program, threads: int) -> Runtime:
    compiled = compile_model(core, model, program, threads)
    kinds = [port.get_element_type().get_type_name() for port in compiled.outputs]

    def bind(batch: Batch) -> Bound:
        request = compiled.create_infer_request()
        give_inputs(request, program, batch)

        def run() -> Sequence[Tensor]:
            try:
                results = request.infer(share_outputs=False).to_tuple()
            except Exception as error:
                raise ExportError(_run_refusal(batch, error)) from error
            tensors = [torch.as_tensor(result) for result in results]
            # The bits of a bfloat16 come as a float16.
            return [
                tensor.view(torch.bfloat16) if kind == "bf16" else tensor
                for tensor, kind in zip(tensors, kinds, strict=True)
            ]

        return run

    return bind


def _plain_graph(lowered: ExportedProgram) -> tuple[GraphModule, list[int]]:
    """The graph of a program with different outputs in one tuple, and which of them each output is."""
    graph = lowered.module()
    if not isinstance(graph, GraphModule):
        raise TypeError(f"torch.export gives a {type(graph).__name__} and no graph")
    for node in reversed(graph.graph.nodes):
        # Checks of inputs, and results that are written back to inputs, have no place in a file.
        is_copy = node.op == "call_function" and node.target is torch.ops.aten.copy_.default
        if not node.users and (node.op == "call_module" or is_copy):
            graph.graph.erase_node(node)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    wanted = _pytree.tree_leaves(output.args[0])
    different = list(dict.fromkeys(wanted))
    output.args = (tuple(different),)
    # Arguments one by one instead of in the caller's containers, where None may stand beside tensors.
    graph.graph.set_codegen(CodeGen())
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, [different.index(node) for node in wanted]


def _restore_inputs(openvino: ModuleType, model: "Model", graph: GraphModule) -> None:
    """Gives a model the inputs of its graph in their order: OpenVINO drops first ones that nothing reads."""
    made = {parameter.get_friendly_name(): parameter for parameter in model.get_parameters()}
    wanted = {str(node.target): node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"}
    if made.keys() == wanted.keys():
        return
    for parameter in made.values():
        model.remove_parameter(parameter)
    for name, value in wanted.items():
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        kind = torch.empty(0, dtype=value.dtype).numpy().dtype
        model.add_parameters([made.get(name) or openvino.opset8.parameter(shape, kind, name)])


def _name_values(openvino: ModuleType, model: "Model", program: Program, positions: Sequence[int]) -> None:
    """Gives inputs their names and sizes, and outputs their names and order (in place)."""
    parameters, made = list(model.get_parameters()), list(model.get_results())
    shapes = _input_shapes(program.exported)
    for parameter, name, shape in zip(parameters, program.inputs, shapes, strict=True):
        parameter.set_partial_shape(openvino.PartialShape(shape))
        parameter.set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    # An output would have the names of an inner tensor too, where the runtime removes what is between them.
    for node in model.get_ops():
        for value in node.outputs():
            value.get_tensor().set_names(set())
    sources = [made[position].input_value(0) for position in positions]
    for result in made:
        model.remove_result(result)
    taken: set[tuple[str, int]] = set()
    results = []
    for source, name in zip(sources, program.outputs, strict=True):
        node = source.get_node()
        key = (node.get_friendly_name(), source.get_index())
        if key in taken or node.get_type_name() == "Parameter":
            # A tensor has its names for all who use it; one that is two outputs, or an input too, gets a
            # node for each.
            kind = source.get_element_type()
            source = openvino.opset8.convert(source, kind.get_type_name()).output(0)  # noqa: PLW2901
        taken.add(key)
        source.get_tensor().set_names({name})
        result = openvino.opset8.result(source)
        result.set_friendly_name(f"{name}/result")
        results.append(result)
    model.add_results(results)
    for parameter, name in zip(parameters, program.inputs, strict=True):
        parameter.output(0).get_tensor().set_names({name})


def _input_shapes(exported: ExportedProgram) -> list[list[int]]:
    """The shape of each input tensor; -1 for a size that is free."""
    nodes = {node.name: node for node in exported.graph.nodes}
    names = [
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    ]
    shapes = [nodes[name].meta["val"].shape for name in names]
    return [[size if isinstance(size, int) else -1 for size in shape] for shape in shapes]


def array_of(name: str, tensor: Tensor) -> object:
    """An input as OpenVINO takes it."""
    try:
        return tensor.detach().contiguous().numpy()
    except TypeError as error:
        raise ExportError(
            f"input {name} is {tensor.dtype}, which OpenVINO does not take from Python; {_FLOAT_ADVICE}"
        ) from error


def _package(name: str) -> ModuleType:
    return import_package(name, extra=EXTRA, what="format='openvino'")


def _open_refusal(program: Program, error: BaseException) -> str:
    version = _package("openvino").__version__
    return f"OpenVINO {version} refuses the file of {program.model.title}: {_first_line(error)}; {_ADVICE}"


def _run_refusal(batch: Batch, error: BaseException) -> str:
    return f"OpenVINO fails on {batch.n_samples} samples: {_first_line(error)}; {_ADVICE}"


def _refusal(program: Program, lowered: ExportedProgram, error: BaseException) -> str:
    """Why a program cannot be converted, with operation and module."""
    name = program.model.title
    # Of an operation that it translates, but into something that does not fit.
    failed = re.search(r"with friendly_name '([^'/]+)", str(error))
    for node in lowered.graph.nodes:
        if failed is not None and node.name == failed[1]:
            why = str(error).strip().splitlines()[-1]
            return f"{name}: OpenVINO fails on {node_origin(node)}: {why}; {_ADVICE}"
    mentioned = set(re.findall(r"\b\w+\.\w+\.\w+\b", str(error)))
    for node in lowered.graph.nodes:
        if node.op == "call_function" and str(node.target) in mentioned:
            return f"{name}: OpenVINO has no translation of {node_origin(node)}; {_ADVICE}"
    return f"{name} cannot be written for OpenVINO: {_first_line(error)}; {_ADVICE}"


def _first_line(error: BaseException) -> str:
    """An error of OpenVINO in one line, without the places in its own sources."""
    lines = [line.strip() for line in told(error).splitlines()]
    kept = [line for line in lines if line and not re.search(r"\.(cpp|hpp|h):\d+", line)]
    return " ".join(kept) or told(error)
