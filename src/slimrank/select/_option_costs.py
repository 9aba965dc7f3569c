# SPDX-License-Identifier: Apache-2.0
"""What the model, its layers and their options cost: the one place where both selectors read it.

An option is a rank of a form. Where layers alone are chosen they keep their shape, and the cost of an option
stands in its curve. Next to groups a layer may lose rows and columns, so there the cost comes in parts: one
for each row and one for each column that stays. A metric that is measured for each option, such as a latency,
would enter here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimrank.cost import factor_costs, layer_cost
from slimrank.plan import PlanSource
from slimrank.records import Cost, Curve, Form, LayerSpec, Metric


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostParts:
    """Cost of a pair without its bias: ``rank * (columns * column + rows * row)``, exact at any shape.

    Attributes:
        column: (B,) float64, cost for each rank and column of the weight that stays.
        row: (B,) float64, cost for each rank and row of the weight that stays.
    """

    column: NDArray[np.float64]
    row: NDArray[np.float64]


def as_array(cost: Cost, metrics: Sequence[Metric]) -> NDArray[np.float64]:
    """A cost as numbers.

    Args:
        cost: of anything.
        metrics: B of them, in the order that is wanted.

    Returns:
        (B,) float64. Costs are whole numbers below 2**53, so float64 holds them exactly.
    """
    return np.array([cost.metric(metric) for metric in metrics], dtype=np.float64)


def whole_model_cost(source: PlanSource) -> Cost:
    """Cost of the model that is planned for, as it stands."""
    return source.before


def whole_layer_cost(spec: LayerSpec) -> Cost:
    """Cost of a layer that stays as it is."""
    return layer_cost(spec)


def option_costs(curve: Curve, metrics: Sequence[Metric]) -> NDArray[np.float64]:
    """Cost of each option of a layer that keeps its shape.

    Args:
        curve: of one form. Its costs count the bias that the pairs of a plan carry: a study and a score table
            make them with the ``has_bias`` that they give to their plans.
        metrics: B of them.

    Returns:
        (B, K) float64, one column for each rank of the curve.
    """
    return np.array([_stored(curve, metric) for metric in metrics], dtype=np.float64)


def _stored(curve: Curve, metric: Metric) -> NDArray[np.int64]:
    return {"macs": curve.macs, "params": curve.params, "bytes": curve.bytes}[metric]


def cost_parts(spec: LayerSpec, form: Form, metrics: Sequence[Metric]) -> CostParts:
    """Cost of the options of a layer that may lose rows and columns.

    A curve cannot tell this: it holds sums at full shape only.

    Args:
        spec: the layer; its numbers of rows and columns do not matter.
        form: how the pair is split.
        metrics: B of them.

    Returns:
        The parts.
    """
    column, row = factor_costs(spec, form)
    return CostParts(column=as_array(column, metrics), row=as_array(row, metrics))


def number_cost(itemsize: int, metrics: Sequence[Metric]) -> NDArray[np.float64]:
    """Cost of one stored number that takes no MACs, such as one entry of a bias.

    Args:
        itemsize: its bytes.
        metrics: B of them.

    Returns:
        (B,) float64.
    """
    return as_array(Cost(macs=0, params=1, bytes=itemsize), metrics)
