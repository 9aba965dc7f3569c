# SPDX-License-Identifier: Apache-2.0
"""Rows of one layer, and what is kept of them over all batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimrank.linalg import Clipping, MomentSums


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of one layer.

    Attributes:
        inputs: (S, D) float32, in the compressed model.
        outputs: (S, O) float32, wanted.
        offsets: (S, O) or (O,) float32: what is added before the clipping that follows.
    """

    inputs: Tensor
    outputs: Tensor
    offsets: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class Gathered:
    """What is known of one layer once all batches have reached it.

    Attributes:
        original_sums: over the inputs in the original model; empty where rows are plenty.
        joint_sums: over the inputs in the new model, with the wanted outputs.
        clipping: what follows the layer; None where nothing is known of it.
        held_out: rows of held-out samples, per batch.
        rows: some of the other rows, per batch, where a clipping follows.
        has_moved: whether anything that the layer reads, or that is added to its output, differs from the
            original.
    """

    original_sums: MomentSums
    joint_sums: MomentSums
    clipping: Clipping | None
    held_out: list[Rows] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    has_moved: bool = False

    def add(self, original_inputs: Tensor, rows: Rows, *, sum_original: bool, step: int) -> None:
        """Adds rows that are fitted to.

        Args:
            original_inputs: (S, D), in the original.
            rows: the same rows in the new model.
            sum_original: sum over the former as well.
            step: where a clipping follows, one of so many rows is kept.
        """
        self.has_moved = self.has_moved or not torch.equal(original_inputs, rows.inputs)
        if sum_original:
            self.original_sums.add(original_inputs)
        self.joint_sums.add(rows.inputs, rows.outputs)
        if self.clipping is not None:
            self.rows.append(_thinned(rows, step))


def _thinned(rows: Rows, step: int) -> Rows:
    """One of so many rows, each a copy, so that the others can be freed."""
    parts = (rows.inputs, rows.outputs, rows.offsets)
    inputs, outputs, offsets = (part[::step].clone() if step > 1 else part for part in parts)
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def joined_rows(parts: Sequence[Rows], limit: int | None) -> Rows | None:
    """Rows of all batches in one.

    Args:
        parts: rows of each batch.
        limit: above so many rows, only each second, third, ... is taken; None takes all.

    Returns:
        The rows, fewer than twice the limit; None where there is no batch.
    """
    if not parts:
        return None
    step = 1 if limit is None else max(1, sum(len(part.inputs) for part in parts) // limit)
    inputs = torch.cat([part.inputs for part in parts])[::step]
    outputs = torch.cat([part.outputs for part in parts])[::step]
    offsets = torch.cat([part.offsets for part in parts])[::step]
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)
