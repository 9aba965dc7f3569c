# SPDX-License-Identifier: Apache-2.0
"""Families of labels: which of them are units of one group, and what keeps a family from being slimmed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slimrank.channels.trace._labels import Axis, Labels
from slimrank.channels.trace._ops import Traced, TracedProduct

# A group of one unit can only go as a whole, which would leave nothing for its readers.
_FEWEST_UNITS = 2
# A part that a product's MACs go with: the share of them, and the families whose units it counts.
Share = tuple[int, int, frozenset[int]]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelDim:
    """A dimension of a parameter or buffer that carries channels.

    Attributes:
        name: of the parameter or buffer.
        dim: the dimension.
        labels: canonical label of each index.
        distinct: the labels, each once.
        parts: what the labels are made of.
        is_plain: whether none of the labels is a product.
    """

    name: str
    dim: int
    labels: NDArray[np.int64]
    distinct: tuple[int, ...]
    parts: frozenset[int]
    is_plain: bool


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Labels that are units of one group, those that may not go too.

    Attributes:
        members: (n,) canonical labels, in the order in which the first producer carries them.
        producers: layers that make them, in execution order.
        home: dimension of the first producer's parameter, or whatever parameter carries them.
    """

    members: NDArray[np.int64]
    producers: tuple[str, ...]
    home: ChannelDim


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Where the units of the families that can be slimmed stand: (family, unit) by label."""

    by_label: Mapping[int, tuple[int, int]]
    labels: Labels
    known: dict[int, dict[int, set[int]]] = field(default_factory=dict)

    def touches(self, channel_dim: ChannelDim) -> bool:
        """Whether any index of a dimension goes with a unit."""
        return not self.by_label.keys().isdisjoint(channel_dim.parts)

    def of_label(self, label: int) -> Mapping[int, set[int]]:
        """Units that an index with this canonical label goes with, by family."""
        found = self.known.get(label)
        if found is None:
            found = self.known[label] = {}
            for part in self.labels.parts(label):
                if part in self.by_label:
                    family, unit = self.by_label[part]
                    found.setdefault(family, set()).add(unit)
        return found


def read_channel_dims(traced: Traced) -> Iterator[ChannelDim]:
    """Every dimension of every parameter and buffer that the forward has used, kernels left out."""
    for name, tensor in traced.stored.items():
        for dim, axis in enumerate(traced.known_axes(tensor)):
            if axis is not None and axis.size and (name, dim) not in traced.uses.inside:
                labels = traced.labels.canonical(axis)
                distinct = np.unique(labels).tolist()
                parts = frozenset().union(*map(traced.labels.parts, distinct))
                yield ChannelDim(name, dim, labels, tuple(distinct), parts, parts == {*distinct} - {0})


def read_families(
    traced: Traced, channel_dims: Sequence[ChannelDim], owned: Sequence[tuple[str, str]]
) -> list[Family]:
    """Families of labels that a parameter makes.

    Args:
        traced: labels and uses, the forward over.
        channel_dims: every dimension that carries channels.
        owned: (layer, parameter) pairs in execution order.

    Returns:
        Families, those of the outer part of a dimension before those of the inner one.
    """
    parents = _linked(traced, channel_dims)
    by_root: defaultdict[int, set[int]] = defaultdict(set)
    for label in parents:
        by_root[_root(parents, label)].add(label)
    homes = _homes(traced, channel_dims, owned)
    homes_of: defaultdict[int, list[int]] = defaultdict(list)
    for index, (_, channel_dim) in enumerate(homes):
        for root in {_root(parents, part) for part in channel_dim.parts if part in parents}:
            homes_of[root].append(index)
    carried = frozenset().union(*(channel_dim.parts for _, channel_dim in homes))
    found = [
        _family(traced, by_root[root] & carried, [homes[index] for index in homes_of[root]])
        for root in sorted(by_root)
        if root in homes_of
    ]
    return sorted(found, key=lambda family: _outermost_first(family, traced.labels))


def _linked(traced: Traced, channel_dims: Sequence[ChannelDim]) -> dict[int, int]:
    """A union-find of families: outputs of one layer belong together, and parts of one dimension."""
    uses, labels = traced.uses, traced.labels
    parents: dict[int, int] = {}
    pieces = _pieces(labels, channel_dims)
    for birth in labels.births:
        if birth.tensor is not None and (birth.tensor, birth.dim) not in uses.linked:
            continue
        by_piece: defaultdict[int, list[int]] = defaultdict(list)
        for label in labels.canonical(np.arange(birth.start, birth.stop)).tolist():
            by_piece[pieces.get(label, 0)].append(label)
        for members in by_piece.values():
            _link(parents, members, labels)
    # Outputs of layers and parts of split dimensions are linked by now, and stay so. Other labels go with the
    # parameter that makes them.
    strong = set(parents)
    for channel_dim in channel_dims:
        if _is_made(traced, channel_dim):
            _link(parents, sorted(channel_dim.parts - strong), labels)
    return parents


def _homes(
    traced: Traced, channel_dims: Sequence[ChannelDim], owned: Sequence[tuple[str, str]]
) -> list[tuple[str, ChannelDim]]:
    """Dimensions that parameters make, with their layers, in execution order; those without a layer last."""
    uses = traced.uses
    made = [channel_dim for channel_dim in channel_dims if _is_made(traced, channel_dim)]
    by_parameter: defaultdict[str, list[ChannelDim]] = defaultdict(list)
    for channel_dim in made:
        by_parameter[channel_dim.name].append(channel_dim)
    makers = [
        (layer, channel_dim)
        for layer, name in owned
        for channel_dim in by_parameter[name]
        if uses.count[name] or (name, channel_dim.dim) in uses.linked
    ]
    return [*makers, *(("", channel_dim) for channel_dim in made)]


def _family(traced: Traced, members: set[int], homes: Sequence[tuple[str, ChannelDim]]) -> Family:
    # Linked ones first: a depthwise kernel goes along with what others make.
    linked = [
        (layer, channel_dim) for layer, channel_dim in homes if layer and _is_linked(traced, channel_dim)
    ]
    first, home = (linked or homes)[0]
    producers = dict.fromkeys(layer for layer, _ in [(first, home), *homes] if layer)
    return Family(_in_order(members, home, traced.labels), tuple(producers), home)


def _is_linked(traced: Traced, channel_dim: ChannelDim) -> bool:
    return (channel_dim.name, channel_dim.dim) in traced.uses.linked


def _pieces(labels: Labels, channel_dims: Sequence[ChannelDim]) -> Mapping[int, int]:
    """A number by label, the same for labels that are always cut out, and carried, together.

    Pieces of a layer's outputs can be different things, such as queries and values; and a dimension that
    carries a part of a family only could be left without any channel.
    """
    pieces: dict[int, int] = {}
    cuts: list[Iterable[int]] = [labels.all_parts(cut) for cut in labels.cuts]
    for number, members in enumerate([*cuts, *(channel_dim.parts for channel_dim in channel_dims)]):
        # A hash of all cuts and dimensions that a label is in: of whole numbers, so the same in every run.
        pieces.update((part, hash((pieces.get(part, 0), number))) for part in members)
    return pieces


def _outermost_first(family: Family, labels: Labels) -> tuple[int, int]:
    """Where its first unit starts; of several parts of one product, heads stand before their width."""
    starts = [
        next((i for i, label in enumerate(family.home.labels.tolist()) if member in labels.parts(label)), 0)
        for member in family.members[:2].tolist()
    ]
    return starts[0], -starts[-1]


def _in_order(members: Iterable[int], home: ChannelDim, labels: Labels) -> NDArray[np.int64]:
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


def live_units(labels: Labels, families: Sequence[Family]) -> Units:
    """Units of the families that can be slimmed, as far as is known now."""
    by_label: dict[int, tuple[int, int]] = {}
    for index, family in enumerate(families):
        free = family.members[~labels.is_frozen(family.members)]
        by_label.update((int(label), (index, unit)) for unit, label in enumerate(free))
    return Units(by_label, labels)


def freeze_problems(
    traced: Traced, channel_dims: Sequence[ChannelDim], families: Sequence[Family], units: Units
) -> bool:
    """Freezes families that cannot be slimmed exactly.

    Returns:
        Whether there were any.
    """
    counts = Counter(family for family, _ in units.by_label.values())
    problems = {
        family: "all its channels go together as one" for family in counts if counts[family] < _FEWEST_UNITS
    }
    for channel_dim in filter(units.touches, channel_dims):
        _add_problems(problems, traced, channel_dim, units, counts)
    for item in traced.uses.products:
        for family in _uneven(item, units, counts):
            problems.setdefault(family, f"it has an uneven share in a product: {item.where}")
    for family, text in problems.items():
        traced.labels.freeze(families[family].members, lambda text=text: text)  # type: ignore[misc]
    # A dimension has to keep an index.
    alone = [
        _in_all(traced, channel_dim, units) for channel_dim in channel_dims if units.touches(channel_dim)
    ]
    return any([*alone, problems])


def _is_made(traced: Traced, channel_dim: ChannelDim) -> bool:
    is_parameter = isinstance(traced.stored[channel_dim.name], nn.Parameter)
    return is_parameter and (channel_dim.name, channel_dim.dim) in traced.uses.made


def _add_problems(
    problems: dict[int, str], traced: Traced, channel_dim: ChannelDim, units: Units, counts: Mapping[int, int]
) -> None:
    """Families that cannot be slimmed because of one dimension."""
    where = (channel_dim.name, channel_dim.dim)
    is_both = where in traced.uses.made and where in traced.uses.read
    if channel_dim.is_plain and not is_both:
        return
    seen: defaultdict[frozenset[int], set[tuple[int, ...]]] = defaultdict(set)
    for label in channel_dim.distinct:
        by_family = units.of_label(label)
        families = sorted(by_family)
        seen[frozenset(families)].add(tuple(min(by_family[family]) for family in families))
        for family, units_here in by_family.items():
            if is_both:
                problems.setdefault(family, f"{channel_dim.name} makes these channels and reads them (tied)")
            if len(units_here) > 1:
                problems.setdefault(family, f"an index of {channel_dim.name} belongs to several of its units")
    for together, tuples in seen.items():
        if len(together) > 1 and len(tuples) != prod(counts[family] for family in together):
            # Units of two families could take every index with them.
            family = min(together, key=lambda family: (counts[family], family))
            problems.setdefault(family, f"{channel_dim.name} holds it unevenly")


def _in_all(traced: Traced, channel_dim: ChannelDim, units: Units) -> bool:
    """Freezes units that stand in every index of a dimension.

    Returns:
        Whether there were any.
    """
    if channel_dim.is_plain and len(channel_dim.distinct) > 1:
        return False
    common = frozenset.intersection(*(traced.labels.parts(label) for label in channel_dim.distinct))
    alone = sorted(common & units.by_label.keys())
    if alone:
        traced.labels.freeze(np.array(alone), lambda: f"without it nothing of {channel_dim.name} is left")
    return bool(alone)


def shares_of(
    axis: NDArray[np.int64], units: Units, counts: Mapping[int, int]
) -> tuple[list[Share], set[int]]:
    """How the indices of a dimension fall into parts that go with families.

    Returns:
        (indices, size of the dimension, families) of each part, and families whose units it does not hold
        equally often.
    """
    values, times = np.unique(units.labels.canonical(axis), return_counts=True)
    parts: defaultdict[frozenset[int], Counter[tuple[int, ...]]] = defaultdict(Counter)
    for label, count in zip(values.tolist(), times.tolist(), strict=True):
        by_family = units.of_label(label)
        families = sorted(by_family)
        parts[frozenset(families)][tuple(min(by_family[family]) for family in families)] += count
    uneven: set[int] = set()
    for families_of, seen in parts.items():
        expected = prod(counts[family] for family in families_of)
        if len(seen) != expected or len(set(seen.values())) != 1:
            uneven |= families_of
    return [(sum(seen.values()), axis.size, families_of) for families_of, seen in parts.items()], uneven


def _uneven(item: TracedProduct, units: Units, counts: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    present: Counter[int] = Counter()
    for axis in labelled(item.axes):
        shares, uneven = shares_of(axis, units, counts)
        found |= uneven
        present.update({family for _, _, families in shares for family in families})
    # A product of channels with themselves shrinks with the square of their share, which no cost formula has.
    return found | {family for family, count in present.items() if count > 1}


def labelled(axes: Sequence[Axis]) -> list[NDArray[np.int64]]:
    return [axis for axis in axes if axis is not None and axis.size]
