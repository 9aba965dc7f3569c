# SPDX-License-Identifier: Apache-2.0
"""From labels to groups: which of them are units of what, and where they stand in tensors and products."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slimrank.graph._labels import Axis, Labels
from slimrank.graph._ops import Product, Traced
from slimrank.records import AxisUnits, ChannelMap, GroupSpec, LayerSpec, ProductSpec, TensorSpec

_FEWEST_UNITS = 2
# A part that a product's MACs go with: the share of them, and the families whose units it counts.
_Share = tuple[int, int, frozenset[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A dimension of a parameter or buffer that carries channels.

    Attributes:
        name: of the parameter or buffer.
        dim: the dimension.
        labels: canonical label of each index.
        distinct: the labels, each once.
        parts: what the labels are made of.
    """

    name: str
    dim: int
    labels: NDArray[np.int64]
    distinct: tuple[int, ...]
    parts: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class _Family:
    """Labels that are units of one group, those that may not go too.

    Attributes:
        members: (n,) canonical labels, in the order in which the first producer carries them.
        producers: layers that make them, in execution order.
        home: dimension of the first producer's parameter, or whatever parameter carries them.
    """

    members: NDArray[np.int64]
    producers: tuple[str, ...]
    home: _Place


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """Where the units of the families that can be slimmed stand: (family, unit) by label."""

    of: Mapping[int, tuple[int, int]]
    labels: Labels
    known: dict[int, dict[int, set[int]]] = field(default_factory=dict)

    def touches(self, place: _Place) -> bool:
        """Whether any index of a dimension goes with a unit."""
        return not self.of.keys().isdisjoint(place.parts)

    def at(self, label: int) -> Mapping[int, set[int]]:
        """Units that an index with this canonical label goes with, by family."""
        found = self.known.get(label)
        if found is None:
            found = self.known[label] = {}
            for part in self.labels.parts(label):
                if part in self.of:
                    family, unit = self.of[part]
                    found.setdefault(family, set()).add(unit)
        return found


def describe_groups(model: nn.Module, traced: Traced, layers: Sequence[LayerSpec]) -> ChannelMap:
    """Groups of a traced model.

    Args:
        model: the traced model.
        traced: labels and uses, the forward over.
        layers: every layer, in execution order.

    Returns:
        The map, without blocks.
    """
    places = list(_places(traced))
    owned = _owned(model, traced, layers)
    families = _families(traced, places, owned)
    while True:
        units = _live(traced.labels, families)
        # Freezing one family may leave others without a problem, or give them one.
        if not _freeze_problems(traced, places, families, units):
            break
    names = _names(families, units)
    read = {(place.name, place.dim) for place in places if (place.name, place.dim) in traced.uses.read}
    groups = {
        names[index]: _group(traced, index, names[index], families[index], units, places, layers, model, read)
        for index in _order(families, layers)
        if _is_told(traced, families[index], index, units)
    }
    return ChannelMap(
        groups=groups,
        tensors={spec.name: spec for spec in _tensors(traced, places, units, names)},
        products=tuple(_products(traced, units, names)),
    )


def _places(traced: Traced) -> Iterator[_Place]:
    for name, tensor in traced.stored.items():
        for dim, axis in enumerate(traced.known_axes(tensor)):
            if axis is not None and axis.size and (name, dim) not in traced.uses.inside:
                labels = traced.labels.canonical(axis)
                distinct = np.unique(labels).tolist()
                parts = frozenset().union(*map(traced.labels.parts, distinct))
                yield _Place(name, dim, labels, tuple(distinct), parts)


def _owned(model: nn.Module, traced: Traced, layers: Sequence[LayerSpec]) -> list[tuple[str, str]]:
    """(layer, parameter) pairs in execution order: what a layer holds, and what its weight is computed from."""
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


def _families(traced: Traced, places: Sequence[_Place], owned: Sequence[tuple[str, str]]) -> list[_Family]:
    """Families of labels that a parameter makes."""
    uses, labels = traced.uses, traced.labels
    made = [place for place in places if (place.name, place.dim) in uses.made]
    parents: dict[int, int] = {}
    born = [
        birth for birth in labels.births if birth.tensor is None or (birth.tensor, birth.dim) in uses.linked
    ]
    pieces = _pieces(labels, places)
    for birth in born:
        by_piece: defaultdict[int, list[int]] = defaultdict(list)
        for label in labels.canonical(np.arange(birth.start, birth.stop)).tolist():
            by_piece[pieces.get(label, 0)].append(label)
        for members in by_piece.values():
            _link(parents, members, labels)
    strong = set(parents)
    for place in made:
        if traced.stored[place.name].ndim and isinstance(traced.stored[place.name], nn.Parameter):
            _link(parents, sorted(place.parts - strong), labels)
    by_root: defaultdict[int, set[int]] = defaultdict(set)
    for label in parents:
        by_root[_root(parents, label)].add(label)
    by_parameter: defaultdict[str, list[_Place]] = defaultdict(list)
    for place in made:
        by_parameter[place.name].append(place)
    # Linked ones first: a depthwise kernel goes along with what others make.
    makers = [
        (layer, place)
        for layer, name in owned
        for place in by_parameter[name]
        if uses.count[name] or (name, place.dim) in uses.linked
    ]
    found = []
    is_parameter = {name for name, tensor in traced.stored.items() if isinstance(tensor, nn.Parameter)}
    homes = [*makers, *(("", place) for place in made if place.name in is_parameter)]
    homes_of: defaultdict[int, list[int]] = defaultdict(list)
    for index, (_, place) in enumerate(homes):
        for root in {_root(parents, part) for part in place.parts if part in parents}:
            homes_of[root].append(index)
    for root in sorted(by_root):
        at = [homes[index] for index in homes_of[root]]
        if not at:
            continue
        producers = tuple(dict.fromkeys(layer for layer, place in at if layer or (layer, place) in makers))
        linked = [place for layer, place in at if layer and (place.name, place.dim) in uses.linked]
        home = linked[0] if linked else at[0][1]
        first = next((layer for layer, place in at if place is home), "")
        ordered = tuple(dict.fromkeys([first, *producers])) if first else producers
        found.append(_Family(_in_order(by_root[root], home, labels), ordered, home))
    return sorted(found, key=lambda family: _outermost_first(family, labels))


def _pieces(labels: Labels, places: Sequence[_Place]) -> Mapping[int, int]:
    """A number by label, the same for labels that are always cut out, and carried, together.

    Pieces of a layer's outputs can be different things, such as queries and values; and a dimension that
    carries a part of a family only could be left without any channel.
    """
    pieces: dict[int, int] = {}
    for number, parts in enumerate([*map(labels.all_parts, labels.cuts), *(place.parts for place in places)]):
        members = parts if isinstance(parts, frozenset) else parts.tolist()
        pieces.update((part, hash((pieces.get(part, 0), number))) for part in members)
    return pieces


def _outermost_first(family: _Family, labels: Labels) -> tuple[int, int]:
    """Where its first unit starts; of several parts of one product, heads stand before their width."""
    starts = [
        next((i for i, label in enumerate(family.home.labels.tolist()) if member in labels.parts(label)), 0)
        for member in family.members[:2].tolist()
    ]
    return starts[0], -starts[-1]


def _in_order(members: Iterable[int], home: _Place, labels: Labels) -> NDArray[np.int64]:
    rest = dict.fromkeys(sorted(members))
    first = [part for label in dict.fromkeys(home.labels.tolist()) for part in sorted(labels.parts(label))]
    ordered = dict.fromkeys(part for part in first if part in rest)
    return np.array([*ordered, *(part for part in rest if part not in ordered)], np.int64)


def _link(parents: dict[int, int], canonical: Iterable[int], labels: Labels) -> None:
    """Puts labels that are no products into one family."""
    first: int | None = None
    for label in sorted(set(canonical)):
        if labels.parts(label) != {label}:
            continue
        root = _root(parents, label)
        if first is None:
            first = root
        else:
            parents[max(root, first)] = first = min(root, first)


def _root(parents: dict[int, int], label: int) -> int:
    root = parents.setdefault(label, label)
    while parents[root] != root:
        root = parents[root]
    while parents[label] != root:
        parents[label], label = root, parents[label]
    return root


def _live(labels: Labels, families: Sequence[_Family]) -> _Units:
    of: dict[int, tuple[int, int]] = {}
    for index, family in enumerate(families):
        free = family.members[~labels.is_frozen(family.members)]
        of.update((int(label), (index, unit)) for unit, label in enumerate(free))
    return _Units(of, labels)


def _freeze_problems(
    traced: Traced, places: Sequence[_Place], families: Sequence[_Family], units: _Units
) -> bool:
    """Freezes families that cannot be slimmed exactly.

    Returns:
        Whether there were any.
    """
    counts = Counter(family for family, _ in units.of.values())
    problems = {
        family: "all its channels go together as one" for family in counts if counts[family] < _FEWEST_UNITS
    }
    carried: set[int] = set()
    for place in filter(units.touches, places):
        _add_problems(problems, traced, place, units, counts)
        if _is_made(traced, place):
            carried.update(family for label in place.distinct for family in units.at(label))
    for item in traced.uses.products:
        for family in _uneven(item, units, counts):
            problems.setdefault(family, f"it has an uneven share in a product: {item.where}")
    for family in set(counts) - carried:
        problems.setdefault(family, "no parameter makes it")
    for family, text in problems.items():
        traced.labels.freeze(families[family].members, lambda text=text: text)  # type: ignore[misc]
    # A dimension has to keep an index.
    alone = [_in_all(traced, place, units) for place in places if units.touches(place)]
    return any([*alone, problems])


def _is_made(traced: Traced, place: _Place) -> bool:
    is_parameter = isinstance(traced.stored[place.name], nn.Parameter)
    return is_parameter and (place.name, place.dim) in traced.uses.made


def _add_problems(
    problems: dict[int, str], traced: Traced, place: _Place, units: _Units, counts: Mapping[int, int]
) -> None:
    """Families that cannot be slimmed because of one dimension."""
    is_both = (place.name, place.dim) in traced.uses.made & traced.uses.read
    seen: defaultdict[frozenset[int], set[tuple[int, ...]]] = defaultdict(set)
    for label in place.distinct:
        at = units.at(label)
        families = sorted(at)
        seen[frozenset(families)].add(tuple(min(at[family]) for family in families))
        for family, own in at.items():
            if is_both:
                problems.setdefault(family, f"{place.name} makes these channels and reads them (tied)")
            if len(own) > 1:
                problems.setdefault(family, f"an index of {place.name} belongs to several of its units")
    for together, tuples in seen.items():
        if len(together) > 1 and len(tuples) != prod(counts[family] for family in together):
            # Units of two families could take every index with them.
            family = min(together, key=lambda family: (counts[family], family))
            problems.setdefault(family, f"{place.name} holds it unevenly")


def _in_all(traced: Traced, place: _Place, units: _Units) -> bool:
    """Freezes units that stand in every index of a dimension.

    Returns:
        Whether there were any.
    """
    common = frozenset.intersection(*(traced.labels.parts(label) for label in place.distinct))
    alone = sorted(common & units.of.keys())
    if alone:
        traced.labels.freeze(np.array(alone), lambda: f"without it nothing of {place.name} is left")
    return bool(alone)


def _shares(
    axis: NDArray[np.int64], units: _Units, counts: Mapping[int, int]
) -> tuple[list[_Share], set[int]]:
    """How the indices of a dimension fall into parts that go with families.

    Returns:
        (indices, size of the dimension, families) of each part, and families whose units it does not hold
        equally often.
    """
    values, times = np.unique(units.labels.canonical(axis), return_counts=True)
    parts: defaultdict[frozenset[int], Counter[tuple[int, ...]]] = defaultdict(Counter)
    for label, count in zip(values.tolist(), times.tolist(), strict=True):
        at = units.at(label)
        families = sorted(at)
        parts[frozenset(families)][tuple(min(at[family]) for family in families)] += count
    uneven: set[int] = set()
    for families_of, seen in parts.items():
        expected = prod(counts[family] for family in families_of)
        if len(seen) != expected or len(set(seen.values())) != 1:
            uneven |= families_of
    return [(sum(seen.values()), axis.size, families_of) for families_of, seen in parts.items()], uneven


def _uneven(item: Product, units: _Units, counts: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    present: Counter[int] = Counter()
    for axis in _labelled(item.axes):
        shares, uneven = _shares(axis, units, counts)
        found |= uneven
        present.update({family for _, _, families in shares for family in families})
    # With the square of its share, of a product of channels with themselves, no cost reckons.
    return found | {family for family, count in present.items() if count > 1}


def _labelled(axes: Sequence[Axis]) -> list[NDArray[np.int64]]:
    return [axis for axis in axes if axis is not None and axis.size]


def _names(families: Sequence[_Family], units: _Units) -> Mapping[int, str]:
    """Names by family: of the first producer, numbered where it makes several, live ones first."""
    live = {family for family, _ in units.of.values()}
    taken: Counter[str] = Counter()
    names = {}
    for index in sorted(range(len(families)), key=lambda index: (index not in live, index)):
        family = families[index]
        parameter = family.home.name
        base = family.producers[0] if family.producers else parameter.rpartition(".")[0] or parameter
        taken[base] += 1
        names[index] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return names


def _order(families: Sequence[_Family], layers: Sequence[LayerSpec]) -> list[int]:
    order = {spec.name: index for index, spec in enumerate(layers)}
    last = len(order)
    return sorted(
        range(len(families)),
        key=lambda i: (order.get(families[i].producers[0], last) if families[i].producers else last, i),
    )


def _is_told(traced: Traced, family: _Family, index: int, units: _Units) -> bool:
    """Live families, and those without which nothing of a producer's dimension can go."""
    if any(of == index for of, _ in units.of.values()):
        return True
    if not family.producers or len(family.members) < _FEWEST_UNITS:
        return False
    members = set(family.members.tolist())
    return any(
        not units.at(label)
        for label in family.home.distinct
        if traced.labels.parts(label) & members
    )


def _group(
    traced: Traced,
    index: int,
    name: str,
    family: _Family,
    units: _Units,
    places: Sequence[_Place],
    layers: Sequence[LayerSpec],
    model: nn.Module,
    read: set[tuple[str, int]],
) -> GroupSpec:
    labels = traced.labels
    live = [label for label in family.members.tolist() if label in units.of]
    members = set(live or family.members.tolist())
    width = sum(live[0] in labels.parts(label) for label in family.home.labels.tolist()) if live else 1
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
        place.name
        for place in places
        if (place.name, place.dim) in read and members & place.parts
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
    for spec in layers:
        if spec.kind == "other" or spec.groups != 1 or len(spec.calls) != 1:
            continue
        weight = model.get_submodule(spec.name)._parameters.get("weight")
        own = names.get(id(weight), "")
        # Another use of its weight (a tied layer, a look at it) would be changed by fitting it anew.
        if own in readers and (own, 1) in traced.uses.read and traced.uses.count[own] == 1:
            yield spec.name


def _tensors(
    traced: Traced, places: Sequence[_Place], units: _Units, names: Mapping[int, str]
) -> Iterator[TensorSpec]:
    axes: defaultdict[str, list[AxisUnits]] = defaultdict(list)
    for place in filter(units.touches, places):
        at = {label: units.at(label) for label in place.distinct}
        for family in sorted({family for found in at.values() for family in found}):
            own = [min(at[label].get(family, {-1})) for label in place.labels.tolist()]
            is_read = (place.name, place.dim) in traced.uses.read
            axes[place.name].append(
                AxisUnits(
                    group=names[family],
                    dim=place.dim,
                    role="input" if is_read else "output",
                    units=tuple(own),
                )
            )
    for name, own_axes in axes.items():
        tensor = traced.stored[name]
        yield TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            itemsize=tensor.element_size(),
            is_parameter=isinstance(tensor, nn.Parameter),
            positions=traced.uses.macs[name] // tensor.numel(),
            axes=tuple(own_axes),
        )


def _products(traced: Traced, units: _Units, names: Mapping[int, str]) -> Iterator[ProductSpec]:
    """Products in parts that go with the same groups, those of one module together."""
    counts = Counter(family for family, _ in units.of.values())
    macs: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for item in traced.uses.products:
        shares = [_shares(axis, units, counts)[0] for axis in _labelled(item.axes)]
        for chosen in product(*shares):
            families = sorted({family for _, _, own in chosen for family in own})
            part = item.macs
            for count, size, _ in chosen:
                part = part * count // size
            if families:
                macs[item.module, tuple(names[family] for family in families)] += part
    for (module, groups), total in macs.items():
        yield ProductSpec(module=module, macs=total, groups=groups)
