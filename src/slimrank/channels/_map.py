# SPDX-License-Identifier: Apache-2.0
"""The map of a traced model: groups, tensors and products, by name."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from torch import nn

from slimrank.channels._families import (
    ChannelDim,
    Family,
    Units,
    freeze_problems,
    labelled,
    live_units,
    read_channel_dims,
    read_families,
    shares_of,
)
from slimrank.channels.trace._ops import Traced
from slimrank.records import AxisUnits, ChannelMap, GroupSpec, LayerSpec, ProductSpec, TensorSpec

# Read their inputs along dimension 0 of the weight, not 1.
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def describe_groups(model: nn.Module, traced: Traced, layers: Sequence[LayerSpec]) -> ChannelMap:
    """Groups of a traced model.

    Args:
        model: the traced model.
        traced: labels and uses, the forward over.
        layers: every layer, in execution order.

    Returns:
        The map, without blocks.
    """
    channel_dims = list(read_channel_dims(traced))
    owned = _owned(model, traced, layers)
    families = read_families(traced, channel_dims, owned)
    while True:
        units = live_units(traced.labels, families)
        # Freezing a family may solve the problem of another one, or make one: look again until none is left.
        if not freeze_problems(traced, channel_dims, families, units):
            break
    shown = _shown(traced, families, units)
    names = _names(families, units, shown)
    read = {
        (channel_dim.name, channel_dim.dim)
        for channel_dim in channel_dims
        if (channel_dim.name, channel_dim.dim) in traced.uses.read
    }
    groups = {
        names[index]: _group(
            traced, index, names[index], families[index], units, channel_dims, layers, model, read
        )
        for index in _order(families, layers)
        if index in shown
    }
    return ChannelMap(
        groups=groups,
        tensors={spec.name: spec for spec in _tensors(traced, channel_dims, units, names)},
        products=tuple(_products(traced, units, names)),
    )


def _owned(model: nn.Module, traced: Traced, layers: Sequence[LayerSpec]) -> list[tuple[str, str]]:
    """(layer, parameter) pairs in execution order, with what a layer's weight is computed from."""
    names = {id(tensor): name for name, tensor in traced.stored.items()}
    modules = dict(model.named_modules())
    pairs = []
    for spec in layers:
        if ".parametrizations." in f".{spec.name}.":
            continue
        holders = [modules[spec.name]] if spec.name in modules else []
        parametrizations = getattr(holders[0], "parametrizations", None) if holders else None
        if isinstance(parametrizations, nn.Module):
            holders += parametrizations.modules()
        for holder in holders:
            for parameter in holder._parameters.values():
                if parameter is not None and id(parameter) in names:
                    pairs.append((spec.name, names[id(parameter)]))
    return pairs


def _names(families: Sequence[Family], units: Units, shown: set[int]) -> Mapping[int, str]:
    """Names by family: of the first producer, numbered where it makes several, live ones first."""
    live = {family for family, _ in units.by_label.values()}
    taken: Counter[str] = Counter()
    names = {}
    for index in sorted(shown, key=lambda index: (index not in live, index)):
        family = families[index]
        parameter = family.home.name
        base = family.producers[0] if family.producers else parameter.rpartition(".")[0] or parameter
        taken[base] += 1
        names[index] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return names


def _order(families: Sequence[Family], layers: Sequence[LayerSpec]) -> list[int]:
    order = {spec.name: index for index, spec in enumerate(layers)}
    last = len(order)
    return sorted(
        range(len(families)),
        key=lambda i: (order.get(families[i].producers[0], last) if families[i].producers else last, i),
    )


def _shown(traced: Traced, families: Sequence[Family], units: Units) -> set[int]:
    """Families that users see.

    Returns:
        Live ones; and for each layer of which nothing can go, the largest that can say why.
    """
    live = {family for family, _ in units.by_label.values()}
    largest: dict[str, int] = {}
    for index, family in enumerate(families):
        if index in live or not family.producers:
            continue
        members = set(family.members.tolist())
        stays = any(
            not units.of_label(label) and traced.labels.parts(label) & members
            for label in family.home.distinct
        )
        best = largest.get(family.producers[0])
        if stays and (best is None or len(members) > len(families[best].members)):
            largest[family.producers[0]] = index
    return live | set(largest.values())


def _group(
    traced: Traced,
    index: int,
    name: str,
    family: Family,
    units: Units,
    channel_dims: Sequence[ChannelDim],
    layers: Sequence[LayerSpec],
    model: nn.Module,
    read: set[tuple[str, int]],
) -> GroupSpec:
    labels = traced.labels
    live = [label for label in family.members.tolist() if label in units.by_label]
    members = set(live or family.members.tolist())
    width = sum(live[0] in labels.parts(label) for label in family.home.labels.tolist()) if live else 1
    if family.producers and isinstance(model.get_submodule(family.producers[0]), _RECURRENT):
        # A unit has a row in every gate, and is one number of what the layer gives.
        width = 1
    spec = GroupSpec(
        name=name,
        units=len(members),
        unit_width=max(width, 1),
        producers=family.producers,
        consumers=(),
    )
    if not live:
        reasons = [reason for label in members if (reason := labels.reason_of(label)) is not None]
        return replace(spec, reason=min(reasons)[1])
    readers = {
        channel_dim.name
        for channel_dim in channel_dims
        if (channel_dim.name, channel_dim.dim) in read and members & channel_dim.parts
    }
    return replace(
        spec,
        consumers=tuple(_consumers(traced, readers, layers, model)),
        is_inner=any(members & set(labels.all_parts(axis).tolist()) for axis in traced.uses.sums),
    )


def _consumers(
    traced: Traced, readers: set[str], layers: Sequence[LayerSpec], model: nn.Module
) -> Iterator[str]:
    names = {id(tensor): name for name, tensor in traced.stored.items()}
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    for spec in layers:
        module = model.get_submodule(spec.name)
        is_transposed = type(module) in _TRANSPOSED and module.groups == 1
        if (spec.kind == "other" and not is_transposed) or not spec.has_matrix or not spec.calls:
            continue
        parameters = module._parameters
        leaves = ("weight_ih_l0", "bias_ih_l0") if spec.is_recurrent else ("weight", "bias")
        weight, bias = names.get(id(parameters.get(leaves[0])), ""), parameters.get(leaves[1])
        # Another use of weight or bias (a tied layer, a look at it) would be changed by fitting it anew.
        is_alone = traced.uses.count[weight] == len(spec.calls) and (bias is None or owners[id(bias)] == 1)
        if weight in readers and (weight, 0 if spec.is_transposed else 1) in traced.uses.read and is_alone:
            yield spec.name


def _tensors(
    traced: Traced, channel_dims: Sequence[ChannelDim], units: Units, names: Mapping[int, str]
) -> Iterator[TensorSpec]:
    axes: defaultdict[str, list[AxisUnits]] = defaultdict(list)
    for channel_dim in filter(units.touches, channel_dims):
        by_label = {label: units.of_label(label) for label in channel_dim.distinct}
        for family in sorted({family for found in by_label.values() for family in found}):
            units_of_index = [min(by_label[label].get(family, {-1})) for label in channel_dim.labels.tolist()]
            is_read = (channel_dim.name, channel_dim.dim) in traced.uses.read
            axes[channel_dim.name].append(
                AxisUnits(
                    group=names[family],
                    dim=channel_dim.dim,
                    role="input" if is_read else "output",
                    units=tuple(units_of_index),
                )
            )
    for name, axes_of_tensor in axes.items():
        tensor = traced.stored[name]
        yield TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            itemsize=tensor.element_size(),
            is_parameter=isinstance(tensor, nn.Parameter),
            # How often each number of the tensor is multiplied in one forward.
            positions=traced.uses.macs[name] // tensor.numel(),
            axes=tuple(axes_of_tensor),
        )


def _products(traced: Traced, units: Units, names: Mapping[int, str]) -> Iterator[ProductSpec]:
    """Products in parts that go with the same groups, those of one module together."""
    counts = Counter(family for family, _ in units.by_label.values())
    macs: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for item in traced.uses.products:
        shares = [shares_of(axis, units, counts)[0] for axis in labelled(item.axes)]
        for chosen in product(*shares):
            families = sorted({family for _, _, families_of_part in chosen for family in families_of_part})
            part = item.macs
            for count, size, _ in chosen:
                part = part * count // size
            if families:
                macs[item.module, tuple(names[family] for family in families)] += part
    for (module, groups), total in macs.items():
        yield ProductSpec(module=module, macs=total, groups=groups)
