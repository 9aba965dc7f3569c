# SPDX-License-Identifier: Apache-2.0
"""The fastest choice, whatever its damage: the floor of a latency budget, and a proof of it.

Once widths and blocks are chosen, each layer takes the fastest option that plans may take, which is the
lowest rank of a form or the layer in one piece: known for all widths at once. So the time of everything is
the sum of terms of few groups, and groups and blocks move (phase 1) as for any other price.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimrank.select.joint._bound import least_beside_blocks
from slimrank.select.joint._prices import Hulls, Picks, Priced
from slimrank.select.joint._ranks import taps_of
from slimrank.select.joint._shapes import Shapes, shapes_of
from slimrank.select.joint._table import Joint, State, normalised
from slimrank.select.layers._table import UNTOUCHED, Flags, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fastest:
    """The fastest choice that was found.

    Attributes:
        state: its widths and blocks.
        over: its time above the room, each layer at its fastest.
        bound: what the time of no choice above the room undercuts.
    """

    state: State
    over: float
    bound: float


def fastest_choice(joint: Joint) -> Fastest:
    """The fastest choice of widths, blocks and ranks.

    Args:
        joint: everything that may be chosen, with a latency among its metrics.

    Returns:
        The choice. It is the fastest of all where ``over`` is ``bound``.
    """
    timed = _without_damage(joint)
    picks = FastestPicks(timed)
    price = np.zeros(len(joint.metrics))
    # Exactly 1, so that sums of times stay exact.
    price[_latency_of(joint)] = 1.0
    priced = Priced(timed, picks, price)
    best = min((priced.settled(start) for start in small_choices(joint)), key=priced.energy)
    room = float(price @ joint.room)
    wide = [float(picks.least(index) @ price) for index in joint.grids.wide.tolist()]
    return Fastest(
        state=best,
        over=priced.energy(best) - room,
        bound=least_beside_blocks(priced, wide) - room,
    )


def small_choices(joint: Joint) -> list[State]:
    """Everything whole, every group at its smallest, and that without every block or without one.

    Where fixed pairs do not fit into the smallest groups, what costs least in each metric is there too.
    """
    lowest = (0,) * len(joint.widths)
    blocks = range(len(joint.blocks))
    gone: list[Collection[int]] = [(), blocks, *({block} for block in blocks)]
    states = [State(widths=joint.whole), *(normalised(joint, lowest, each) for each in gone)]
    if not all(fit.fits(lowest) for fit in joint.fits):
        states += _cheapest_choices(joint, states)
    return list(dict.fromkeys(states))


def _cheapest_choices(joint: Joint, starts: Sequence[State]) -> list[State]:
    """What costs least in each metric where fixed pairs forbid the smallest widths, from these starts."""
    timed = _without_damage(joint)
    layers = tuple(
        replace(
            layer,
            forms=tuple(replace(form, damage=np.zeros(len(form.damage))) for form in layer.forms),
        )
        for layer in joint.layers
    )
    hulls = Hulls(replace(timed, layers=layers))
    found = []
    for price in np.diag(1 / joint.scale):
        priced = Priced(timed, hulls, price)
        found += [priced.settled(start) for start in starts]
    return found


class FastestPicks:
    """What layers do where only time counts; as ``Hulls`` for prices.

    Args:
        joint: everything that may be chosen.
    """

    def __init__(self, joint: Joint) -> None:
        self._joint, self._latency = joint, _latency_of(joint)
        grids = joint.grids
        # The lowest rank of each form of each layer; 0 where it has none.
        self._rank = np.zeros(grids.fixed.shape[:2], dtype=np.int64)
        for index, layer in enumerate(joint.layers):
            for place, form in enumerate(layer.forms):
                self._rank[place, index] = form.ranks.min(initial=np.iinfo(np.int64).max)
        self._first_taps, self._second_taps = taps_of(joint.layers)

    def picks(self, layer: Ints, shapes: Shapes, price: Floats) -> Picks:
        """The fastest option of each layer that plans may take.

        Args:
            layer: (...) int64, index of each layer.
            shapes: (...) of what is left of it.
            price: (B,) of the time alone.

        Returns:
            The options, as the tables of ranks allow them: of ranks that the slimmed layer has, faster than
            the layer, and smaller in something else. Damages are 0.
        """
        value: Floats = shapes.dense @ price
        form = np.full(value.shape, UNTOUCHED)
        rank = np.zeros(value.shape, dtype=np.int64)
        for place in range(len(self._rank)):
            lowest = self._rank[place, layer]
            cost = self._joint.grids.cost(layer, shapes, np.full(value.shape, place), lowest)
            new = cost @ price
            pays = (new < value) & self._is_allowed(place, layer, shapes, lowest, cost)
            value = np.where(pays, new, value)
            form, rank = np.where(pays, place, form), np.where(pays, lowest, rank)
        return Picks(value=value, damage=np.zeros(value.shape), form=form, rank=rank)

    def _is_allowed(self, place: int, layer: Ints, shapes: Shapes, rank: Ints, cost: Floats) -> Flags:
        """(...) bool. A higher rank is allowed nowhere where the lowest is not."""
        first = shapes.columns * self._first_taps[layer, place]
        second = shapes.rows * self._second_taps[layer, place]
        less = cost < shapes.dense
        kernel_groups = shapes.kernel_groups
        is_smaller = rank * (first + second) < first * second // kernel_groups
        is_smaller |= less[..., self._joint.counted].any(axis=-1)
        is_there = (rank > 0) & (rank <= np.minimum(first, second) // kernel_groups)
        allowed: Flags = is_there & is_smaller & less[..., self._latency]
        return allowed

    def least(self, index: int) -> Floats:
        """(B,) what a layer costs at least: in one piece or with a pair, at the smallest widths."""
        layer = self._joint.layers[index]
        shapes = shapes_of(layer, (0,) * len(self._joint.widths))
        costs = [shapes.dense]
        for place in range(len(layer.forms)):
            rank = self._rank[place, index]
            costs.append(self._joint.grids.cost(np.array(index), shapes, np.array(place), rank))
        least: Floats = np.min(costs, axis=0)
        return least


def _without_damage(joint: Joint) -> Joint:
    return replace(
        joint,
        widths=tuple(replace(group, damage=np.zeros(len(group.damage))) for group in joint.widths),
        blocks=tuple(replace(block, damage=0.0) for block in joint.blocks),
    )


def _latency_of(joint: Joint) -> int:
    if joint.latency is None:
        raise ValueError("there is no latency among the metrics")
    return joint.latency
