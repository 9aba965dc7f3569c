# SPDX-License-Identifier: Apache-2.0
"""What a person may write for a layer, a group of channels or a block, sorted by which of them it is for."""

from collections.abc import Mapping, Sequence
from math import ceil, gcd
from typing import NamedTuple

from slimrank._errors import OptionError, RankError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import whole_number
from slimrank.plan._layer_setting import RATIO_SLACK, SettingLike, TypedSetting, read_ratio
from slimrank.plan._rounding import Multiples, multiple_for
from slimrank.plan._step import kept_problem, slimmable_groups
from slimrank.plan._structure import Structure, names_of
from slimrank.records import PRUNING, GroupCurve, GroupSpec, Setting, replaces_groups

# What a person writes for a block that shall go.
DROP = "drop"

# What may be said of a group, one of them at a time.
_GROUP_KEYS = ("ratio", "keep", "channels_kept")


class SettingsByKind(NamedTuple):
    """What a person wrote, sorted by what it is for.

    Attributes:
        layers: layer -> what was written for its pair.
        groups: group -> how much of it to keep: a ratio, or a mapping.
        dropped: blocks that shall go.
    """

    layers: dict[str, TypedSetting]
    groups: dict[str, object]
    dropped: list[str]


def settings_by_kind(
    structure: Structure, settings: Mapping[str, SettingLike], *, methods: Sequence[str]
) -> SettingsByKind:
    """What a person wrote, sorted by what it is for.

    Args:
        structure: of the model.
        settings: name of a layer, group or block -> what was written for it.
        methods: that may be named.

    Returns:
        The settings; names that are to be left alone are in none of them.

    Raises:
        UnknownNameError: no such layer, group, block or method.
        OptionError: a setting of the wrong kind, two of one kind for one layer, or a name that means several
            groups or one of which nothing can go.
    """
    by_kind = SettingsByKind({}, {}, [])
    for name, typed in settings.items():
        if isinstance(typed, str) and typed == DROP:
            by_kind.dropped.append(_known_block(structure, name))
        elif typed is None:
            check_known(structure, name)
        else:
            for setting in _as_list(typed):
                _add_setting(structure, name, setting, by_kind, methods)
    return by_kind


def check_known(structure: Structure, name: str) -> None:
    """Check that something has this name.

    Raises:
        UnknownNameError: nothing has this name.
    """
    names = (*names_of(structure), *structure.channels.blocks)
    if name not in names and name not in structure.channels.groups:
        raise UnknownNameError(f"layer {name!r}: the model has none; {nearest(name, names)}")


def groups_called(structure: Structure, name: str) -> tuple[GroupSpec, ...]:
    """The groups that can be slimmed and that a name may mean: the one of this name, or all of a producer."""
    groups = slimmable_groups(structure.channels)
    if name in groups:
        return (groups[name],)
    return tuple(group for group in groups.values() if name in group.producers)


def units_for(
    group: GroupSpec,
    typed: object,
    *,
    multiples: Multiples,
    curves: Sequence[GroupCurve] | None,
) -> tuple[int, ...] | None:
    """The units of a group that a person means to keep.

    Args:
        group: the group.
        typed: a ratio, the share of its units to keep; or ``{"ratio": x}``, ``{"keep": n}`` or
            ``{"channels_kept": units}``.
        multiples: outputs of the first producer that stay are a multiple of this. Numbers of units round
            up; one that would exceed the units of the group takes the largest that does not.
        curves: in whose order units go; None where there is no study.

    Returns:
        Units that stay, ascending; None where all do.

    Raises:
        OptionError: no such key, no number, no order that says which units go, or units that the group does
            not have.
        RankError: a number of units that it cannot keep.
    """
    where = f"group {group.name!r}"
    amount = typed if isinstance(typed, Mapping) else {"ratio": typed}
    for key in amount:
        if key not in _GROUP_KEYS:
            raise OptionError(f"{where}: {key!r} is no key of {PRUNING}; {nearest(str(key), _GROUP_KEYS)}")
    if len(amount) != 1:
        raise OptionError(
            f'{where}: give one of "ratio", "keep" and "channels_kept", not {sorted(map(str, amount))}'
        )
    # What hardware sees is the width of tensors; a unit may hold several outputs.
    multiple = multiple_for(multiples, group.name)
    multiple //= gcd(multiple, group.unit_width)
    if "channels_kept" in amount:
        kept = _named_units(group, amount["channels_kept"], multiple)
        return kept if len(kept) < group.units else None
    count = _unit_count(group, amount, multiple)
    if count == group.units:
        return None
    if curves is None:
        manual = f"Plan.manual(study, {{{group.name!r}: ({PRUNING!r}, {typed!r})}})"
        raise OptionError(
            f"{where}: a plan knows no order in which units go, so replace takes those that stay, "
            f'{{"channels_kept": [0, 3, 5]}}; {manual}.groups[{group.name!r}] lists them'
        )
    curve = next((curve for curve in curves if curve.group == group.name), None)
    if curve is None:
        raise OptionError(
            f"{where}: no curve says in which order its units go; plan on a study that measured {PRUNING}, "
            'or name the units, {"channels_kept": [0, 3, 5]}'
        )
    return curve.channels_kept(count)


def _as_list(typed: object) -> Sequence[object]:
    """The settings of a list of them; else a single ``(method, amount)`` in a list."""
    # A single setting is a tuple, too, but begins with a text.
    if (
        isinstance(typed, list | tuple)
        and len(typed) > 0
        and all(isinstance(item, Setting | list | tuple) for item in typed)
    ):
        return typed
    return (typed,)


def _add_setting(
    structure: Structure, name: str, setting: object, by_kind: SettingsByKind, methods: Sequence[str]
) -> None:
    """Adds what was written for a name to the layers or the groups (in place)."""
    if not _is_pruning(setting):
        if name in by_kind.layers:
            raise OptionError(
                f"layer {name!r}: two settings split it into a pair; leave one, beside {PRUNING} if you like"
            )
        by_kind.layers[name] = _pair_setting(structure, name, setting)
        return
    if PRUNING not in methods:
        raise UnknownNameError(
            f"layer {name!r}: method {PRUNING!r} is not there; {nearest(PRUNING, methods)}"
        )
    group = _only_group(structure, name)
    if group.name in by_kind.groups:
        raise OptionError(f"layer {name!r}: group {group.name!r} gets a second width; leave one of them")
    by_kind.groups[group.name] = setting[1] if isinstance(setting, list | tuple) else None


def _pair_setting(structure: Structure, name: str, setting: object) -> TypedSetting:
    """What was written for a layer, if a pair can be meant."""
    check_known(structure, name)
    if name in structure.layers:
        if isinstance(setting, Setting):
            return setting
        if isinstance(setting, tuple | list) and len(setting) == 2 and isinstance(setting[0], str):
            return setting[0], setting[1]
    raise OptionError(
        f"{_kind_of_name(structure, name)} {name!r}: the setting is {setting!r}; {_allowed(structure, name)}"
    )


def _kind_of_name(structure: Structure, name: str) -> str:
    if name in structure.layers:
        return "layer"
    return "block" if name in structure.channels.blocks else "group"


def _allowed(structure: Structure, name: str) -> str:
    """What may be written for a name, as the end of an error message."""
    ways = []
    spec = structure.layers.get(name)
    pair = next((method for method in spec.methods if not replaces_groups(method)), None) if spec else None
    if pair is not None:
        ways.append(f'(method, ratio), e.g. ("{pair}", 0.5), or (method, {{"rank": 32}})')
    if groups_called(structure, name):
        ways.append(f'("{PRUNING}", 0.5) for its channels')
    if name in structure.channels.blocks:
        ways.append(f'"{DROP}" to take the block out')
    return f"give {', or '.join(ways) or 'None, since nothing of it can go'}"


def _is_pruning(setting: object) -> bool:
    return isinstance(setting, list | tuple) and len(setting) == 2 and setting[0] == PRUNING


def _only_group(structure: Structure, name: str) -> GroupSpec:
    """The group that a name means; refused where it means none or several."""
    called = groups_called(structure, name)
    if len(called) == 1:
        return called[0]
    if called:
        raise OptionError(
            f"layer {name!r}: it makes channels of {len(called)} groups; name one of them: "
            f"{listed(group.name for group in called)}"
        )
    check_known(structure, name)
    if _kind_of_name(structure, name) == "block":
        raise OptionError(f"block {name!r}: {PRUNING} does not apply; {_allowed(structure, name)}")
    groups = structure.channels.groups
    frozen = groups.get(name) or next((group for group in groups.values() if name in group.producers), None)
    why = "it makes no channels of a group" if frozen is None else f"nothing can go ({frozen.reason})"
    raise OptionError(f"layer {name!r}: {PRUNING} does not apply, {why}; drop it from the plan")


def _known_block(structure: Structure, name: str) -> str:
    if name not in structure.channels.blocks:
        raise UnknownNameError(
            f"block {name!r}: the model has none that can be dropped; "
            f"{nearest(name, structure.channels.blocks)}"
        )
    return name


def _named_units(group: GroupSpec, units: object, multiple: int) -> tuple[int, ...]:
    where = f"group {group.name!r}: channels_kept"
    numbers = [whole_number(unit) for unit in units] if isinstance(units, list | tuple) else [None]
    kept = tuple(number for number in numbers if number is not None)
    if len(kept) < len(numbers):
        raise OptionError(f"{where} {units!r} is no list of whole numbers; give e.g. [0, 3, 5]")
    problem = kept_problem(group, kept)
    if problem is not None:
        raise OptionError(f"{where}: {problem}")
    if len(kept) % multiple:
        raise RankError(
            f"{where} holds {len(kept)} units, no multiple of {multiple}; name others or lower multiple_of"
        )
    return kept


def _unit_count(group: GroupSpec, amount: Mapping[object, object], multiple: int) -> int:
    """The number of units to keep, rounded."""
    where = f"group {group.name!r}"
    if multiple > group.units:
        raise RankError(
            f"{where}: it has {group.units} units, and no number of them is a multiple of {multiple}; lower "
            "multiple_of for this group or drop it from the plan"
        )
    if "keep" in amount:
        keep = amount["keep"]
        count = whole_number(keep)
        if count is None:
            raise OptionError(f'{where}: keep {keep!r} is no whole number; give e.g. {{"keep": 24}}')
        if not 1 <= count <= group.units:
            raise RankError(f"{where}: keep {count} is outside 1..{group.units}; change it")
    else:
        ratio = read_ratio(
            where, amount["ratio"], of="the group's units", instead='{"keep": 24} for a number of them'
        )
        count = ceil(ratio * group.units * (1 - RATIO_SLACK))
    # Up, so that at least what was asked for stays; down only where the group has no more units.
    rounded = -(-count // multiple) * multiple
    return rounded if rounded <= group.units else group.units // multiple * multiple
