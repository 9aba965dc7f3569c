# SPDX-License-Identifier: Apache-2.0
"""The measurements of blocks that may be dropped, each kept on disk as it is done."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slimrank.calibrate import part_of
from slimrank.fitting import Data, apply_plan
from slimrank.measured import Drop, read_block_damages, read_drops, write_blocks, write_drops
from slimrank.methods import CEILING
from slimrank.plan import Plan, PlanSource, Structure, is_inside, step_of, structure_of
from slimrank.records import BlockDamage, BlockSpec, Cost, Curve, GroupCurve, Method, Note
from slimrank.surgery import copy_model
from slimrank.survey._anchors import Anchors, as_evaluations, macs_within
from slimrank.survey._effort import effort_row
from slimrank.survey._groups import GroupSurvey
from slimrank.survey._session import Run, Session

# What a study spends at most on dropping blocks, as for anchors. More fits the layers behind a block to more
# samples, as ``apply`` would.
_BLOCK_MACS, _BLOCK_PASSES = 6e12, 1.0
# Share of what outputs can lose at which they have nothing left that matters.
_ALL_LOST = 0.5
# Blocks that are dropped together in a measurement, over those in the one before.
_GROWTH = 1.5
# Samples that each model without blocks is fitted to: fewer say little, more hardly move the damages.
_MIN_SAMPLES, _MAX_SAMPLES = 16, 64
# Keep ratio down to which blocks are weighed with care. Below it, those that cost more than plans pay for
# them are still offered.
_KEEP = 0.3
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

    Each is dropped alone first, or of very many some (``blocks_alone``). Those that a plan could drop are
    then dropped together with all that cost less, more and more of them until nothing is left of the outputs:
    several blocks of a stage are made up for by the same layers, so their damages alone would not add up.

    Args:
        survey: model, data and map.
        known: what plans without blocks are made from.
        damage_at: what these plans cost.
        run: progress, and where measurements are kept.

    Returns:
        Damages in the order of the map; none in a data-free study.
    """
    blocks, store, kept_in = survey.channels.blocks, run.store, run.kept_in
    names = tuple(blocks)
    if not names or survey.session.options.data_free:
        return ()
    finished = None if store is None else read_block_damages(store, names)
    if finished is not None:
        return finished
    most_alone = effort_row(survey.session.options).blocks_alone
    if not most_alone:
        if kept_in is not None:
            write_blocks(kept_in, ())
        return ()
    measured = {} if store is None else read_drops(store, names)
    n_steps = most_drops(blocks, most_alone)
    with run.phases.phase("blocks", n_steps) as advance:
        advance(len(measured))
        drops = _Drops(survey)
        worth = _worth(blocks, known, damage_at)
        limit = _ALL_LOST * survey.session.likelihood.all_lost
        alone = blocks_alone(blocks, most_alone)
        for dropped in _drops_to_measure(blocks, alone, worth, measured, limit):
            measured[dropped] = min(drops.divergence(dropped), CEILING)
            if kept_in is not None:
                write_drops(kept_in, names, measured)
            advance(1)
        # Once nothing is left of the outputs, or nothing is to be won, the others need no run.
        advance(n_steps - len(measured))
    damages = _damages_in_turn(blocks, worth, measured)
    if kept_in is not None:
        write_blocks(kept_in, damages)
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


def _by_shape(blocks: Mapping[str, BlockSpec]) -> list[list[str]]:
    """Blocks that cost the same, in execution order: repetitions of one block, as a rule."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, block in blocks.items():
        shapes.setdefault((block.macs, block.params), []).append(name)
    return list(shapes.values())


def blocks_alone(blocks: Mapping[str, BlockSpec], most: int) -> tuple[str, ...]:
    """The blocks that are dropped alone: all, or of more than ``most`` some of each shape, evenly spaced."""
    chosen: set[str] = set()
    for names in _by_shape(blocks):
        count = math.ceil(len(names) * min(1.0, most / len(blocks)))
        # The first and the last are among them.
        gaps = max(1, count - 1)
        chosen.update(names[step * (len(names) - 1) // gaps] for step in range(count))
    return tuple(name for name in blocks if name in chosen)


def block_notes(survey: GroupSurvey) -> list[Note]:
    """What the user should know of how blocks were measured."""
    blocks, options = survey.channels.blocks, survey.session.options
    n_alone = len(blocks_alone(blocks, effort_row(options).blocks_alone))
    if options.data_free or n_alone in {0, len(blocks)}:
        return []
    text = (
        f"{n_alone} of {len(blocks)} blocks were dropped alone; the damage of each of the others is "
        "estimated: as much as the costlier of its neighbours of the same shape"
    )
    return [Note(where="blocks", text=text)]


def _drops_to_measure(
    blocks: Mapping[str, BlockSpec],
    alone: Sequence[str],
    worth: Mapping[str, float],
    measured: Mapping[Drop, float],
    limit: float,
) -> Iterator[Drop]:
    """Which blocks to drop in each measurement that is still to be made; ``measured`` grows meanwhile."""
    yield from ((name,) for name in alone if (name,) not in measured)
    rivals = _rivals(worth, _costs_alone(blocks, measured))
    for count in _counts(len(rivals)):
        drop = tuple(rivals[:count])
        if drop not in measured:
            yield drop
        if measured[drop] > limit:
            return


def _costs_alone(blocks: Mapping[str, BlockSpec], measured: Mapping[Drop, float]) -> dict[str, float]:
    """Damage of each block alone; of one that was not dropped alone, that of its costlier neighbour."""
    costs = {}
    for names in _by_shape(blocks):
        known = [index for index, name in enumerate(names) if (name,) in measured]
        for index, name in enumerate(names):
            before = [other for other in known if other <= index][-1:]
            after = [other for other in known if other >= index][:1]
            costs[name] = max(measured[names[other],] for other in (*before, *after))
    return {name: costs[name] for name in blocks}


def _counts(n_rivals: int) -> Iterator[int]:
    """How many blocks to drop together: each number while they are few, then ever larger steps, and all."""
    count = 2
    while count < n_rivals:
        yield count
        count = max(count + 1, int(_GROWTH * count))
    if n_rivals > 1:
        yield n_rivals


def most_drops(blocks: Mapping[str, BlockSpec], most_alone: int) -> int:
    """Measurements that blocks take at most: some alone, and several together."""
    return len(blocks_alone(blocks, most_alone)) + sum(1 for _ in _counts(len(blocks)))


def _rivals(worth: Mapping[str, float], alone: Mapping[str, float]) -> list[str]:
    """Blocks that plans may drop, by what each alone costs."""
    rivals = [name for name, cost in alone.items() if cost <= worth[name]]
    return sorted(rivals, key=lambda name: alone[name])


def _damages_in_turn(
    blocks: Mapping[str, BlockSpec], worth: Mapping[str, float], measured: Mapping[Drop, float]
) -> tuple[BlockDamage, ...]:
    """What each block adds to those that cost less, at least what it costs alone.

    Blocks that were dropped together for the first time share what they added, by what each costs alone.
    Those that would come after everything is lost are charged as much as the last, and so are those that no
    plan should drop before the others.
    """
    alone = _costs_alone(blocks, measured)
    rivals = _rivals(worth, alone)
    damages, before, last, n_known = {}, 0.0, 0.0, 0
    for count in (1, *_counts(len(rivals))) if rivals else ():
        together = alone[rivals[0]] if count == 1 else measured.get(tuple(rivals[:count]))
        if together is None:
            break
        new = rivals[n_known:count]
        total = sum(alone[name] for name in new)
        for name in new:
            last = (together - before) * (alone[name] / total if total else 1 / len(new))
            damages[name] = max(alone[name], last)
        before, n_known = max(before, together), count
    return tuple(BlockDamage(block=name, damage=damages.get(name, max(alone[name], last))) for name in blocks)


class _Drops:
    """Networks without some blocks, the layers behind them fitted anew as ``apply`` would."""

    def __init__(self, survey: GroupSurvey) -> None:
        self._session = survey.session
        self._structure = structure_of(survey.layers.values(), survey.channels)
        runs = most_drops(survey.channels.blocks, effort_row(self._session.options).blocks_alone)
        self._anchors = Anchors(self._session, as_evaluations(runs))
        n_fit = count_fit_samples(self._session, runs)
        self._data = Data(
            original=self._session.original,
            feed=part_of(self._session.feed, n_fit),
            grams=survey.grams,
            seed=self._session.options.seed,
            budgets=self._session.budgets,
            seen=self._session.seen,
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


def count_fit_samples(session: Session, runs: int) -> int:
    """Samples that each model without blocks is fitted to, given how many such models there are at most."""
    # Each run fits layers up to the last one behind the blocks, and reads held-out samples as well.
    cost = 1.5 * runs * max(session.captured.before.macs, 1)
    count = int(macs_within(session, _BLOCK_MACS, _BLOCK_PASSES) / cost)
    return min(max(_MIN_SAMPLES, count), _MAX_SAMPLES, len(session.feed.fit))
