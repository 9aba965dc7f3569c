# SPDX-License-Identifier: Apache-2.0
"""Plans for tools that read a model by its configuration: no new biases, one width for all layers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from slimrank._errors import OptionError
from slimrank.cost import pair_costs, pair_has_bias
from slimrank.plan import Fixed, stacks_in
from slimrank.records import ChannelMap, Curve, GroupCurve, LayerSpec


def tied_as_fixed(
    fixed: Fixed, channels: ChannelMap, curves: Sequence[GroupCurve], *, offered: Collection[str]
) -> Fixed:
    """What is fixed where all groups of a stack keep the same number of units: a fixed width is that of all.

    Args:
        fixed: by the caller.
        channels: of the model.
        curves: of the groups, which say which units go.
        offered: groups whose channels may go.

    Returns:
        What is fixed then.

    Raises:
        OptionError: fixed widths of one stack that differ, a group of a fixed stack that cannot take its
            width, or a block that is fixed to go.
    """
    if fixed.dropped:
        raise OptionError(
            f"fixed: block {fixed.dropped[0]!r} is dropped, and uniform_widths=True drops none; leave one out"
        )
    order_of = {curve.group: curve for curve in curves}
    groups, whole = dict(fixed.groups), set(fixed.whole)
    for names in stacks_in(channels):
        given = {name: len(fixed.groups[name]) for name in names if name in fixed.groups}
        given |= {name: channels.groups[name].units for name in names if name in fixed.whole}
        if not given:
            continue
        first, count = next(iter(given.items()))
        for name, other in given.items():
            if other != count:
                raise OptionError(
                    f"fixed: groups {first!r} and {name!r} are of one stack and keep {count} and {other} "
                    "units; uniform_widths=True gives a stack one width, so fix the same, or one of them"
                )
        units = channels.groups[first].units
        for name in (name for name in names if name not in given):
            if count == units:
                whole.add(name)
            elif name in offered and name in order_of:
                groups[name] = order_of[name].channels_kept(count)
            else:
                reason = channels.groups[name].reason or "it is skipped, or was not measured"
                raise OptionError(
                    f"fixed: group {first!r} keeps {count} of {units} units, and {name!r} of its stack "
                    f"cannot: {reason}; uniform_widths=True gives a stack one width, so leave one out"
                )
    return replace(fixed, groups=groups, whole=frozenset(whole))


def without_new_bias(curves: Sequence[Curve], layers: Mapping[str, LayerSpec]) -> tuple[Curve, ...]:
    """Curves whose pairs have a bias only where the layer has one.

    Args:
        curves: of pairs that all have one.
        layers: of the model.

    Returns:
        The same ranks and damages, at what they then cost.
    """
    found = []
    for curve in curves:
        spec = layers[curve.layer]
        has_bias = pair_has_bias(spec, plan_has_bias=False)
        macs, params = pair_costs(spec, curve.form, curve.ranks, curve.ranks_in, has_bias=has_bias)
        found.append(replace(curve, macs=macs, params=params, bytes=params * spec.itemsize))
    return tuple(found)
