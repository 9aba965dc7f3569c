# SPDX-License-Identifier: Apache-2.0
"""The time of a network with a plan, by the formulas of a table."""

from slimrank.cost import network_time
from slimrank.plan import Step
from slimrank.records import GroupSpec, NetworkTimes, step_edge


def predicted_time(times: NetworkTimes, step: Step) -> float:
    """The time of a network once a step of a plan is done.

    Args:
        times: of the network.
        step: what is done to it.

    Returns:
        ns for one run of the batch.
    """
    return network_time(
        times,
        step.structure.layers,
        step.structure.channels,
        settings=step.settings,
        kept=step.groups,
        dropped=step.dropped,
    )


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
