# SPDX-License-Identifier: Apache-2.0
"""A model captured as one graph, with a batch of any size where the model allows it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from slimrank._errors import ExportError
from slimrank.deploy._named_model import NamedModel
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.forward import Batch, is_users_code, plain_attention, run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A captured model.

    Attributes:
        exported: its graph.
        model: that was captured.
        batch: it was captured with.
        inputs: names of all input tensors, in order.
        outputs: names of all output tensors, in order.
        is_dynamic: it takes batches of any size; otherwise those of ``batch`` only.
        largest_batch: samples that it takes at most; None for no such bound.
    """

    exported: ExportedProgram
    model: NamedModel
    batch: Batch
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_dynamic: bool
    largest_batch: int | None = None


def capture_program(
    model: NamedModel, batch: Batch, *, is_dynamic: bool, largest_batch: int | None = None
) -> Program:
    """Captures a model with ``torch.export``.

    Args:
        model: in eval mode.
        batch: an example; of 2 samples or more where any size shall be allowed.
        is_dynamic: batches of any size shall be allowed.
        largest_batch: samples up to which they shall be; None for no bound.

    Returns:
        The program.

    Raises:
        ExportError: the model has no such graph; the message names the module and the line.
        BatchesError: the model refuses the batch.
    """
    inputs = model.inputs_of(batch)
    shapes = _dynamic_shapes(model, inputs, batch.n_samples, largest_batch) if is_dynamic else None
    with torch.no_grad():
        run(model, inputs)
    try:
        exported = _exported(model, inputs, shapes)
    except Exception as error:
        raise ExportError(
            f"{model.title} cannot be captured by torch.export{where_raised(model, error)}: "
            f"{told(error)}; replace what depends on values of tensors (an if, a loop, .item(), numpy) by "
            "tensor operations"
        ) from error
    return Program(
        exported=exported,
        model=model,
        batch=batch,
        inputs=tuple(model.input_tensors(batch)),
        outputs=tuple(model.outputs.values()),
        is_dynamic=is_dynamic,
        largest_batch=largest_batch if is_dynamic else None,
    )


def _exported(model: NamedModel, inputs: Batch, shapes: dict[str, object] | None) -> ExportedProgram:
    """The graph, of the code as it runs; where that fixes the batch, of its bytecode."""

    def export(*, strict: bool) -> ExportedProgram:
        with torch.no_grad(), plain_attention(), quiet_exporter():
            return torch.export.export(
                model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=strict
            )

    try:
        return export(strict=False)
    except Exception as error:
        if shapes is None:
            raise
        # Code that is run makes len(x) a plain number; bytecode that is read keeps it free.
        try:
            return export(strict=True)
        except Exception:
            raise error from error.__cause__


def where_raised(model: NamedModel, error: BaseException) -> str:
    """The innermost module that was running when an error was raised, for messages."""
    names = {id(module): name for name, module in model.model.named_modules()}
    found = ""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        traceback = cause.__traceback__
        while traceback is not None:
            running = traceback.tb_frame.f_locals.get("self")
            if isinstance(running, nn.Module) and names.get(id(running)):
                found = f" (module {names[id(running)]}, {type(running).__name__})"
            traceback = traceback.tb_next
    return found


def node_origin(node: torch.fx.Node) -> str:
    """What a node of a program does, in which module, at which line of the user's code."""
    name = node_module(node)
    module = f" in module {name}" if name else ""
    line = _users_line(str(node.meta.get("stack_trace") or ""))
    return f"{node.target}{module}{line}"


def node_module(node: torch.fx.Node) -> str:
    """The innermost of the user's modules that a node of a program was made from; "" for none."""
    stack = node.meta.get("nn_module_stack") or {}
    # Within NamedModel, whose "model" is the user's.
    inner = [str(name).partition("model.")[2] for name, _ in stack.values()]
    return next((name for name in reversed(inner) if name), "")


def _users_line(trace: str) -> str:
    """The innermost line outside of torch and of this package in the text of a traceback."""
    found = ""
    for file, line, code in re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', trace):
        if is_users_code(file):
            found = f" at {file.rsplit('/', 1)[-1]}:{line} `{code.strip()}`"
    return found


def _dynamic_shapes(
    model: NamedModel, inputs: Batch, n_samples: int, largest_batch: int | None
) -> dict[str, object]:
    """The batch dimension of every input, as torch.export takes it."""
    batch = Dim("batch", min=1, max=largest_batch)

    def shape(tensor: Tensor) -> object:
        return {0: batch} if tensor.ndim and tensor.shape[0] == n_samples else None

    values = (*inputs.args, *inputs.kwargs.values())
    return {name: _each(value, shape) for name, value in zip(model.arguments, values, strict=True)}


def _each(value: object, change: Callable[[Tensor], object]) -> object:
    """Nested containers with every tensor exchanged, and None for all else."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_each(item, change) for item in value)
    return None
