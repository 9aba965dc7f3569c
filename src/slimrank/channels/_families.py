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

_FEWEST_UNITS = 2
# A part that a product's MACs go with: the share of them, and the families whose units it counts.
Share = tuple[int, int, frozenset[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
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
    home: Place


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Where the units of the families that can be slimmed stand: (family, unit) by label."""

    of: Mapping[int, tuple[int, int]]
    labels: Labels
    known: dict[int, dict[int, set[int]]] = field(default_factory=dict)

    def touches(self, place: Place) -> bool:
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


def read_places(traced: Traced) -> Iterator[Place]:
    """Every dimension of every parameter and buffer that the forward has used, kernels left out."""
    for name, tensor in traced.stored.items():
        for dim, axis in enumerate(traced.known_axes(tensor)):
            if axis is not None and axis.size and (name, dim) not in traced.uses.inside:
                labels = traced.labels.canonical(axis)
                distinct = np.unique(labels).tolist()
                parts = frozenset().union(*map(traced.labels.parts, distinct))
                yield Place(name, dim, labels, tuple(distinct), parts, parts == {*distinct} - {0})


def read_families(traced: Traced, places: Sequence[Place], owned: Sequence[tuple[str, str]]) -> list[Family]:
    """Families of labels that a parameter makes.

    Args:
        traced: labels and uses, the forward over.
        places: every dimension that carries channels.
        owned: (layer, parameter) pairs in execution order.

    Returns:
        Families, those of the outer part of a dimension before those of the inner one.
    """
    parents = _linked(traced, places)
    by_root: defaultdict[int, set[int]] = defaultdict(set)
    for label in parents:
        by_root[_root(parents, label)].add(label)
    homes = _homes(traced, places, owned)
    homes_of: defaultdict[int, list[int]] = defaultdict(list)
    for index, (_, place) in enumerate(homes):
        for root in {_root(parents, part) for part in place.parts if part in parents}:
            homes_of[root].append(index)
    carried = frozenset().union(*(place.parts for _, place in homes))
    found = [
        _family(traced, by_root[root] & carried, [homes[index] for index in homes_of[root]])
        for root in sorted(by_root)
        if root in homes_of
    ]
    return sorted(found, key=lambda family: _outermost_first(family, traced.labels))


def _linked(traced: Traced, places: Sequence[Place]) -> dict[int, int]:
    """A union-find of families: outputs of one layer belong together, and parts of one dimension."""
    uses, labels = traced.uses, traced.labels
    parents: dict[int, int] = {}
    pieces = _pieces(labels, places)
    for birth in labels.births:
        if birth.tensor is not None and (birth.tensor, birth.dim) not in uses.linked:
            continue
        by_piece: defaultdict[int, list[int]] = defaultdict(list)
        for label in labels.canonical(np.arange(birth.start, birth.stop)).tolist():
            by_piece[pieces.get(label, 0)].append(label)
        for members in by_piece.values():
            _link(parents, members, labels)
    strong = set(parents)
    for place in places:
        if _is_made(traced, place):
            _link(parents, sorted(place.parts - strong), labels)
    return parents


def _homes(
    traced: Traced, places: Sequence[Place], owned: Sequence[tuple[str, str]]
) -> list[tuple[str, Place]]:
    """Dimensions that parameters make, with their layers, in execution order; those without a layer last."""
    uses = traced.uses
    made = [place for place in places if _is_made(traced, place)]
    by_parameter: defaultdict[str, list[Place]] = defaultdict(list)
    for place in made:
        by_parameter[place.name].append(place)
    makers = [
        (layer, place)
        for layer, name in owned
        for place in by_parameter[name]
        if uses.count[name] or (name, place.dim) in uses.linked
    ]
    return [*makers, *(("", place) for place in made)]


def _family(traced: Traced, members: set[int], at: Sequence[tuple[str, Place]]) -> Family:
    # Linked ones first: a depthwise kernel goes along with what others make.
    linked = [(layer, place) for layer, place in at if layer and _is_linked(traced, place)]
    first, home = (linked or at)[0]
    producers = dict.fromkeys(layer for layer, _ in [(first, home), *at] if layer)
    return Family(_in_order(members, home, traced.labels), tuple(producers), home)


def _is_linked(traced: Traced, place: Place) -> bool:
    return (place.name, place.dim) in traced.uses.linked


def _pieces(labels: Labels, places: Sequence[Place]) -> Mapping[int, int]:
    """A number by label, the same for labels that are always cut out, and carried, together.

    Pieces of a layer's outputs can be different things, such as queries and values; and a dimension that
    carries a part of a family only could be left without any channel.
    """
    pieces: dict[int, int] = {}
    cuts: list[Iterable[int]] = [labels.all_parts(cut) for cut in labels.cuts]
    for number, members in enumerate([*cuts, *(place.parts for place in places)]):
        pieces.update((part, hash((pieces.get(part, 0), number))) for part in members)
    return pieces


def _outermost_first(family: Family, labels: Labels) -> tuple[int, int]:
    """Where its first unit starts; of several parts of one product, heads stand before their width."""
    starts = [
        next((i for i, label in enumerate(family.home.labels.tolist()) if member in labels.parts(label)), 0)
        for member in family.members[:2].tolist()
    ]
    return starts[0], -starts[-1]


def _in_order(members: Iterable[int], home: Place, labels: Labels) -> NDArray[np.int64]:
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
    of: dict[int, tuple[int, int]] = {}
    for index, family in enumerate(families):
        free = family.members[~labels.is_frozen(family.members)]
        of.update((int(label), (index, unit)) for unit, label in enumerate(free))
    return Units(of, labels)


def freeze_problems(
    traced: Traced, places: Sequence[Place], families: Sequence[Family], units: Units
) -> bool:
    """Freezes families that cannot be slimmed exactly.

    Returns:
        Whether there were any.
    """
    counts = Counter(family for family, _ in units.of.values())
    problems = {
        family: "all its channels go together as one" for family in counts if counts[family] < _FEWEST_UNITS
    }
    for place in filter(units.touches, places):
        _add_problems(problems, traced, place, units, counts)
    for item in traced.uses.products:
        for family in _uneven(item, units, counts):
            problems.setdefault(family, f"it has an uneven share in a product: {item.where}")
    for family, text in problems.items():
        traced.labels.freeze(families[family].members, lambda text=text: text)  # type: ignore[misc]
    # A dimension has to keep an index.
    alone = [_in_all(traced, place, units) for place in places if units.touches(place)]
    return any([*alone, problems])


def _is_made(traced: Traced, place: Place) -> bool:
    is_parameter = isinstance(traced.stored[place.name], nn.Parameter)
    return is_parameter and (place.name, place.dim) in traced.uses.made


def _add_problems(
    problems: dict[int, str], traced: Traced, place: Place, units: Units, counts: Mapping[int, int]
) -> None:
    """Families that cannot be slimmed because of one dimension."""
    where = (place.name, place.dim)
    is_both = where in traced.uses.made and where in traced.uses.read
    if place.is_plain and not is_both:
        return
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


def _in_all(traced: Traced, place: Place, units: Units) -> bool:
    """Freezes units that stand in every index of a dimension.

    Returns:
        Whether there were any.
    """
    if place.is_plain and len(place.distinct) > 1:
        return False
    common = frozenset.intersection(*(traced.labels.parts(label) for label in place.distinct))
    alone = sorted(common & units.of.keys())
    if alone:
        traced.labels.freeze(np.array(alone), lambda: f"without it nothing of {place.name} is left")
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
        at = units.at(label)
        families = sorted(at)
        parts[frozenset(families)][tuple(min(at[family]) for family in families)] += count
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
    # With the square of its share, of a product of channels with themselves, no cost reckons.
    return found | {family for family, count in present.items() if count > 1}


def labelled(axes: Sequence[Axis]) -> list[NDArray[np.int64]]:
    return [axis for axis in axes if axis is not None and axis.size]
