# SPDX-License-Identifier: Apache-2.0
"""Rows of one layer, and what is kept of them over all batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
        is_unpaired: other rows reach the layer in the new model than in the original, so these are the
            original's on both sides.
    """

    original_sums: MomentSums
    joint_sums: MomentSums
    clipping: Clipping | None
    held_out: list[Rows] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    has_moved: bool = False
    is_unpaired: bool = False

    def add(self, original_inputs: Tensor | None, rows: Rows, *, step: int) -> None:
        """Adds rows that are fitted to.

        Args:
            original_inputs: (S, D), in the original; None where they are not summed.
            rows: the same rows in the new model.
            step: where a clipping follows, one of so many rows is kept.
        """
        if original_inputs is not None:
            self.original_sums.add(original_inputs)
        self.joint_sums.add(rows.inputs, rows.outputs)
        if self.clipping is not None:
            self.rows.append(_thinned(rows, step))


def _thinned(rows: Rows, step: int) -> Rows:
    """One of so many rows, each a copy, so that the others can be freed."""
    parts = (rows.inputs, rows.outputs, rows.offsets)
    inputs, outputs, offsets = (part[::step].clone() if step > 1 else part for part in parts)
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def thinned_rows(parts: Sequence[Rows], limit: int) -> tuple[Rows, ...]:
    """Some of the rows of all batches.

    Args:
        parts: rows of each batch, or of a part of it.
        limit: above so many rows, only each second, third, ... of each part is taken.

    Returns:
        The rows, fewer than twice the limit and one more per part.
    """
    step = max(1, sum(len(part.inputs) for part in parts) // limit)
    return tuple(_thinned(part, step) for part in parts)
