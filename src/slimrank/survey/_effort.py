# SPDX-License-Identifier: Apache-2.0
"""How much a study measures: one row for each effort."""

from collections.abc import Mapping
from dataclasses import dataclass

from slimrank.calibrate import SAMPLES_DRAWN_IN_FULL
from slimrank.measured import Options
from slimrank.methods import ANCHOR_RATIOS, ANCHOR_SHARES
from slimrank.records import Effort

# Layers up to which each is measured at more costs. On a network of eight this lowers divergences at 0.3 of
# the MACs by a fifth; on networks of 16 and more, nothing was gained.
_FEW_LAYERS = 10
_MORE_RATIOS = (0.7, 0.45, 0.25, 0.1)
# Layers above which each is measured at one cost: a divergence takes as long as the network, so that all of
# them would take the square of its depth, and what one layer's curve lacks counts less among so many.
_MANY_LAYERS = 100
_ONE_RATIO = (0.3,)
# So that what blocks take grows no faster than the network.
_BLOCKS_ALONE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class EffortRow:
    """What a study measures.

    Attributes:
        anchor_ratios: shares of the MACs of a layer at which divergences are measured.
        ratios_of_few: the same in networks of up to ten layers, which can afford more.
        ratios_of_many: the same in networks of more than a hundred.
        anchor_shares: shares of the units of a group that stay where divergences are measured.
        samples_drawn_in_full: samples up to which each gets all its draws; of more, fewer for each.
        blocks_alone: how many blocks are dropped alone, about, which takes fits of the layers behind each;
            of 0 none may be dropped.
    """

    anchor_ratios: tuple[float, ...]
    ratios_of_few: tuple[float, ...]
    ratios_of_many: tuple[float, ...]
    anchor_shares: tuple[float, ...]
    samples_drawn_in_full: int
    blocks_alone: int

    def ratios_for(self, n_layers: int) -> tuple[float, ...]:
        """Shares of the MACs at which so many layers are measured."""
        if n_layers > _MANY_LAYERS:
            return self.ratios_of_many
        return self.ratios_of_few if n_layers <= _FEW_LAYERS else self.anchor_ratios


# What each leaves out or adds, and its price in accuracy, stands in docs/howto/memory.md.
EFFORT_ROWS: Mapping[Effort, EffortRow] = {
    "fast": EffortRow(
        anchor_ratios=_ONE_RATIO,
        ratios_of_few=_ONE_RATIO,
        ratios_of_many=_ONE_RATIO,
        anchor_shares=(0.5, 0.1),
        samples_drawn_in_full=SAMPLES_DRAWN_IN_FULL,
        blocks_alone=0,
    ),
    "normal": EffortRow(
        anchor_ratios=ANCHOR_RATIOS,
        ratios_of_few=_MORE_RATIOS,
        ratios_of_many=_ONE_RATIO,
        anchor_shares=ANCHOR_SHARES,
        samples_drawn_in_full=SAMPLES_DRAWN_IN_FULL,
        blocks_alone=_BLOCKS_ALONE,
    ),
    "thorough": EffortRow(
        anchor_ratios=_MORE_RATIOS,
        ratios_of_few=_MORE_RATIOS,
        ratios_of_many=_MORE_RATIOS,
        anchor_shares=(0.8, 0.55, 0.3, 0.1),
        samples_drawn_in_full=1_000_000,
        blocks_alone=1_000_000,
    ),
}


def effort_row(options: Options) -> EffortRow:
    """What the effort of a study measures."""
    return EFFORT_ROWS[options.effort]
