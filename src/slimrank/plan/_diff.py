# SPDX-License-Identifier: Apache-2.0
"""What two plans do otherwise, for people."""

from collections.abc import Sequence
from typing import NamedTuple

from slimrank.cost import group_share, layer_cost, pair_cost, slimmed_spec
from slimrank.plan._structure import Step
from slimrank.records import PRUNING, Setting

_ALONE = "left alone"


class _Done(NamedTuple):
    """What one plan does to one name: what to compare, and how to tell it."""

    what: object
    text: str


def difference(
    mine: Sequence[Step], theirs: Sequence[Step], has_bias: tuple[bool, bool]
) -> list[tuple[str, str, str]]:
    """What two plans do otherwise.

    Args:
        mine: steps of the one.
        theirs: steps of the other.
        has_bias: of the one and the other, whether every second factor carries a bias.

    Returns:
        Rows of name, what the one does, what the other does: layers, then groups, then blocks.
    """
    rows: list[tuple[str, str, str]] = []
    every = (*mine, *theirs)
    for order, this, other in (
        (
            [name for step in every for name in step.structure.layers],
            _layers(mine, has_bias[0]),
            _layers(theirs, has_bias[1]),
        ),
        ([name for step in every for name in step.structure.channels.groups], _groups(mine), _groups(theirs)),
        ([name for step in every for name in step.structure.channels.blocks], _blocks(mine), _blocks(theirs)),
    ):
        nothing = _Done(None, _ALONE)
        for name in dict.fromkeys(order):
            one, two = this.get(name, nothing), other.get(name, nothing)
            if one.what != two.what:
                rows.append((name, one.text, two.text + " (other units)" * (one.text == two.text)))
    return rows


def _layers(steps: Sequence[Step], has_bias: bool) -> dict[str, _Done]:
    """Of all steps; a layer that one step replaced is not there for the next."""
    return {
        name: _Done(setting, _told(step, name, setting, has_bias))
        for step in steps
        for name, setting in step.settings.items()
    }


def _told(step: Step, name: str, setting: Setting, has_bias: bool) -> str:
    spec = step.structure.layers[name]
    slimmed = slimmed_spec(spec, step.structure.channels, step.groups)
    whole = layer_cost(spec).macs
    pair = pair_cost(slimmed, setting.form, setting.rank, has_bias=has_bias or spec.has_bias).macs
    share = f" ({pair / whole:.3f} macs)" if whole else ""
    return f"{setting.method} {setting.form} rank {setting.rank}{share}"


def _groups(steps: Sequence[Step]) -> dict[str, _Done]:
    """Of all steps; a group that one step slimmed may be slimmed again."""
    found: dict[str, _Done] = {}
    for step in steps:
        for name, kept in step.groups.items():
            channels = step.structure.channels
            share = group_share(channels, name, len(kept))
            macs = "" if share is None else f" ({share:.3f} macs)"
            text = f"{PRUNING} keeps {len(kept)} of {channels.groups[name].units}{macs}"
            before = found.get(name)
            found[name] = (
                _Done((kept,), text)
                if before is None
                else _Done((before.what, kept), f"{before.text}, then {text}")
            )
    return found


def _blocks(steps: Sequence[Step]) -> dict[str, _Done]:
    return {name: _Done(True, "dropped") for step in steps for name in step.dropped}
