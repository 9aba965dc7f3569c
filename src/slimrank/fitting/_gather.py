# SPDX-License-Identifier: Apache-2.0
"""Rows of one layer, in the original and in the new model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimrank.cost import row_cap, row_width
from slimrank.fitting._fit import Rows
from slimrank.forward import Lockstep, OneByOne
from slimrank.linalg import Clipping, MomentSums
from slimrank.records import LayerSpec


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """One batch at a layer, in the original and in the new model.

    Attributes:
        x, x_hat: inputs of the layer.
        shortcut, shortcut_hat: what will be added to its output; None where that is not known.
    """

    x: Tensor | None
    x_hat: Tensor | None
    shortcut: Tensor | None
    shortcut_hat: Tensor | None


@dataclass(slots=True, kw_only=True, eq=False)
class Gathered:
    """What is known of one layer once all batches have reached it.

    Attributes:
        own: sums over the inputs in the original; empty where rows are plenty.
        joint: sums over the inputs in the new model, with the wanted outputs.
        held_out: rows of held-out samples, per batch.
        rows: some of the other rows, per batch, where a clipping follows.
        moved: whether anything differs from the original.
        clipping: what follows.
    """

    own: MomentSums
    joint: MomentSums
    clipping: Clipping | None
    held_out: list[Rows] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    moved: bool = False

    def add(self, own: Tensor, here: Rows, *, with_own: bool, step: int) -> None:
        """Rows that are fitted to.

        Args:
            own: (S, D) inputs in the original.
            here: the same rows in the new model.
            with_own: sum over the former as well.
            step: keep one of so many rows where a clipping follows.
        """
        self.moved = self.moved or not torch.equal(own, here.inputs)
        if with_own:
            self.own.add(own)
        self.joint.add(here.inputs, here.outputs)
        if self.clipping is not None:
            self.rows.append(_every(here, step))


def _every(rows: Rows, step: int) -> Rows:
    """One of so many rows, each a copy, so that the others can be freed."""
    parts = (rows.inputs, rows.outputs, rows.offsets)
    inputs, outputs, offsets = (part[::step].clone() if step > 1 else part for part in parts)
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def joined_rows(parts: Sequence[Rows], limit: int | None) -> Rows | None:
    """Rows of all batches; at most so many of them."""
    if not parts:
        return None
    step = 1 if limit is None else max(1, sum(len(part.inputs) for part in parts) // limit)
    inputs = torch.cat([part.inputs for part in parts])[::step]
    outputs = torch.cat([part.outputs for part in parts])[::step]
    offsets = torch.cat([part.offsets for part in parts])[::step]
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def have_same_places(spec: LayerSpec, x: Tensor, x_hat: Tensor) -> bool:
    """Whether two inputs of a layer differ in their channels alone."""
    channel = x.ndim - 1 if spec.kind == "linear" else x.ndim - 1 - len(spec.kernel)
    return x.ndim == x_hat.ndim and all(
        a == b for dim, (a, b) in enumerate(zip(x.shape, x_hat.shape, strict=True)) if dim != channel
    )


def gathered_bytes(spec: LayerSpec) -> int:
    """About what the rows and moments of a layer hold."""
    width = row_width(spec)
    return 4 * row_cap(spec) * (width + 2 * spec.weight_shape[0]) + 32 * width * width


def reach(before: Lockstep | OneByOne, after: Lockstep | OneByOne, name: str) -> list[Reached]:
    """Runs both networks up to a layer."""
    inputs = zip(before.advance(name), after.advance(name), strict=True)
    shortcuts = zip(before.shortcut(name), after.shortcut(name), strict=True)
    return [Reached(*here, *added) for here, added in zip(inputs, shortcuts, strict=True)]
