# SPDX-License-Identifier: Apache-2.0
"""A private copy of a model, made ready for export."""

from dataclasses import dataclass

from torch import nn

from slimrank.forward import Batch
from slimrank.records import Note
from slimrank.surgery import quiet_copy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A model that is ready to be captured.

    Attributes:
        model: a private copy, in eval mode.
        notes: what was changed in it that the user should know.
    """

    model: nn.Module
    notes: tuple[Note, ...] = ()


def prepare(model: nn.Module, batch: Batch) -> Prepared:
    """A private copy of a model, made ready for export.

    Args:
        model: any module; it is copied.
        batch: that the model takes.

    Returns:
        The copy.

    Raises:
        ModelError: the model cannot be copied.
    """
    del batch
    return Prepared(model=quiet_copy(model))
