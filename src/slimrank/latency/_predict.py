# SPDX-License-Identifier: Apache-2.0
"""The time of a network with a plan, by the formulas of a table."""

from slimrank.latency._parts import group_homes, sizes_of
from slimrank.plan import Step, is_inside
from slimrank.records import GroupSpec, NetworkTimes, step_edge


def predicted_time(times: NetworkTimes, step: Step) -> float:
    """The time of a network once a step of a plan is done.

    Args:
        times: of the network.
        step: what is done to it.

    Returns:
        ns for one run of the batch.
    """
    return times.fixed + changing_time(times, step)


def changing_time(times: NetworkTimes, step: Step) -> float:
    """The part of the time that a plan can change.

    Args:
        times: of the network.
        step: what is done to it.

    Returns:
        ns for one run of the batch.
    """
    return _layer_time(times, step) + _group_time(times, step) + _block_time(times, step)


def _layer_time(times: NetworkTimes, step: Step) -> float:
    total = 0.0
    for name, layer in times.layers.items():
        if is_inside(name, step.dropped):
            continue
        rows, columns = (times.edge(size) for size in sizes_of(step.structure, name, step.groups))
        setting = step.settings.get(name)
        pair = None if setting is None else layer.pairs.get(setting.form)
        if setting is None or pair is None:
            total += float(layer.dense.time(rows, columns))
        else:
            total += float(pair.time(times.edge(setting.rank), rows, columns))
    return total


def _group_time(times: NetworkTimes, step: Step) -> float:
    channels = step.structure.channels
    homes = group_homes(step.structure)
    total = 0.0
    for name, per_unit in times.groups.items():
        if not is_inside(homes.get(name, ""), step.dropped):
            group = channels.groups[name]
            units = len(step.groups.get(name, range(group.units)))
            total += per_unit * group_edge(group, units, times.step)
            if name not in step.groups:
                total += times.ragged.get(name, 0.0)
    return total


def group_edge(group: GroupSpec, units: int, step: int) -> float:
    """Units of a group as runtimes compute them: the outputs of its first producer up to the next step."""
    return float(step_edge(units * group.unit_width, step)) / group.unit_width


def _block_time(times: NetworkTimes, step: Step) -> float:
    """That of a block holds that of the blocks inside it, so the outermost ones count."""
    outermost = [
        name
        for name in times.blocks
        if not any(name != other and is_inside(name, (other,)) for other in times.blocks)
    ]
    whole = sum(times.blocks[name] for name in outermost)
    return whole - sum(times.blocks.get(name, 0.0) for name in step.dropped)
