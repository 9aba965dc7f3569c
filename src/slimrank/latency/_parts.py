# SPDX-License-Identifier: Apache-2.0
"""Node times to parts: to the layers, the groups and the blocks that they belong to."""

from collections.abc import Iterable
from dataclasses import replace

from slimrank.deploy import NodeTime
from slimrank.latencies import Parts, Place
from slimrank.plan import Step, Structure, is_inside, slimmable_groups

# What a profile adds to a node at most, ns, and the share of its time that is left of it at least.
_OVERHEAD, _LEAST_LEFT = 2500.0, 0.25


def parts_of(nodes: Iterable[NodeTime], variant: Step) -> Parts:
    """Adds up node times.

    Args:
        nodes: of the variant's file.
        variant: what was done to the network.

    Returns:
        The times of its parts.
    """
    structure = variant.structure
    outputs, homes = groups_by_layer(structure), group_homes(structure)
    factors: dict[str, list[float]] = {}
    others: dict[Place, float] = {}
    for node in nodes:
        layer = _layer_of(node.module, structure)
        if layer is not None and not node.is_beside:
            index = _factor_index(node.module, layer) if layer in variant.settings else 0
            times = factors.setdefault(layer, [0.0] * (2 if layer in variant.settings else 1))
            times[index] += node.nanoseconds
            continue
        block = _innermost(node.module, structure.channels.blocks)
        sources = [_layer_of(source, structure) for source in node.sources]
        groups = {group for source in sources if source is not None for group in outputs.get(source, ())}
        place = Place(
            block=block, groups=tuple(sorted(g for g in groups if not block or homes.get(g) == block))
        )
        others[place] = others.get(place, 0.0) + node.nanoseconds
    return Parts(factors={name: tuple(times) for name, times in factors.items()}, others=others)


def node_counts(nodes: Iterable[NodeTime], variant: Step) -> Parts:
    """How many nodes each part has, in the place of its time."""
    return parts_of((replace(node, nanoseconds=1.0) for node in nodes), variant)


def without_overhead(parts: Parts, counts: Parts, whole: float) -> Parts:
    """Times without what the profile itself takes: about the same for each node, however brief it is.

    Args:
        parts: by the profile.
        counts: nodes of each part.
        whole: ns that a run takes without a profile.

    Returns:
        Times that add up to the whole, where the profile is all that makes them longer.
    """
    if parts.total <= whole or not counts.total:
        return parts
    overhead = min((parts.total - whole) / counts.total, _OVERHEAD)

    def left(time: float, count: float) -> float:
        return max(time - overhead * count, _LEAST_LEFT * time)

    return Parts(
        factors={
            name: tuple(left(*pair) for pair in zip(times, counts.factors[name], strict=True))
            for name, times in parts.factors.items()
        },
        others={place: left(time, counts.others[place]) for place, time in parts.others.items()},
    )


def groups_by_layer(structure: Structure) -> dict[str, set[str]]:
    """The groups that can be slimmed to which the outputs of each layer belong."""
    known = slimmable_groups(structure.channels)
    found: dict[str, set[str]] = {}
    for name, tensor in structure.channels.tensors.items():
        layer = name.rpartition(".")[0]
        if layer in structure.layers and name.endswith(".weight"):
            groups = {axis.group for axis in tensor.axes if axis.role == "output" and axis.group in known}
            found[layer] = groups
    return found


def group_homes(structure: Structure) -> dict[str, str]:
    """The innermost block that all of a group is inside of; groups without one are not in it."""
    touched: dict[str, list[str]] = {}
    for name, tensor in structure.channels.tensors.items():
        for axis in tensor.axes:
            touched.setdefault(axis.group, []).append(name)
    homes = {}
    for group, names in touched.items():
        inside = [b for b in structure.channels.blocks if all(is_inside(name, (b,)) for name in names)]
        if inside:
            homes[group] = max(inside, key=len)
    return homes


def _layer_of(module: str, structure: Structure) -> str | None:
    """The layer that a module is, or is inside of: a factor of it, say."""
    name = module
    while name and name not in structure.layers:
        name = name.rpartition(".")[0]
    return name or None


def _factor_index(module: str, layer: str) -> int:
    inner = module[len(layer) + 1 :].partition(".")[0]
    return 1 if inner == "1" else 0


def _innermost(module: str, blocks: Iterable[str]) -> str:
    return max((block for block in blocks if is_inside(module, (block,))), key=len, default="")
