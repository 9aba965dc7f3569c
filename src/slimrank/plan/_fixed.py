# SPDX-License-Identifier: Apache-2.0
"""What a person holds fixed while the rest of a plan is chosen."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from slimrank._errors import OptionError, SlimrankError
from slimrank.plan._layer_setting import SettingLike
from slimrank.plan._plan import Plan, PlanSource
from slimrank.plan._settings_file import read_settings
from slimrank.plan._typed_settings import groups_called, settings_by_kind
from slimrank.records import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What of a plan is not chosen any more.

    Attributes:
        settings: layer -> its pair.
        groups: group -> units that stay, ascending; fewer than it has.
        dropped: blocks that go.
        untouched: layers that become no pair.
        whole: groups of which nothing goes.
        standing: blocks that stay.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    untouched: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    standing: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything is fixed."""
        return bool(
            self.settings or self.groups or self.dropped or self.untouched or self.whole or self.standing
        )

    @property
    def layers(self) -> frozenset[str]:
        """Layers of which it is known whether they become a pair, and which."""
        return self.untouched | frozenset(self.settings)

    @property
    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """Names of what is fixed, as ``Plan.fixed`` has them: of layers, of groups, of blocks."""
        found = {
            "layers": self.layers,
            "groups": self.whole | frozenset(self.groups),
            "blocks": self.standing | frozenset(self.dropped),
        }
        return {kind: tuple(sorted(names)) for kind, names in found.items() if names}

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that is fixed, each name once."""
        sure = (*self.settings, *self.groups, *self.dropped)
        return tuple(dict.fromkeys((*sure, *sorted(self.untouched | self.whole | self.standing))))


NOTHING_FIXED = Fixed()
FixedSettings = Mapping[str, SettingLike] | str | os.PathLike[str] | Fixed


def fixed_in(plan: Plan, *, built: Plan | None = None) -> Fixed:
    """What was fixed when a plan was chosen, with the settings that the plan has.

    Args:
        plan: any.
        built: what could be built of it: a group that could not be slimmed is then held whole.

    Returns:
        What was fixed.
    """
    slimmed = (plan if built is None else built).groups
    layers, groups, blocks = (plan.fixed.get(kind, ()) for kind in ("layers", "groups", "blocks"))
    return Fixed(
        settings={name: plan.settings[name] for name in layers if name in plan.settings},
        groups={name: slimmed[name] for name in groups if name in slimmed},
        dropped=tuple(name for name in plan.dropped if name in blocks),
        untouched=frozenset(name for name in layers if name not in plan.settings),
        whole=frozenset(name for name in groups if name not in slimmed),
        standing=frozenset(name for name in blocks if name not in plan.dropped),
    )


def check_fixed(settings: object) -> None:
    """Refuses what can hold no settings, before anything is measured; names are checked where a plan is made.

    Raises:
        OptionError: neither settings by name nor the path of a file.
        FileError: the file cannot be read.
        PlanError: it holds something else.
    """
    if settings is None or isinstance(settings, Fixed):
        return
    if isinstance(settings, str | os.PathLike):
        read_settings(settings)
    elif not isinstance(settings, Mapping):
        raise OptionError(_no_settings(settings))


def _no_settings(settings: object) -> str:
    return (
        f"fixed is a {type(settings).__name__}; give name -> setting, e.g. "
        '{"fc": ("weight_svd", 0.5)}, or the path of a CSV or JSON file'
    )


def fixed_of(source: PlanSource, settings: FixedSettings) -> Fixed:
    """What a person holds fixed, checked.

    Args:
        source: a study, or anything else with structure, costs and curves.
        settings: as in ``Plan.manual``; ranks and widths are taken as they stand. None for a name leaves
            alone all that has it: the layer becomes no pair, the groups that it makes the channels of stay
            whole, the block stays. What is a ``Fixed`` already is taken as it is.

    Returns:
        What is fixed.

    Raises:
        SlimrankError: as in ``Plan.manual``; the message begins with "fixed".
    """
    if isinstance(settings, Fixed):
        return settings
    if isinstance(settings, str | os.PathLike):
        settings = read_settings(settings)
    if not isinstance(settings, Mapping):
        raise OptionError(_no_settings(settings))
    structure = source.structure
    try:
        plan = Plan.manual(source, settings)
        typed = settings_by_kind(structure, settings, methods=source.methods)
    except SlimrankError as error:
        raise type(error)(f"fixed: {error}") from error
    alone = [name for name, setting in settings.items() if setting is None]
    whole = {group.name for name in alone for group in groups_called(structure, name)}
    # Of a width that was asked for, a plan names only what is slimmed.
    whole = (whole | set(typed.groups)) - set(plan.groups)
    return Fixed(
        settings=plan.settings,
        groups=plan.groups,
        dropped=plan.dropped,
        untouched=frozenset(name for name in alone if name in structure.layers),
        whole=frozenset(whole),
        standing=frozenset(name for name in alone if name in structure.channels.blocks),
    )
