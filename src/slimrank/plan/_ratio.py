# SPDX-License-Identifier: Apache-2.0
"""The keep ratio, for plans and for results."""

from slimrank._errors import UnknownNameError
from slimrank.plan._names import nearest
from slimrank.records import METRICS, Cost, Metric


def ratio_of(before: Cost, after: Cost, metric: Metric) -> float:
    """Cost after / cost before.

    Args:
        before: of the whole model.
        after: of the whole model.
        metric: "macs", "params" or "bytes".

    Returns:
        The ratio; 1.0 where the model costs nothing.

    Raises:
        UnknownNameError: no such metric.
    """
    if metric not in METRICS:
        raise UnknownNameError(f"metric {metric!r} does not exist; {nearest(metric, METRICS)}")
    cost = before.metric(metric)
    return after.metric(metric) / cost if cost else 1.0
