# SPDX-License-Identifier: Apache-2.0
"""A layer as the matrix that it applies to rows of its input."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from slimrank.cost._forms import positions
from slimrank.records import LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """A layer as the (O, D) matrix that it applies to rows of its input: how these rows are cut.

    A convolution in groups counts as one that reads all channels: its matrix has a block per group on the
    diagonal, and zeros elsewhere. A transposed convolution counts as the 1x1 convolution that makes every tap
    of every output, before these taps are added up.

    Attributes:
        n_outputs: O.
        n_columns: D, numbers in one row.
        is_linear: whether a row is the last dimension of the input; else a patch of its map.
        kernel, stride, dilation: of the patch, per spatial dimension; () for a linear.
        padding: of the map, per spatial dimension, or "same"/"valid"; () for a linear.
        n_positions: rows that one sample gives, over all calls.
    """

    n_outputs: int
    n_columns: int
    is_linear: bool
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...] | Literal["same", "valid"]
    n_positions: int


def row_view(spec: LayerSpec) -> RowView:
    """How rows of a layer's input are cut, and what its matrix makes of them.

    Args:
        spec: a layer that applies a matrix (``has_matrix``).

    Returns:
        The view.
    """
    if spec.is_transposed:
        c_in, c_out, *kernel = spec.weight_shape
        ones = (1,) * len(kernel)
        return RowView(
            n_outputs=c_out * prod(kernel),
            n_columns=c_in,
            is_linear=False,
            kernel=ones,
            stride=ones,
            dilation=ones,
            padding="valid",
            # One row per position of the input: each makes every tap of the outputs around it.
            n_positions=sum(positions(spec, call.input_shape) for call in spec.calls),
        )
    return RowView(
        n_outputs=spec.weight_shape[0],
        n_columns=prod(spec.weight_shape[1:]) * spec.groups,
        is_linear=spec.reads_last_dim,
        kernel=spec.kernel,
        stride=spec.stride,
        dilation=spec.dilation,
        padding=spec.padding,
        n_positions=sum(positions(spec, call.output_shape) for call in spec.calls),
    )
