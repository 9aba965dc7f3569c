# SPDX-License-Identifier: Apache-2.0
"""The time of a network with a plan, by the formulas of a table."""

from slimrank.plan import Step, predicted_time
from slimrank.records import GroupSpec, NetworkTimes, step_edge


def changing_time(times: NetworkTimes, step: Step) -> float:
    """The part of the time that a plan can change.

    Args:
        times: of the network.
        step: what is done to it.

    Returns:
        ns for one run of the batch.
    """
    return predicted_time(times, step) - times.fixed


def group_edge(group: GroupSpec, units: int, step: int) -> float:
    """Units of a group as runtimes compute them: the outputs of its first producer up to the next step."""
    return float(step_edge(units * group.unit_width, step)) / group.unit_width
