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
    def names(self) -> tuple[str, ...]:
        """Everything that is fixed, each name once."""
        sure = (*self.settings, *self.groups, *self.dropped)
        return tuple(dict.fromkeys((*sure, *sorted(self.untouched | self.whole | self.standing))))


NOTHING_FIXED = Fixed()
FixedSettings = Mapping[str, SettingLike] | str | os.PathLike[str] | Fixed


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
        raise OptionError(
            f"fixed is a {type(settings).__name__}; give name -> setting, e.g. "
            '{"fc": ("weight_svd", 0.5)}, or the path of a CSV or JSON file'
        )
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
