# SPDX-License-Identifier: Apache-2.0
"""The format "torch": a program of ``torch.export`` in a ``.pt2`` file."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from slimrank._errors import ExportError
from slimrank.deploy._inside import inner_values
from slimrank.deploy._program import Program
from slimrank.deploy._quiet import quiet_exporter, told
from slimrank.deploy._runtime import Bound, Runtime
from slimrank.deploy._samples import count_told
from slimrank.forward import Batch, map_tensors, named_tensors


def write_torch(program: Program, path: Path) -> ExportedProgram:
    """Writes a program as torch keeps it.

    Args:
        program: the captured model.
        path: of the file.

    Returns:
        The program as it was written.

    Raises:
        ExportError: torch cannot write it.
    """
    try:
        with quiet_exporter():
            torch.export.save(program.exported, path)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(
            f"{program.model.title} cannot be written by torch.export: {told(error)}; keep own objects "
            "out of forward, or take format='onnx'"
        ) from error
    return program.exported


def open_torch(path: Path, program: Program, threads: int) -> Runtime:
    """Opens a ``.pt2`` file in torch.

    Args:
        path: of the file.
        program: that was written.
        threads: of torch while a batch runs.

    Returns:
        What runs batches.

    Raises:
        ExportError: when it runs a batch that the file refuses.
    """
    with quiet_exporter():
        module = torch.export.load(path).module()

    def bind(batch: Batch) -> Bound:
        given = program.model.inputs_of(batch)
        # Copies, since the model may work on its inputs in place.
        args = [map_tensors(value, Tensor.clone) for value in given.args]
        kwargs = {key: map_tensors(value, Tensor.clone) for key, value in given.kwargs.items()}

        def run() -> Sequence[Tensor]:
            try:
                with torch_threads(threads), torch.no_grad():
                    result = module(*args, **kwargs)
            except Exception as error:
                raise ExportError(
                    f"the file fails in torch on {count_told(batch.n_samples)}: "
                    f"{told(error)}; wrap the model so that it takes tensors, and as many for every batch"
                ) from error
            return [tensor for _, tensor in named_tensors(result)]

        return run

    return bind


def open_torch_inside(path: Path, program: Program, names: Sequence[str]) -> tuple[tuple[str, ...], Runtime]:
    """Opens a ``.pt2`` file with inner values as its outputs.

    Args:
        path: of the file.
        program: that was written.
        names: of values that are wanted.

    Returns:
        The names that the file has, and what runs batches to these values.
    """
    with quiet_exporter():
        loaded = torch.export.load(path)
    tensors = {node.name for node in loaded.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    found = tuple(name for name in names if name in tensors)

    def bind(batch: Batch) -> Bound:
        inputs = [tensor.clone() for tensor in program.model.input_tensors(batch).values()]

        def run() -> Sequence[Tensor]:
            values = inner_values(loaded, inputs)
            return [values[name] for name in found]

        return run

    return found, bind


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch; the caller's number is put back.

    Args:
        count: of threads.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
