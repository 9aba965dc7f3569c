# SPDX-License-Identifier: Apache-2.0
"""Attributes of the user's modules that may be sizes of a group."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from slimrank.records import ChannelMap, GroupSpec
from slimrank.surgery import constant_path, size_items, synced_attributes

_Kind = Literal["units", "total", "part", "constant"]
_KINDS: tuple[_Kind, ...] = ("units", "total", "part", "constant")
# Modules above the innermost common one that are searched as well: blocks keep sizes for their parts.
_ABOVE = 2
# Candidates that are tried alone, or left out alone; each costs a trial.
_MAX_SINGLES = 6
# What standard modules without tensors keep of the channels that pass through them.
_STANDARD = frozenset({"unflattened_size", "groups", "num_groups", "num_channels"})
# Words in names of attributes that are sizes of a group rather than of something else.
_TELLING = ("head", "group")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A whole number that may be a size of a group.

    Attributes:
        module: dotted name.
        path: attribute, or element of it; or the shape of a parameter or buffer that the forward reshapes.
        kind: the number of units, of all indices of some tensor, or a share of these; "constant" for a shape.
        is_near: whether the module holds nothing but what the group is about.
        is_reader: whether the module sums over the group, and makes none of it.
    """

    module: str
    path: str
    kind: _Kind
    is_near: bool
    is_reader: bool

    @property
    def is_telling(self) -> bool:
        """Whether its name speaks of heads or groups."""
        return any(word in self.path for word in _TELLING)


@dataclass(frozen=True, slots=True)
class Hint:
    """A size by its place relative to the modules of a group, to be found again in the next group like it."""

    up: int
    below: str
    path: str


@dataclass(frozen=True, slots=True)
class Scope:
    """Where the modules of a group stand.

    Attributes:
        common: the innermost module that holds all of them.
        owners: their names.
    """

    common: str
    owners: tuple[str, ...]

    @property
    def kin(self) -> tuple[str, ...]:
        """Names of the owners relative to the common module: the same in every block of a kind."""
        return tuple(name.removeprefix(self.common).removeprefix(".") for name in self.owners)

    def holder(self, model: nn.Module) -> str:
        """Class of the common module."""
        return type(model.get_submodule(self.common)).__name__

    def hint(self, module: str, path: str) -> Hint:
        """Where a size stands relative to the common module."""
        if _is_inside(module, self.common):
            return Hint(0, module.removeprefix(self.common).removeprefix("."), path)
        return Hint(len(_parts(self.common)) - len(_parts(module)), "", path)

    def find(self, hint: Hint) -> tuple[str, str]:
        """The size of this group that stands where a hint says."""
        parts = _parts(self.common)
        base = ".".join(parts[: len(parts) - hint.up])
        return ".".join(filter(None, [base, hint.below])), hint.path


def scope_of(channels: ChannelMap, group: GroupSpec) -> Scope:
    """Where the modules of a group stand.

    Args:
        channels: the group's map.
        group: one of its groups.

    Returns:
        Owners of all tensors that it touches, and what holds them.
    """
    owners = {
        spec.name.partition(".parametrizations.")[0]
        if ".parametrizations." in spec.name
        else _parent(spec.name)
        for spec in channels.tensors.values()
        if any(axis.group == group.name for axis in spec.axes)
    }
    owners |= {*group.producers, *group.consumers}
    if not owners:
        return Scope("", ())
    common = ".".join(_shared([_parts(name) for name in owners]))
    return Scope(_parent(common) if common in owners else common, tuple(sorted(owners)))


def candidates(model: nn.Module, channels: ChannelMap, group: GroupSpec) -> tuple[Candidate, ...]:
    """Whole numbers near a group that may be its sizes.

    Args:
        model: as it stands.
        channels: the group's map.
        group: one of its groups.

    Returns:
        Those that a module keeps which owns a tensor of the group, stands between such modules and what they
        have in common, is one of the two modules above that, or has no tensors and stands among them.
    """
    scope = scope_of(channels, group)
    axes = [
        (_owner(spec.name), axis)
        for spec in channels.tensors.values()
        for axis in spec.axes
        if axis.group == group.name
    ]
    totals = totals_of(channels, group.name)
    readers = {owner for owner, axis in axes if axis.role == "input"}
    readers -= {owner for owner, axis in axes if axis.role == "output"}
    found = []
    for name in _searched(model, scope):
        for path, value in _numbers(model.get_submodule(name)):
            kind = _kind(value, group.units, totals)
            if kind is not None:
                found.append(
                    Candidate(
                        module=name,
                        path=path,
                        kind=kind,
                        is_near=_is_inside(name, scope.common),
                        is_reader=name in readers,
                    )
                )
    found += _constants(model, channels, group, scope)
    return tuple(found)


def candidates_in(
    model: nn.Module, channels: ChannelMap, group: GroupSpec, name: str
) -> tuple[Candidate, ...]:
    """Whole numbers of one module that may be sizes of a group whose channels only pass through it.

    Args:
        model: as it stands.
        channels: the group's map.
        group: one of its groups.
        name: of the module.

    Returns:
        Those that are its number of units, or of all its channels.
    """
    totals = totals_of(channels, group.name)
    return tuple(
        Candidate(module=name, path=path, kind=kind, is_near=True, is_reader=False)
        for path, value in _numbers(model.get_submodule(name))
        if (kind := _kind(value, group.units, totals)) in ("units", "total")
    )


def hypotheses(found: Sequence[Candidate], limit: int) -> Iterator[tuple[Candidate, ...]]:
    """Sets of attributes to try together, the likely ones first.

    Args:
        found: what may be sizes.
        limit: how many sets at most.

    Returns:
        An iterator of sets, each once.
    """
    seen: set[frozenset[Candidate]] = set()
    for chosen in _sets(found):
        key = frozenset(chosen)
        if key and key not in seen:
            if len(seen) == limit:
                return
            seen.add(key)
            yield tuple(chosen)


def idle_norms(model: nn.Module) -> dict[str, int]:
    """Norms without tensors, which keep a number of channels but do not compute with it.

    Args:
        model: any module.

    Returns:
        That number by name; torch warns where another number of channels comes in.
    """
    return {
        name: module.num_features
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and not synced_attributes(module) and module.num_features
    }


def totals_of(channels: ChannelMap, name: str) -> set[int]:
    """How many indices of some dimension belong to a group.

    Args:
        channels: the group's map.
        name: of the group.

    Returns:
        Each number that some tensor has.
    """
    return {
        sum(unit != -1 for unit in axis.units)
        for spec in channels.tensors.values()
        for axis in spec.axes
        if axis.group == name
    }


def _sets(found: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    near = [candidate for candidate in found if candidate.is_near]
    # What a reader keeps is more often the size of what it makes than of what it reads.
    before = [candidate for candidate in near if not candidate.is_reader]
    yield from chain(_by_kind(near), _by_kind(before))
    yield from ([candidate] for candidate in sorted(near, key=_rank)[:_MAX_SINGLES])
    for some in (before, near):
        yield from (
            [candidate for candidate in some if candidate is not left_out] for left_out in some[:_MAX_SINGLES]
        )
    yield from _by_kind(found)
    yield from ([candidate] for candidate in sorted(found, key=_rank))


def _constants(model: nn.Module, channels: ChannelMap, group: GroupSpec, scope: Scope) -> list[Candidate]:
    """Parameters and buffers of the group in modules of the user's own, whose forward may reshape them."""
    found = []
    for spec in channels.tensors.values():
        owner, _, key = spec.name.rpartition(".")
        if ".parametrizations." in spec.name or _is_standard(model.get_submodule(owner)):
            continue
        if any(axis.group == group.name and axis.role == "output" for axis in spec.axes):
            near = _is_inside(owner, scope.common)
            found.append(
                Candidate(
                    module=owner, path=constant_path(key), kind="constant", is_near=near, is_reader=False
                )
            )
    return found


def _by_kind(found: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    units, totals, parts, constants = (
        [candidate for candidate in found if candidate.kind == kind] for kind in _KINDS
    )
    yield [candidate for candidate in units if candidate.is_telling]
    yield constants
    for some in (units, totals, [*units, *totals]):
        yield some
        yield [*some, *constants] if some else []
    yield from (list(found), parts, [*units, *parts])


def _rank(candidate: Candidate) -> tuple[bool, bool, int, bool]:
    return not candidate.is_near, candidate.is_reader, _KINDS.index(candidate.kind), not candidate.is_telling


def _kind(value: int, units: int, totals: Iterable[int]) -> _Kind | None:
    # Whatever stays, the size must be whole.
    if value < units or value % units:
        return None
    if value == units:
        return "units"
    if value in totals:
        return "total"
    return "part" if any(total % value == 0 for total in totals) else None


def _searched(model: nn.Module, scope: Scope) -> list[str]:
    names: dict[str, None] = {}
    common = _parts(scope.common)
    for owner in scope.owners:
        parts = _parts(owner)
        names.update((".".join(parts[:length]), None) for length in range(len(common), len(parts) + 1))
    for name, module in model.named_modules():
        if _is_inside(name, scope.common) and not any(True for _ in module.children()):
            names.update({name: None} if not any(True for _ in module.parameters()) else {})
    for up in range(1, min(_ABOVE, len(common)) + 1):
        names[".".join(common[: len(common) - up])] = None
    return list(names)


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers in a module, by path; none that follow from its tensors."""
    is_standard = _is_standard(module)
    has_tensors = any(True for _ in (*module.parameters(), *module.buffers()))
    if is_standard and has_tensors:
        return
    synced = synced_attributes(module)
    for name, value in vars(module).items():
        if name in synced or (is_standard and name not in _STANDARD):
            continue
        if type(value) is int:
            yield name, value
        else:
            yield from _items(name, value)
    for name, buffer in module._buffers.items():
        yield from _items(name, buffer)


def _items(name: str, value: object) -> Iterator[tuple[str, int]]:
    yield from ((f"{name}[{i}]", item) for i, item in enumerate(size_items(value)) if type(item) is int)


def _is_standard(module: nn.Module) -> bool:
    """Whether a module is one of torch's; what a bare or traced one holds is the user's."""
    if type(module) is nn.Module or isinstance(module, fx.GraphModule):
        return False
    return type(module).__module__.partition(".")[0] == "torch"


def _owner(tensor: str) -> str:
    """The module that a tensor belongs to; through a parametrisation, the module that has it."""
    before, parametrised, _ = tensor.partition("parametrizations.")
    return before.removesuffix(".") if parametrised else _parent(tensor)


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """What all paths begin with."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _is_inside(name: str, outer: str) -> bool:
    return not outer or f"{name}.".startswith(f"{outer}.")


def _parts(name: str) -> list[str]:
    return name.split(".") if name else []


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
