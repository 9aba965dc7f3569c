# SPDX-License-Identifier: Apache-2.0
"""Whether a model without some channels is the model with these channels at zero, on real batches."""

from collections.abc import Mapping, Sequence

from torch import nn

from slimrank.channels.trial._compare import Comparison
from slimrank.forward import Batch
from slimrank.records import ChannelMap


def slim_failures(
    original: nn.Module,
    channels: ChannelMap,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
) -> Mapping[str, str]:
    """The groups that cannot go from a model, though its map says so.

    The model without the units that go is compared with the model whose consumers read zeros from them, in
    the way in which the groups were tried. All are looked at together, and one after another only where that
    fails.

    Args:
        original: in eval mode; not changed.
        channels: its groups.
        kept: group -> units that stay.
        batches: to compare on.

    Returns:
        What happened, by group; empty where everything agrees.
    """
    watched = tuple(dict.fromkeys(name for group in kept for name in channels.groups[group].consumers))
    comparisons = [Comparison(original, batch, watched) for batch in batches]

    def problem(some: Mapping[str, Sequence[int]]) -> str | None:
        problems = (comparison.problem(channels, some) for comparison in comparisons)
        return next((found_problem.text for found_problem in problems if found_problem is not None), None)

    if problem(kept) is None:
        return {}
    sound: dict[str, Sequence[int]] = {}
    failures: dict[str, str] = {}
    for name, units in kept.items():
        text = problem({**sound, name: units})
        if text is None:
            sound[name] = units
        else:
            failures[name] = text
    return failures
