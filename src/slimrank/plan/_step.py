# SPDX-License-Identifier: Apache-2.0
"""A step from its parts, and what makes parts contradict each other."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from slimrank._errors import PlanError, RankError
from slimrank._names import nearest
from slimrank.cost import group_is_inside, layer_cost, rank_problem, setting_cost, slimmed_spec
from slimrank.plan._structure import Step, Structure
from slimrank.records import BlockDamage, ChannelMap, GroupCurve, GroupSpec, LayerSpec, Setting


def step_of(
    structure: Structure,
    settings: Mapping[str, Setting],
    groups: Mapping[str, Sequence[int]] | None = None,
    dropped: Collection[str] = (),
    *,
    where: str = "plan",
) -> Step:
    """A step with one setting per layer, everything in execution order.

    Args:
        structure: of the model.
        settings: layer -> setting; every layer is in the structure.
        groups: group -> units that stay, ascending; groups that keep all of theirs are left out.
        dropped: blocks to replace by the identity.
        where: for errors.

    Returns:
        The step.

    Raises:
        PlanError: no such group or block, units that the group does not have, or something inside a dropped
            block.
        RankError: a rank that the slimmed layer does not have, or at which the pair costs as much as it.
    """
    chosen = groups or {}
    check_groups(structure.channels, chosen, where)
    check_dropped(structure.channels, settings, chosen, dropped, where)
    for name, setting in settings.items():
        spec = structure.layers[name]
        slimmed = slimmed_spec(spec, structure.channels, chosen)
        if slimmed is not spec:
            check_pair(slimmed, setting, f"{where}.layers[{name!r}]", slimmed=True)
    return Step(
        structure=structure,
        layers={name: (settings[name],) for name in structure.layers if name in settings},
        groups={
            name: tuple(int(unit) for unit in chosen[name])
            for name, group in structure.channels.groups.items()
            if name in chosen and len(chosen[name]) < group.units
        },
        dropped=tuple(name for name in structure.channels.blocks if name in dropped),
    )


def check_pair(spec: LayerSpec, setting: Setting, where: str, *, slimmed: bool) -> None:
    """Check that a layer has this rank, and that the pair saves something.

    Args:
        spec: the layer, slimmed where its groups are.
        setting: for it; its form applies.
        where: for errors.
        slimmed: whether ``spec`` is a slimmed layer; for errors.

    Raises:
        RankError: the layer does not have the rank, or the pair saves neither MACs nor params.
    """
    what = "slimmed layer" if slimmed else "layer"
    problem = rank_problem(spec, setting)
    if problem is not None:
        of = " of the slimmed layer" if slimmed else ""
        raise RankError(f"{where}: {problem}{of}; change it, or delete the entry")
    before = layer_cost(spec)
    after = setting_cost(spec, setting, has_bias=spec.has_bias)
    if after.macs >= before.macs and after.params >= before.params:
        raise RankError(
            f"{where}: rank {setting.rank_text} costs at least what the {what} does; lower it, or delete the "
            "entry to leave the layer alone"
        )


def check_groups(channels: ChannelMap, groups: Mapping[str, Sequence[int]], where: str) -> None:
    """Check that groups exist, can be slimmed and have these units.

    Args:
        channels: of the model.
        groups: group -> units that stay.
        where: for errors.

    Raises:
        PlanError: a group does not exist, cannot be slimmed, or does not have these units.
    """
    for name, kept in groups.items():
        if name not in channels.groups:
            close = nearest(name, slimmable_groups(channels))
            raise PlanError(f"{where}.groups: {name!r} is no group of the structure; {close}")
        group = channels.groups[name]
        if group.reason is not None:
            raise PlanError(
                f"{where}.groups[{name!r}]: nothing of it can go ({group.reason}); delete the entry"
            )
        problem = kept_problem(group, kept)
        if problem is not None:
            raise PlanError(f"{where}.groups[{name!r}]: {problem}")


def kept_problem(group: GroupSpec, kept: Sequence[int]) -> str | None:
    """What is wrong with a list of units that stay, and what to do; None where nothing is."""
    if not kept:
        return "no unit is kept; keep at least one, or delete the entry"
    wrong = next((unit for unit in kept if not 0 <= unit < group.units), None)
    if wrong is not None:
        return f"unit {wrong} is outside 0..{group.units - 1}; remove it"
    for first, second in pairwise(kept):
        if first == second:
            return f"unit {first} stands twice; remove one of them"
        if first > second:
            return f"unit {second} stands after {first}; sort the units, ascending"
    return None


def check_dropped(
    channels: ChannelMap,
    settings: Iterable[str],
    groups: Iterable[str],
    dropped: Collection[str],
    where: str,
) -> None:
    """Check that blocks exist, and that nothing is asked of what is inside them.

    Args:
        channels: of the model.
        settings: layers with a setting.
        groups: that are slimmed.
        dropped: blocks to replace by the identity.
        where: for errors.

    Raises:
        PlanError: an unknown block, or a layer, a whole group or another dropped block inside one.
    """
    for name in dropped:
        if name not in channels.blocks:
            raise PlanError(
                f"{where}.dropped: {name!r} is no block that can be dropped; {nearest(name, channels.blocks)}"
            )
    for block in dropped:
        inside = [
            *(f"block {name!r}" for name in dropped if name != block and is_inside(name, (block,))),
            *(f"layer {name!r}" for name in settings if is_inside(name, (block,))),
        ]
        if inside:
            raise PlanError(
                f"{where}: {inside[0]} is inside the dropped block {block!r}; delete one of the two entries"
            )
    for name in groups:
        if dropped and group_is_inside(channels, name, dropped):
            raise PlanError(
                f"{where}: all of group {name!r} is inside dropped blocks; delete its entry or theirs"
            )


def is_inside(name: str, blocks: Collection[str]) -> bool:
    """Whether a module or tensor is one of these blocks or inside one.

    The dot at the end keeps block ``layer1`` from holding ``layer10``.
    """
    return f"{name}.".startswith(tuple(f"{block}." for block in blocks))


def slimmable_groups(channels: ChannelMap) -> dict[str, GroupSpec]:
    """The groups that can be slimmed, by name."""
    return {name: group for name, group in channels.groups.items() if group.reason is None}


def group_damage_at(curves: Iterable[GroupCurve], name: str, kept: Sequence[int]) -> float | None:
    """The damage that curves predict for the units of a group that stay.

    Args:
        curves: of any groups.
        name: of the group.
        kept: units that stay, ascending.

    Returns:
        In the unit of the curves; None where the curve does not offer that number, or keeps other units.
    """
    for curve in curves:
        if curve.group == name:
            for count, damage in zip(curve.kept, curve.damage, strict=True):
                if count == len(kept) and curve.channels_kept(len(kept)) == tuple(kept):
                    return float(damage)
    return None


def block_damage_at(damages: Iterable[BlockDamage], name: str) -> float | None:
    """The damage of dropping a block; None where it was not measured."""
    return next((damage.damage for damage in damages if damage.block == name), None)
