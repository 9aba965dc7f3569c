# SPDX-License-Identifier: Apache-2.0
"""Phase 3: all widths and ranks move at once, by the knapsack.

What prices ask for jumps where the damage of a group is not convex in its width, and leaves room. So around
a choice the groups become rows of options like the layers, each width at what it costs while all else stays,
and the knapsack spends the room. Only what two rows that share a layer save together is missed, little where
steps are small.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from slimrank.select.joint._table import Joint, State, is_there
from slimrank.select.layers._optimal import choose_optimal, lower_bound, quick_choice
from slimrank.select.layers._table import Floats, Ints, Table


def move_all_at_once(
    joint: Joint,
    table: Table,
    state: State,
    choice: Ints,
    *,
    spare: Floats,
    exact: bool,
    hopeless: float = np.inf,
) -> tuple[State, float] | None:
    """The best widths, if costs add up as they do around a choice.

    Args:
        joint: everything that may be chosen.
        table: of the layers that are there, at these widths.
        state: widths and blocks.
        choice: (L,) option of each of these layers; the budgets need not be kept.
        spare: (B,) room to leave unused.
        exact: whether to look for the very best.
        hopeless: damage, blocks included, that the very best has to be below to be looked for.

    Returns:
        The same blocks, other widths, and the gap of the knapsack, 0 where it was not exact; None where no
        widths were found that keep every budget.
    """
    free = joint.standing.without(state.dropped).groups
    if not free:
        return None
    costs = _cost_by_width(joint, table, state, choice)
    orders = {
        group: np.lexsort((joint.widths[group].damage, (costs[group] / joint.scale).sum(axis=1)))
        for group in free
    }
    counted = sum((costs[group][state.widths[group]] for group in free), -spare)
    rows = _with_rows(joint, table, costs, orders, table.room + counted)
    blocks = sum(joint.blocks[block].damage for block in state.dropped)
    is_hopeful = exact and lower_bound(rows) + blocks < hopeless
    found = choose_optimal(rows) if is_hopeful else (quick_choice(rows), 0.0)
    if found is None or found[0] is None:
        return None
    widths = list(state.widths)
    for (group, order), option in zip(orders.items(), found[0][len(choice) :], strict=True):
        widths[group] = int(order[option])
    return State(widths=tuple(widths), dropped=state.dropped), found[1]


def _with_rows(
    joint: Joint, table: Table, costs: Sequence[Floats], orders: Mapping[int, Ints], room: Floats
) -> Table:
    """The table with each group as one more row, its widths in this order."""
    layers, options = table.damage.shape
    many = max(options, *(len(order) for order in orders.values()))
    shape = (layers + len(orders), many)
    cost, damage = np.zeros((len(joint.metrics), *shape)), np.full(shape, np.inf)
    cost[:, :layers, :options], damage[:layers, :options] = table.cost, table.damage
    for row, (group, order) in enumerate(orders.items(), start=layers):
        cost[:, row, : len(order)] = costs[group][order].T
        damage[row, : len(order)] = joint.widths[group].damage[order]
    # Options of one curve stand in order of cost, as those of a group do.
    curve = np.zeros(shape, dtype=np.int64)
    curve[:layers, :options] = table.curve
    return Table(
        names=(*table.names, *(joint.widths[group].name for group in orders)),
        curves=table.curves,
        cost=cost,
        damage=damage,
        curve=curve,
        rank=np.zeros(shape, dtype=np.int64),
        whole=np.column_stack([table.whole, *(costs[group][-1] for group in orders)]),
        room=room,
        scale=table.scale,
    )


def _cost_by_width(joint: Joint, table: Table, state: State, choice: Ints) -> list[Floats]:
    """Of each group, (W, B) the cost of all that goes with it, at each of its widths while all else stays."""
    grids, left = joint.grids, joint.standing.without(state.dropped)
    there = left.layers
    form, rank = (np.zeros(len(joint.layers), dtype=np.int64) for _ in range(2))
    picked = np.arange(len(there)), choice[: len(there)]
    form[there], rank[there] = grids.form_of[table.curve[picked]], table.rank[picked]

    entries, tables, places = joint.tables.around(state.widths)
    counted = np.isin(tables, left.tables)
    costs, at = [joint.cost[entries[counted]]], [places[counted]]
    entries, tables, places = grids.grids.around(state.widths)
    layers = grids.narrow[tables]
    counted = np.isin(layers, there)
    layers = layers[counted]
    costs.append(grids.cost(layers, grids.shapes.of(entries[counted]), form[layers], rank[layers]))
    at.append(places[counted])

    ends = np.cumsum([len(group.kept) for group in joint.widths])
    place = np.concatenate(at)
    total: Floats = np.column_stack(
        [np.bincount(place, weights=cost, minlength=ends[-1]) for cost in np.concatenate(costs).T]
    )
    found: list[Floats] = np.split(total, ends[:-1])
    for piece in joint.wide:
        if is_there(piece.blocks, state.dropped):
            for group in piece.groups:
                found[group] += piece.cost(_along(joint, state, group))
    for group, wide in grids.reading.items():
        own = wide.index[:, None]
        costs_along = grids.cost(own, wide.along(state.widths, group), form[own], rank[own])
        found[group] += costs_along[np.isin(wide.index, there)].sum(axis=0)
    return found


def _along(joint: Joint, state: State, group: int) -> list[int | Ints]:
    """Indices of every width of one group, and of the others as they are."""
    widths: list[int | Ints] = list(state.widths)
    widths[group] = np.arange(len(joint.widths[group].kept))
    return widths
