# SPDX-License-Identifier: Apache-2.0
"""What is left of layers at some widths, and what it costs without pairs."""

from dataclasses import dataclass

import numpy as np

from slimrank.records import Steps, step_edge
from slimrank.select.joint._counts import WidthIndices
from slimrank.select.joint._pieces import JointLayer
from slimrank.select.layers._table import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shapes:
    """What is left of layers, without pairs.

    Attributes:
        rows, columns: (...) int64, of the weight; columns of all groups of a grouped convolution.
        kernel_groups: (...) int64, groups of the convolution; 1 of any other layer.
        dense: (..., B) float64, cost.
        stairs: the same rows and columns up to the next step, as times count them; None where no times are
            counted, or every size is a step.
    """

    rows: Ints
    columns: Ints
    kernel_groups: Ints
    dense: Floats
    stairs: tuple[Ints, Ints] | None = None

    def of(self, entries: Ints) -> "Shapes":
        """Those with these indices."""
        stairs = None if self.stairs is None else (self.stairs[0][entries], self.stairs[1][entries])
        return Shapes(
            rows=self.rows[entries],
            columns=self.columns[entries],
            kernel_groups=self.kernel_groups[entries],
            dense=self.dense[entries],
            stairs=stairs,
        )


def shapes_of(layer: JointLayer, widths: WidthIndices) -> Shapes:
    """What is left of one layer, at indices of widths that broadcast."""
    dense = layer.dense_cost(widths)
    shape = np.broadcast_shapes(*(np.shape(widths[group]) for group in layer.groups))
    rows, columns = (np.broadcast_to(dim.count(widths), shape) for dim in (layer.rows, layer.columns))
    kernel_groups = 1 if layer.inside is None else columns // layer.inside.count(widths)
    return Shapes(
        rows=rows,
        columns=columns,
        kernel_groups=np.broadcast_to(kernel_groups, shape),
        dense=np.broadcast_to(dense, (*shape, dense.shape[-1])),
        stairs=None
        if layer.steps == Steps()
        else (step_edge(rows, layer.steps.rows), step_edge(columns, layer.steps.columns)),
    )
