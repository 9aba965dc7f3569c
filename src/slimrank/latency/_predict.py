# SPDX-License-Identifier: Apache-2.0
"""The time of a network with a plan, by the formulas of a table."""

from slimrank.latency._parts import sizes_of
from slimrank.plan import Step, is_inside, slimmable_groups
from slimrank.records import NetworkTimes


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
    structure, total = step.structure, 0.0
    for name, layer in times.layers.items():
        if is_inside(name, step.dropped):
            continue
        rows, columns = (times.edge(size) for size in sizes_of(structure, name, step.groups))
        setting = step.settings.get(name)
        pair = None if setting is None else layer.pairs.get(setting.form)
        if setting is None or pair is None:
            total += float(layer.dense.time(rows, columns))
        else:
            total += float(pair.time(times.edge(setting.rank), rows, columns))
    known = slimmable_groups(structure.channels)
    touched: dict[str, list[str]] = {}
    for name, tensor in structure.channels.tensors.items():
        for axis in tensor.axes:
            touched.setdefault(axis.group, []).append(name)
    for name, per_unit in times.groups.items():
        if not step.dropped or not all(is_inside(tensor, step.dropped) for tensor in touched.get(name, ())):
            total += per_unit * len(step.groups.get(name, range(known[name].units)))
    # The time of a block holds that of the blocks inside it.
    for name, time in times.blocks.items():
        outer = name.rpartition(".")[0]
        is_outermost = not any(is_inside(outer, (other,)) for other in times.blocks) if outer else True
        if is_outermost:
            total += time
    for name in step.dropped:
        total -= times.blocks.get(name, 0.0)
    return total
