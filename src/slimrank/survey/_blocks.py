# SPDX-License-Identifier: Apache-2.0
"""The measurements of blocks that may be dropped, each kept on disk as it is done."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import cast

from slimrank.calibrate import Feed, evenly_spaced
from slimrank.fitting import Data, apply_plan
from slimrank.forward import Batch, digest_batch
from slimrank.plan import Plan, is_inside, step_of, structure_of
from slimrank.records import BlockDamage
from slimrank.surgery import copy_model
from slimrank.survey._anchors import Anchors
from slimrank.survey._curve_files import read_block_damages, read_block_steps, write_block_steps, write_blocks
from slimrank.survey._groups import GroupSurvey
from slimrank.survey._session import Run

# About the MACs that a study spends on dropping blocks. More of them fit the layers behind a block to more
# samples, as ``apply`` would.
_BLOCK_MACS = 6e12
# Share of what outputs can lose at which they have nothing left that matters.
_ALL_LOST = 0.5
# Samples that each model without blocks is fitted to: fewer say little, more hardly move the damages.
_MIN_SAMPLES, _MAX_SAMPLES = 32, 128


def measure_blocks(survey: GroupSurvey, run: Run) -> tuple[BlockDamage, ...]:
    """Damages of every block that can be dropped.

    Each is dropped alone first, then together with all that cost less, until nothing is left of the outputs:
    several blocks of a stage are made up for by the same layers, so their damages alone would not add up.

    Args:
        survey: model, data and map.
        run: progress, and where measurements are kept.

    Returns:
        Damages in the order of the map; none in a data-free study.
    """
    names, store = tuple(survey.channels.blocks), run.store
    if not names or survey.session.options.data_free:
        return ()
    finished = None if store is None else read_block_damages(store, names)
    if finished is not None:
        return finished
    measured = [] if store is None else read_block_steps(store, names)
    with run.phases.phase("blocks", _n_steps(names) - len(measured)) as advance:
        drops = _Drops(survey)
        limit = _ALL_LOST * survey.session.likelihood.all_lost
        for dropped in _drops_to_measure(names, measured, limit):
            measured.append(drops.divergence(dropped))
            if store is not None:
                write_block_steps(store, names, measured)
            advance(1)
        # Once nothing is left of the outputs, the others need no run.
        advance(_n_steps(names) - len(measured))
    damages = _damages_in_turn(names, measured)
    if store is not None:
        write_blocks(store, damages)
    return damages


def _n_steps(names: Collection[str]) -> int:
    """Each alone, then the cheapest two, three, ... together."""
    return 2 * len(names) - 1


def _drops_to_measure(
    names: Sequence[str], measured: Sequence[float], limit: float
) -> Iterator[Sequence[str]]:
    """Which blocks to drop in each measurement that is still to be made; ``measured`` grows meanwhile."""
    while (step := len(measured)) < _n_steps(names):
        if step > len(names) and measured[-1] > limit:
            return
        yield (names[step],) if step < len(names) else _cheapest(names, measured)[: step - len(names) + 2]


def _cheapest(names: Sequence[str], measured: Sequence[float]) -> list[str]:
    """All blocks, by what each alone costs."""
    return [name for name, _ in sorted(zip(names, measured, strict=False), key=lambda pair: pair[1])]


def _damages_in_turn(names: Sequence[str], measured: Sequence[float]) -> tuple[BlockDamage, ...]:
    """What each block adds to those that cost less, at least what it costs alone.

    Those that would come after everything is lost are charged as much as the last.
    """
    alone = dict(zip(names, measured, strict=False))
    cheapest = _cheapest(names, measured)
    damages, before, added = {}, 0.0, 0.0
    for name, together in zip_longest(cheapest, (alone[cheapest[0]], *measured[len(names) :])):
        if together is not None:
            added, before = together - before, max(before, together)
        damages[name] = max(alone[name], added)
    return tuple(BlockDamage(block=name, damage=damages[name]) for name in names)


class _Drops:
    """Networks without some blocks, the layers behind them fitted anew as ``apply`` would."""

    def __init__(self, survey: GroupSurvey) -> None:
        self._session = survey.session
        self._structure = structure_of(survey.layers.values(), survey.channels)
        runs = _n_steps(survey.channels.blocks)
        self._anchors = Anchors(self._session, runs)
        # Each run fits layers up to the last one behind the blocks, and reads held-out samples as well.
        cost = 1.5 * runs * max(self._session.captured.before.macs, 1)
        n_fit = min(max(_MIN_SAMPLES, int(_BLOCK_MACS / cost)), _MAX_SAMPLES)
        self._data = Data(
            original=self._session.original,
            feed=_part_of(self._session.feed, n_fit),
            grams=survey.grams,
            seed=self._session.options.seed,
        )

    def divergence(self, dropped: Sequence[str]) -> float:
        """Divergence of the network without these blocks and whatever lies in them."""
        outermost = [
            name for name in dropped if not is_inside(name, [other for other in dropped if other != name])
        ]
        plan = Plan(
            steps=(step_of(self._structure, {}, dropped=outermost),),
            before=self._session.captured.before,
            has_bias=self._session.options.has_bias,
        )
        applied = apply_plan(
            copy_model(self._session.original),
            plan,
            data=self._data,
            on_layer=None,
            journal=None,
            advance=lambda _layer: None,
        )
        return self._anchors.divergence_of(applied.model)


def _part_of(feed: Feed, n_fit: int) -> Feed:
    """At most so many fit samples and as large a share of the others, in memory: read once for all blocks."""
    share = min(1.0, n_fit / len(feed.fit))
    held_out = evenly_spaced(feed.held_out, max(1, round(share * len(feed.held_out))))
    chosen = sorted({*evenly_spaced(feed.fit, n_fit), *held_out})
    batches = tuple(feed.stream(chosen))
    return replace(
        feed,
        batches=batches,
        read=lambda batch: cast(Batch, batch),
        digests=tuple(digest_batch(batch) for batch in batches),
        sizes=tuple(batch.n_samples for batch in batches),
        held_out=tuple(index for index, chosen_index in enumerate(chosen) if chosen_index in held_out),
    )
