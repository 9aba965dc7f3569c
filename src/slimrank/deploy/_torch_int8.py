# SPDX-License-Identifier: Apache-2.0
"""int8 in ``.pt2`` files: quantize and dequantize operations, of which torch.compile makes int8 kernels."""

import importlib
import platform
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from slimrank._errors import ExportError
from slimrank._names import listed
from slimrank.deploy._cpu import X86, overflow_notes, sums_overflow
from slimrank.deploy._program import Program
from slimrank.deploy._pt2e import Int8Program, quantize_program, torchao_package
from slimrank.deploy._quantizer import Quantized
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.deploy._samples import count_told
from slimrank.deploy._torch import open_torch, torch_threads, write_torch
from slimrank.forward import Batch, map_tensors, named_tensors
from slimrank.records import Note

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer as GraphQuantizer

# Brings the operations of int8 files, which torch does not know of before.
OPERATIONS = "torch.ao.quantization.fx._decomposed"
_QUANTIZERS = "torchao.quantization.pt2e.quantizer"
_ARM = ("aarch64", "arm64")


def write_torch_int8(
    program: Program,
    float_path: Path,
    path: Path,
    batches: Sequence[Batch],
    kept: Collection[str],
    *,
    is_dynamic: bool = False,
) -> Quantized:
    """Writes a program in int8.

    Args:
        program: that the float file was made of.
        float_path: of the float file.
        path: of the file to write.
        batches: to calibrate with.
        kept: layers that stay in float.
        is_dynamic: weights of Linear layers alone are quantised; their inputs are measured when it runs, so
            batches are not used.

    Returns:
        What became of the layers.

    Raises:
        ExportError: not on this machine, not of this model, or torch cannot write it.
        MissingPackageError: torchao is not installed.
    """
    del float_path
    made = quantize_program(
        program, _make_quantizer(is_dynamic=is_dynamic), [] if is_dynamic else batches, kept
    )
    where = "in float where values are measured as it runs" if is_dynamic else "in float"
    return _written(made, path, where)


def open_torch_int8(path: Path, program: Program, threads: int) -> Runtime:
    """Opens a ``.pt2`` file with int8 in torch, as it is: exact, and slow.

    Args:
        path: of the file.
        program: of the float file.
        threads: of torch while a batch runs.

    Returns:
        What runs batches.
    """
    _know_operations()
    return open_torch(path, program, threads)


def open_torch_compiled(path: Path, program: Program, threads: int) -> Runtime:
    """Opens a ``.pt2`` file, float or int8, in torch, compiled for each size of a batch.

    Args:
        path: of the file.
        program: of the float file.
        threads: of torch while a batch runs.

    Returns:
        What runs batches; to bind one compiles, which takes seconds.
    """
    _know_operations()
    with quiet_exporter():
        module = torch.export.load(path).module()

    def bind(batch: Batch) -> Bound:
        given = _copies(program, batch)

        def run(args: Sequence[object], kwargs: Mapping[str, object]) -> Sequence[Tensor]:
            with torch_threads(threads), torch.no_grad():
                result = compiled(*args, **kwargs)
            return [tensor for _, tensor in named_tensors(result)]

        try:
            # Sizes that are known make other kernels, which are those to measure.
            compiled = torch.compile(module, dynamic=False)
            # Not as an option of torch.compile, with which torch 2.13 fails on int8. With one thread it
            # compiles in this process, not in others.
            with quiet_exporter(), torch._inductor.config.patch(freezing=True, compile_threads=1):
                warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
                run(*_copies(program, batch))
        except Exception as error:
            raise ExportError(
                f"torch.compile fails on {count_told(batch.n_samples)}: {told(error)}; install a C++ "
                "compiler, which it needs, or take another format"
            ) from error
        return lambda: run(*given)

    return bind


def _copies(program: Program, batch: Batch) -> tuple[list[object], dict[str, object]]:
    """Arguments and keywords of their own, since compiled int8 may write its results over them."""
    given = program.model.inputs_of(batch)
    args = [map_tensors(value, Tensor.clone) for value in given.args]
    return args, {key: map_tensors(value, Tensor.clone) for key, value in given.kwargs.items()}


def _make_quantizer(*, is_dynamic: bool) -> Callable[[Callable[[Node], bool]], "GraphQuantizer"]:
    """What makes torchao's quantizer for this machine.

    Raises:
        ExportError: it has none.
    """
    machine = platform.machine().lower()
    if machine in X86:
        module = torchao_package(f"{_QUANTIZERS}.x86_inductor_quantizer")
        config = module.get_default_x86_inductor_quantization_config(
            is_dynamic=is_dynamic, reduce_range=sums_overflow()
        )
        kind = module.X86InductorQuantizer
    elif machine in _ARM:
        module = torchao_package(f"{_QUANTIZERS}.arm_inductor_quantizer")
        config = module.get_default_arm_inductor_quantization_config(is_dynamic=is_dynamic)
        kind = module.ArmInductorQuantizer
    else:
        raise ExportError(
            f"torch has int8 kernels for x86 and ARM, and this machine is {platform.machine()!r}; export on "
            "one of them, or take format='onnx'"
        )

    # Which nodes may be quantised is told by their labels, which is what these quantizers read.
    def make(may_be_quantised: Callable[[Node], bool]) -> "GraphQuantizer":
        del may_be_quantised
        quantizer: GraphQuantizer = kind()
        if is_dynamic:
            # Convolutions have no such kernels.
            quantizer.set_module_type_qconfig(nn.Linear, config)
        else:
            quantizer.set_global(config)
        return quantizer

    return make


def _written(made: Int8Program, path: Path, where: str) -> Quantized:
    write_torch(made.program, path)
    left = tuple((name, f"torchao's quantizer leaves {operation} {where}") for name, operation in made.left)
    return Quantized(layers=made.layers, left=left, notes=tuple(_notes(made.program.exported)))


def _notes(exported: ExportedProgram) -> list[Note]:
    """How the file is read, how it gets fast, and what to mind then."""
    text = (
        f"import {OPERATIONS} before torch.export.load, torchao is not needed; the file is fast when it is "
        "compiled, as it is for these times: torch._inductor.config.freezing = True, then "
        "torch.compile(torch.export.load(path).module()) under torch.no_grad()"
    )
    notes = [Note(where="torch", text=text)]
    if names := _added_inputs(exported):
        text = (
            f"once compiled, the file may write its results over {listed(names)}, as kernels of torch 2.13 "
            "do where an input is added to the output of a layer; hand it copies"
        )
        notes.append(Note(where="torch", text=text))
    return [*notes, *overflow_notes("torch", "activations")]


def _added_inputs(exported: ExportedProgram) -> list[str]:
    """Inputs that are added to something."""
    names = {
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    return [
        node.name
        for node in exported.graph.nodes
        if node.name in names and any(user.target is torch.ops.aten.add.Tensor for user in node.users)
    ]


def _know_operations() -> ModuleType:
    with quiet_exporter():
        return importlib.import_module(OPERATIONS)
