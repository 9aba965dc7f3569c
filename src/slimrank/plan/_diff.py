# SPDX-License-Identifier: Apache-2.0
"""What two plans do differently, for people."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from slimrank.cost import group_share, layer_cost, pair_has_bias, setting_cost, slimmed_spec
from slimrank.plan._structure import Step
from slimrank.records import PRUNING, Setting

# Also for what a plan cannot name, since its structure does not have it: nothing is done to it either.
_ALONE = "left alone"


class Difference(NamedTuple):
    """What two plans do differently to one name.

    Attributes:
        kind: "layer", "group" or "block".
        name: of it.
        this: what the first plan does, for people.
        other: what the second plan does, for people.
    """

    kind: Literal["layer", "group", "block"]
    name: str
    this: str
    other: str


class _Action(NamedTuple):
    """What one plan does to one name: a value to compare, and a text for people."""

    value: object
    text: str


_Kind = tuple[Literal["layer", "group", "block"], Sequence[str], Mapping[str, _Action], Mapping[str, _Action]]


def plan_difference(
    steps: Sequence[Step],
    other_steps: Sequence[Step],
    has_bias: tuple[bool, bool],
    *,
    with_same: bool = False,
) -> list[Difference]:
    """What two plans do differently.

    Args:
        steps: of the first plan.
        other_steps: of the second plan.
        has_bias: of the first and the second plan, whether every second factor carries a bias.
        with_same: also what both do alike; the two texts of a row are then equal.

    Returns:
        Layers, then groups, then blocks.
    """
    rows: list[Difference] = []
    every = (*steps, *other_steps)
    kinds: tuple[_Kind, ...] = (
        (
            "layer",
            [name for step in every for name in step.structure.layers],
            _layer_actions(steps, has_bias[0]),
            _layer_actions(other_steps, has_bias[1]),
        ),
        (
            "group",
            [name for step in every for name in step.structure.channels.groups],
            _group_actions(steps),
            _group_actions(other_steps),
        ),
        (
            "block",
            [name for step in every for name in step.structure.channels.blocks],
            _block_actions(steps),
            _block_actions(other_steps),
        ),
    )
    for kind, order, actions, other_actions in kinds:
        nothing = _Action(None, _ALONE)
        for name in dict.fromkeys(order):
            this, other = actions.get(name, nothing), other_actions.get(name, nothing)
            if this.value != other.value:
                # Groups that keep as many units, but others, have the same text.
                told = other.text + " (other units)" * (this.text == other.text)
                rows.append(Difference(kind, name, this.text, told))
            elif with_same and this.value is not None:
                rows.append(Difference(kind, name, this.text, other.text))
    return rows


def _layer_actions(steps: Sequence[Step], has_bias: bool) -> dict[str, _Action]:
    """Of all steps; a layer that one step replaced is not there for the next."""
    return {
        name: _Action(setting, _pair_text(step, name, setting, has_bias))
        for step in steps
        for name, setting in step.settings.items()
    }


def _pair_text(step: Step, name: str, setting: Setting, has_bias: bool) -> str:
    spec = step.structure.layers[name]
    slimmed = slimmed_spec(spec, step.structure.channels, step.groups)
    whole = layer_cost(spec).macs
    pair = setting_cost(
        slimmed,
        setting,
        has_bias=pair_has_bias(spec, plan_has_bias=has_bias),
    ).macs
    share = f" ({pair / whole:.3f} macs)" if whole else ""
    return f"{setting.method} {setting.form} rank {setting.rank_text}{share}"


def _group_actions(steps: Sequence[Step]) -> dict[str, _Action]:
    """Of all steps; a group that one step slimmed may be slimmed again."""
    found: dict[str, _Action] = {}
    for step in steps:
        for name, kept in step.groups.items():
            channels = step.structure.channels
            share = group_share(channels, name, len(kept))
            macs = "" if share is None else f" ({share:.3f} macs)"
            text = f"{PRUNING} keeps {len(kept)} of {channels.groups[name].units}{macs}"
            before = found.get(name)
            found[name] = (
                _Action((kept,), text)
                if before is None
                else _Action((before.value, kept), f"{before.text}, then {text}")
            )
    return found


def _block_actions(steps: Sequence[Step]) -> dict[str, _Action]:
    return {name: _Action(True, "dropped") for step in steps for name in step.dropped}
