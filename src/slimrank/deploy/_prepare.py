# SPDX-License-Identifier: Apache-2.0
"""A private copy of a model, made ready for export."""

from dataclasses import dataclass

import torch
from torch import nn

from slimrank._errors import OutputError
from slimrank.forward import Batch, fixed_seed, named_tensors, run
from slimrank.surgery import quiet_copy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A private copy of a model, ready for exporters.

    Attributes:
        model: in eval mode, its parameters without gradients; it is called as the original is.
        notes: what the user should know.
        output_names: of the tensors that come out, in their order: keys or indices, "output" for a bare one.
    """

    model: nn.Module
    notes: tuple[str, ...]
    output_names: tuple[str, ...]


def prepare(model: nn.Module, batch: Batch) -> Prepared:
    """A private copy of a model, made ready for export.

    Args:
        model: any module; it is not changed.
        batch: real data.

    Returns:
        The copy.

    Raises:
        ModelError: the model cannot be copied.
        BatchesError: the model refuses the batch.
        OutputError: it returns no tensor.
    """
    private = quiet_copy(model)
    with fixed_seed(private), torch.no_grad():
        result = run(private, batch)
    names = tuple(path or "output" for path, _ in named_tensors(result))
    if not names:
        raise OutputError(
            f"{type(model).__name__} returns a {type(result).__name__} that holds no tensor, so there is "
            "nothing to export; wrap the model in a module that returns tensors"
        )
    return Prepared(model=private, notes=(), output_names=names)
