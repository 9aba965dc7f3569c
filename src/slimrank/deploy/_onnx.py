# SPDX-License-Identifier: Apache-2.0
"""The format "onnx": one ``.onnx`` file, run in onnxruntime."""

import re
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export import ExportedProgram

from slimrank._errors import ExportError
from slimrank._version import __version__
from slimrank.deploy._measure_script import session_options
from slimrank.deploy._packages import import_package
from slimrank.deploy._program import Program, node_origin
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.forward import Batch

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnx_ir import Graph
    from onnxruntime import InferenceSession

EXTRA = "export"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of weights in one file: protobuf holds 2**31 - 1 bytes, and the graph needs some of them.
_MAX_WEIGHT_BYTES = 2**31 - 2**24
# Tells the module of a node. What else the exporter notes is long, and names source files of this machine.
KEPT_NOTE = "pkg.torch.onnx.name_scopes"


def write_onnx(program: Program, path: Path) -> ExportedProgram:
    """Writes a program as ONNX, weights in the same file.

    Args:
        program: the captured model.
        path: of the file.

    Returns:
        The program with the operations that ONNX has; its nodes have the names of the values in the file.

    Raises:
        ExportError: an operation that ONNX lacks, or a model too large for one file.
        MissingPackageError: a package is not installed.
    """
    onnx = onnx_package("onnx")
    onnx_package("onnxscript")
    try:
        with quiet_exporter() as output, torch.no_grad():
            made = torch.onnx.export(
                program.exported,
                input_names=list(program.inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(_refusal(program, error, output.getvalue())) from error
    if made is None:
        raise ExportError(_refusal(program, None, output.getvalue()))
    # Now: protobuf cannot even measure what is too large for it.
    _check_size(program, made.model.graph)
    _name_outputs(made.model.graph, program.outputs)
    model = made.model_proto
    model.producer_name, model.producer_version = "slimrank", __version__
    onnx.helper.set_model_props(model, {"torch": version("torch"), "onnxscript": version("onnxscript")})
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == KEPT_NOTE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    _name_batch(model)
    try:
        data = model.SerializeToString()
        onnx.checker.check_model(data)
    except Exception as error:
        raise ExportError(_refusal(program, error, "")) from error
    path.write_bytes(data)
    return made.exported_program or program.exported


def open_onnx(path: Path, program: Program, threads: int) -> Runtime:
    """Opens an ONNX file in onnxruntime, on the CPU.

    Args:
        path: of the file.
        program: that was written.
        threads: of onnxruntime.

    Returns:
        What runs batches.

    Raises:
        ExportError: onnxruntime refuses the file.
        MissingPackageError: a package is not installed.
    """
    return _session(path.read_bytes(), program, program.outputs, threads)


def open_onnx_inside(path: Path, program: Program, names: Sequence[str]) -> tuple[tuple[str, ...], Runtime]:
    """Opens an ONNX file with more of its values as outputs.

    Args:
        path: of the file.
        program: that was written.
        names: of values that are wanted.

    Returns:
        The names that the file has, and what runs batches to these values.
    """
    onnx = onnx_package("onnx")
    model = onnx.load(path)
    # Outputs have names of their own, which may be those of other nodes.
    there = {name for node in model.graph.node for name in node.output} - set(program.outputs)
    found = tuple(name for name in names if name in there)
    for name in found:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return found, _session(model.SerializeToString(), program, found, threads=1)


def _session(data: bytes, program: Program, outputs: Sequence[str], threads: int) -> Runtime:
    session = open_session(data, program, threads)

    def bind(batch: Batch) -> Bound:
        feeds = session_feeds(session, program, batch)

        def run() -> Sequence[Tensor]:
            try:
                results = session.run(list(outputs), feeds)
            except Exception as error:
                raise ExportError(
                    f"onnxruntime fails on {batch.n_samples} samples: {told(error)}; {_advice(program)}"
                ) from error
            return [torch.as_tensor(result) for result in results]

        return run

    return bind


def open_session(
    data: bytes,
    program: Program,
    threads: int,
    *,
    profile: Path | None = None,
    optimised: Path | None = None,
) -> "InferenceSession":
    """A session of onnxruntime on the CPU.

    Args:
        data: the file.
        program: that was written.
        threads: of onnxruntime.
        profile: where the runtime writes what each node took, a beginning of a file name; None for no
            profile.
        optimised: where the graph is written as the runtime made it; None for nowhere.

    Returns:
        The session.

    Raises:
        ExportError: onnxruntime refuses the file.
        MissingPackageError: the package is not installed.
    """
    ort = onnx_package("onnxruntime")
    options = session_options(ort, threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        session: InferenceSession = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"onnxruntime {ort.__version__} refuses the file of {program.model.title}: "
            f"{told(error)}; {_advice(program)}"
        ) from error
    return session


def session_feeds(session: "InferenceSession", program: Program, batch: Batch) -> dict[str, object]:
    """Arrays of a batch by the names of the inputs that a session has."""
    return _feeds(program, {value.name for value in session.get_inputs()}, batch)


def _advice(program: Program) -> str:
    """What to do where onnxruntime cannot run a file."""
    kinds = {tensor.dtype for tensor in program.exported.state_dict.values()}
    for name, found in (("half precision", {torch.bfloat16, torch.float16}), ("float64", {torch.float64})):
        if kinds & found:
            return f"few of its operations take {name} on a CPU: export model.float(), or take format='torch'"
    return "take format='torch', or replace the operation that it names"


def feeds_of(program: Program, model: "ModelProto", batch: Batch) -> dict[str, object]:
    """A batch as onnxruntime takes it, for the inputs that a file has."""
    return _feeds(program, {value.name for value in model.graph.input}, batch)


def _feeds(program: Program, known: Collection[str], batch: Batch) -> dict[str, object]:
    tensors = program.model.input_tensors(batch)
    return {name: _array(name, tensor) for name, tensor in tensors.items() if name in known}


def _array(name: str, tensor: Tensor) -> object:
    try:
        return tensor.detach().contiguous().numpy()
    except TypeError as error:
        raise ExportError(
            f"input {name} is {tensor.dtype}, which onnxruntime does not take from Python; export a float32 "
            "model (model.float()), or take format='torch'"
        ) from error


def onnx_package(name: str) -> ModuleType:
    """A package that the format needs."""
    return import_package(name, extra=EXTRA, what="format='onnx'")


def _check_size(program: Program, graph: "Graph") -> None:
    """Refuses weights that do not fit into one file."""
    tensors = [value.const_value for value in graph.initializers.values()]
    n_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if n_bytes > _MAX_WEIGHT_BYTES:
        raise ExportError(
            f"the weights of {program.model.title} take {n_bytes:,} bytes, and one ONNX file holds "
            f"{_MAX_WEIGHT_BYTES:,}; take format='torch', or a smaller budget"
        )


def _name_outputs(graph: "Graph", names: Sequence[str]) -> None:
    """Gives outputs their names, and inner values that have these other ones (in place)."""
    outputs = {id(value) for value in graph.outputs}
    inner = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in inner:
        if value.name in names and id(value) not in outputs:
            value.name = f"{value.name}.inner"
    # Two rounds: an output may have the name that another one shall get.
    for index, value in enumerate(graph.outputs):
        value.name = f"output.{index}.inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _name_batch(model: "ModelProto") -> None:
    """Calls the one dimension that is free "batch": torch gives it a number (in place)."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    free = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in model.graph.input
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param
    }
    if len(free) != 1:
        return
    (old,) = free
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(old)}\b", "batch", dim.dim_param)


def _refusal(program: Program, error: BaseException | None, printed: str) -> str:
    """Why the exporter gave up, with operator and module."""
    name = program.model.title
    cause, texts = error, []
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    found = re.search(r"OpOverload\(op='([\w.]+)'", "\n".join(texts))
    advice = "take format='torch', or replace the operation by ones that ONNX has"
    if found is not None:
        operation = found[1]
        with quiet_exporter():
            # The exporter names what is left after it has taken composed operations apart.
            lowered = program.exported.run_decompositions()
        for node in (*program.exported.graph.nodes, *lowered.graph.nodes):
            if node.op == "call_function" and str(node.target).startswith(f"{operation}."):
                return f"{name}: ONNX has no translation of {node_origin(node)}; {advice}"
        return f"{name}: ONNX has no translation of {operation}; {advice}"
    why = (printed.strip().splitlines() or ["nothing was made"])[-1] if error is None else told(error)
    return f"{name} cannot be written as ONNX: {why}; {advice}"
