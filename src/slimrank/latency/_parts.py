# SPDX-License-Identifier: Apache-2.0
"""Node times to what a plan can change: factors of layers, groups, blocks, and the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slimrank.cost import slimmed_spec
from slimrank.deploy import NodeTime
from slimrank.plan import Step, Structure, is_inside, slimmable_groups
from slimrank.records import LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Times of the parts of one variant, ns for one run of the batch.

    Attributes:
        factors: by layer: of the layer in one piece, or of each factor of its pair, in order.
        groups: of what follows the channels of a group and is no layer.
        blocks: of what else is inside a block, by the innermost one.
        rest: of all other nodes.
    """

    factors: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[str, float] = field(default_factory=dict)
    rest: float = 0.0

    @property
    def total(self) -> float:
        """Of all nodes together."""
        layers = sum(sum(times) for times in self.factors.values())
        return layers + sum(self.groups.values()) + sum(self.blocks.values()) + self.rest


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
    groups: dict[str, float] = {}
    blocks: dict[str, float] = {}
    rest = 0.0
    for node in nodes:
        layer = _layer_of(node.module, structure)
        if layer is not None:
            index = _factor_index(node.module, layer) if layer in variant.settings else 0
            times = factors.setdefault(layer, [0.0] * (2 if layer in variant.settings else 1))
            times[index] += node.nanoseconds
            continue
        block = _innermost(node.module, structure.channels.blocks)
        sources = [_layer_of(source, structure) for source in node.sources]
        found = {group for source in sources if source is not None for group in outputs.get(source, ())}
        group = found.pop() if len(found) == 1 else None
        if group is not None and (block is None or homes.get(group) == block):
            groups[group] = groups.get(group, 0.0) + node.nanoseconds
        elif block is not None:
            blocks[block] = blocks.get(block, 0.0) + node.nanoseconds
        else:
            rest += node.nanoseconds
    return Parts(
        factors={name: tuple(times) for name, times in factors.items()},
        groups=groups,
        blocks=blocks,
        rest=rest,
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


def sizes_of(structure: Structure, name: str, kept: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Rows and columns of a layer's weight once channels are gone."""
    return layer_sizes(slimmed_spec(structure.layers[name], structure.channels, kept))


def layer_sizes(spec: LayerSpec) -> tuple[int, int]:
    """Rows and columns of a layer's weight: its outputs, and its inputs in one group of a grouped kernel."""
    if len(spec.weight_shape) < 2:
        return spec.weight_shape[0], 1
    return spec.n_outputs, spec.weight_shape[0 if spec.is_transposed else 1]


def _layer_of(module: str, structure: Structure) -> str | None:
    """The layer that a module is, or is inside of: a factor of it, say."""
    name = module
    while name and name not in structure.layers:
        name = name.rpartition(".")[0]
    return name or None


def _factor_index(module: str, layer: str) -> int:
    inner = module[len(layer) + 1 :].partition(".")[0]
    return 1 if inner == "1" else 0


def _innermost(module: str, blocks: Iterable[str]) -> str | None:
    return max((block for block in blocks if is_inside(module, (block,))), key=len, default=None)
