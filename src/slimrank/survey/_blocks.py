# SPDX-License-Identifier: Apache-2.0
"""The measurements of blocks that may be dropped, each kept on disk as it is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from slimrank.calibrate import Feed, evenly_spaced
from slimrank.fitting import Data, apply_plan
from slimrank.forward import Batch, digest_batch
from slimrank.methods import CEILING
from slimrank.plan import Plan, PlanSource, Structure, is_inside, step_of, structure_of
from slimrank.records import BlockDamage, BlockSpec, Cost, Curve, GroupCurve, Method
from slimrank.surgery import copy_model, drop_blocks
from slimrank.survey._anchors import Anchors
from slimrank.survey._curve_files import (
    Trial,
    read_block_damages,
    read_block_trials,
    write_block_trials,
    write_blocks,
)
from slimrank.survey._groups import GroupSurvey
from slimrank.survey._session import Run

# About the MACs that a study spends on dropping blocks. More of them fit the layers behind a block to more
# samples, as ``apply`` would.
_BLOCK_MACS = 6e12
# Share of what outputs can lose at which they have nothing left that matters.
_ALL_LOST = 0.5
# Samples that each model without blocks is fitted to: fewer say little, more hardly move the damages.
_MIN_SAMPLES, _MAX_SAMPLES = 32, 64
# Keep ratio down to which blocks are weighed with care. Below it, a block that no fit was tried for is still
# offered, at what dropping it costs without one.
_KEEP = 0.3
# By how much fits of the layers behind a block lower what dropping it costs, at most, about: 26 was seen.
_MOST_WON_BACK = 25.0
# The last savings of a plan cost more than the mean of all, by such a factor, about; some of it is left for
# what is not known. A block that asks more for its savings has no part in a plan.
_LAST_OVER_MEAN = 4.0

# Damage of the best plan without blocks at a keep ratio of the MACs; inf where there is none.
DamageAt = Callable[[PlanSource, float], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What is measured before blocks are: enough for plans without them."""

    structure: Structure
    before: Cost
    has_bias: bool
    curves: tuple[Curve, ...]
    group_curves: tuple[GroupCurve, ...]
    methods: tuple[Method, ...]
    block_damages: tuple[BlockDamage, ...] = ()
    previous: Plan | None = None


def measure_blocks(
    survey: GroupSurvey, known: Known, damage_at: DamageAt, run: Run
) -> tuple[BlockDamage, ...]:
    """Damages of every block that can be dropped.

    Each is dropped alone first, as it is. Those that could be worth it are dropped with the layers behind
    them fitted anew, and then together with all that cost less, until nothing is left of the outputs: several
    blocks of a stage are made up for by the same layers, so their damages alone would not add up.

    Args:
        survey: model, data and map.
        known: what plans without blocks are made from.
        damage_at: what these plans cost.
        run: progress, and where measurements are kept.

    Returns:
        Damages in the order of the map; none in a data-free study.
    """
    blocks, store = survey.channels.blocks, run.store
    names = tuple(blocks)
    if not names or survey.session.options.data_free:
        return ()
    finished = None if store is None else read_block_damages(store, names)
    if finished is not None:
        return finished
    tried = {} if store is None else read_block_trials(store, names)
    n_steps = 3 * len(names) - 1
    with run.phases.phase("blocks", n_steps) as advance:
        advance(len(tried))
        drops = _Drops(survey)
        worth = _worth(blocks, known, damage_at)
        limit = _ALL_LOST * survey.session.likelihood.all_lost
        for trial in _trials(names, worth, tried, limit):
            tried[trial] = min(drops.divergence(trial), CEILING)
            if store is not None:
                write_block_trials(store, names, tried)
            advance(1)
        # Once nothing is left of the outputs, or nothing is to be won, the others need no run.
        advance(n_steps - len(tried))
    damages = _damages_in_turn(names, worth, tried)
    if store is not None:
        write_blocks(store, damages)
    return damages


def _worth(blocks: Mapping[str, BlockSpec], known: Known, damage_at: DamageAt) -> dict[str, float]:
    """What plans may pay for each block, as damage."""
    whole, damage = known.before, damage_at(known, _KEEP)
    shares = {
        name: max(block.macs / max(whole.macs, 1), block.params / max(whole.params, 1))
        for name, block in blocks.items()
    }
    return {
        name: damage * min(1.0, _LAST_OVER_MEAN * share / (1 - _KEEP)) if share else 0.0
        for name, share in shares.items()
    }


def _trials(
    names: Sequence[str], worth: Mapping[str, float], tried: Mapping[Trial, float], limit: float
) -> Iterator[Trial]:
    """What is still to be tried, in turn; ``tried`` grows meanwhile."""
    for name in names:
        if (trial := Trial((name,), is_fitted=False)) not in tried:
            yield trial
    for name in names:
        trial = Trial((name,), is_fitted=True)
        if trial not in tried and _as_it_is(name, tried) <= _MOST_WON_BACK * worth[name]:
            yield trial
    rivals = _rivals(names, worth, tried)
    for count in range(2, len(rivals) + 1):
        trial, before = Trial(tuple(rivals[:count]), True), Trial(tuple(rivals[: count - 1]), True)
        if trial in tried:
            continue
        if count > 2 and tried[before] > limit:
            return
        yield trial


def _as_it_is(name: str, tried: Mapping[Trial, float]) -> float:
    return tried[Trial((name,), is_fitted=False)]


def _alone(name: str, tried: Mapping[Trial, float]) -> float:
    """What a block costs alone, as far as it is known: without fits at most so much."""
    return tried.get(Trial((name,), is_fitted=True), _as_it_is(name, tried))


def _rivals(names: Sequence[str], worth: Mapping[str, float], tried: Mapping[Trial, float]) -> list[str]:
    """Blocks that plans may drop, by what each alone costs."""
    fitted = [
        name
        for name in names
        if Trial((name,), is_fitted=True) in tried and _alone(name, tried) <= worth[name]
    ]
    return sorted(fitted, key=lambda name: _alone(name, tried))


def _damages_in_turn(
    names: Sequence[str], worth: Mapping[str, float], tried: Mapping[Trial, float]
) -> tuple[BlockDamage, ...]:
    """What each block adds to those that cost less, at least what it costs alone.

    Those that would come after everything is lost are charged as much as the last, and so are those that no
    plan should drop before the others.
    """
    rivals = _rivals(names, worth, tried)
    damages, before, added = {}, 0.0, 0.0
    for count, name in enumerate(rivals, start=1):
        together = tried.get(Trial(tuple(rivals[:count]), is_fitted=True))
        if together is not None:
            added, before = together - before, max(before, together)
        damages[name] = max(_alone(name, tried), added)
    others = {name: max(_alone(name, tried), added) for name in names if name not in damages}
    return tuple(BlockDamage(block=name, damage=damage) for name, damage in (damages | others).items())


class _Drops:
    """Networks without some blocks, the layers behind them fitted anew as ``apply`` would."""

    def __init__(self, survey: GroupSurvey) -> None:
        self._session = survey.session
        self._structure = structure_of(survey.layers.values(), survey.channels)
        runs = 2 * len(survey.channels.blocks) - 1
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

    def divergence(self, trial: Trial) -> float:
        """Divergence of a network without some blocks and whatever lies in them."""
        dropped = trial.dropped
        if not trial.is_fitted:
            return self._anchors.divergence_with(partial(drop_blocks, names=dropped))
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
