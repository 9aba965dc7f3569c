# SPDX-License-Identifier: Apache-2.0
"""The multiple-choice knapsack: least damage under every budget, with a bound on what is left to gain.

With prices p >= 0 on the budgets, the sum over the layers of min(damage + p * cost), less p * room, bounds
the least damage from below. Prices that make the bound high come from bisection (one budget) or from the
linear relaxation (several). A choice within the budgets bounds it from above. An option whose reduced cost,
its lead over the layer's minimum at these prices, exceeds the difference of the two bounds cannot be part
of a better choice; what remains is searched layer by layer with lists of partial choices.

Source: Kellerer, Pferschy & Pisinger 2004, "Knapsack Problems", chapter 11, doi:10.1007/978-3-540-24777-7.
"""

from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from slimrank.select.layers._improve import repair, spend_rest, top_up
from slimrank.select.layers._table import Floats, Ints, Table, added, is_feasible, total_damage, used

# The work of each step is counted, not timed, so that every machine chooses the same.

# Search: partial choices looked at over all layers. More close the gap of larger networks, and take time
# and memory in proportion; a search that is cut short keeps a gap above 0.
_SEARCH_WORK = 1_200_000
# Search: partial choices kept after each layer at least, however many layers and options there are. Fewer
# save time on very large networks, and may lose every good choice half-way.
_MIN_PARTIALS = 64
# Search: how often it starts again from a better choice, which rules more options out. Each costs the work
# above.
_MAX_SEARCHES = 4
# A choice within 0.1 % of the bound is good enough to skip steps that only find better choices: roundings,
# exchanges and a further search. Smaller: a gap nearer to 0 for more time.
_GOOD_GAP = 1e-3
# Exchanges: pairs of options looked at in one sweep over all pairs of layers. More offer each layer more of
# its options, in proportional time.
_EXCHANGE_WORK = 3_000_000
# Prices, one for all budgets: steps of bisection. 60 halve any distance down to rounding, so that the
# knapsack starts from the best choice that prices alone can give; each step is one look at the table.
_MAX_BISECTIONS = 60
# Prices: the step while only one end of the bisection is known.
_PRICE_FACTOR = 16.0
# Prices, several budgets: linear programs solved. Each adds the options that its prices ask for; more raise
# the bound where options are many.
_MAX_RELAXATIONS = 25
# Prices, several budgets: options of each layer in the first linear program. More make it larger and save
# rounds.
_FIRST_OPTIONS = 2
# Prices, several budgets: rounds end within this share of the damage. Below it only the solver's own error
# is left.
_RELAXATION_GAP = 1e-8
# Roundings: the smallest share of an option in a linear program that is no rounding error of the solver.
_MIN_SHARE = 1e-9
# Roundings: ways to round a linear program that are tried. Few layers have two options in it, so these are
# mostly all.
_MAX_ROUNDINGS = 16
# Several budgets: options of one layer, and partial choices of one step of the search, compared with each
# other to remove those that another undercuts in everything. The work grows with their square; where there
# are more, all stay, and later steps have more to look at.
_MAX_COMPARED_OPTIONS = 300
_COMPARISON_WORK = 20_000_000
# Damages are scaled to 1: below this, a difference is rounding.
_ROUNDING = 1e-12

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Start:
    """A feasible choice, and the prices at which the layers make it."""

    choice: Ints
    price: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Search:
    """What a search found: a choice, if any; and what no choice can undercut."""

    choice: Ints | None
    bound: float


def choose_optimal(table: Table) -> tuple[Ints, float] | None:
    """The choice with the least damage.

    Args:
        table: of the options.

    Returns:
        (L,) feasible options, and the certified gap: (damage - lower bound) / damage, 0 to 1. None where no
        choice was found that keeps every budget.
    """
    core, kept = _subset(table, _worth_having(table))
    start = _bisected(core)
    if start is None:
        found = any_feasible(core)
        start = None if found is None else _Start(choice=found, price=np.zeros(len(core.room)))
    if start is None:
        return None
    best = top_up(core, start.choice)
    damage = total_damage(core, best)
    bound = 0.0
    if damage > 0:
        # Scaled, so that tolerances mean the same for damages of 1e-9 and of 1e9.
        scaled, places = _subset(replace(core, damage=core.damage / damage), core.damage <= damage)
        best, bound = _improved(scaled, np.argmax(places == best[:, None], axis=1), start.price / damage)
        best = places[np.arange(len(best)), best]
    choice = spend_rest(table, kept[np.arange(len(best)), best])
    final = total_damage(table, choice)
    gap = max(0.0, min(1.0, 1.0 - bound * damage / final)) if final > 0 else 0.0
    return choice, gap if gap > _ROUNDING else 0.0


def quick_choice(table: Table) -> Ints | None:
    """A good choice, found fast.

    Args:
        table: of the options.

    Returns:
        (L,) feasible options; None where none was found at once.
    """
    core, kept = _subset(table, _worth_having(table))
    start = _bisected(core)
    if start is None:
        found = repair(core, np.argmin(np.where(np.isfinite(core.damage), core.weighted, np.inf), axis=1))
    else:
        found = start.choice
    if found is None:
        return None
    best = top_up(core, found)
    return kept[np.arange(len(best)), best]


def lower_bound(table: Table) -> float:
    """What the damage of no choice within every budget can undercut, found fast; 0 where nothing is known.

    Args:
        table: of the options.
    """
    start = _bisected(table)
    return 0.0 if start is None else max(_bound(table, _priced(table, start.price), start.price), 0.0)


def any_feasible(table: Table) -> Ints | None:
    """Some choice within every budget.

    Args:
        table: of the options.

    Returns:
        (L,) feasible options; None where none was found.
    """
    cheapest: Ints = np.argmin(np.where(np.isfinite(table.damage), table.weighted, np.inf), axis=1)
    if is_feasible(table, cheapest):
        return cheapest
    # The budgets pull apart. The first option of each curve is its cheapest in every metric.
    first = np.zeros(table.damage.shape, dtype=np.bool_)
    for layer, curves in enumerate(table.curve):
        first[layer, np.unique(curves, return_index=True)[1]] = True
    costs_only = replace(table, damage=np.where(np.isfinite(table.damage) & first, 0.0, np.inf))
    small, kept = _subset(costs_only, _worth_having(costs_only))
    found = repair(small, np.argmin(np.where(np.isfinite(small.damage), small.weighted, np.inf), axis=1))
    if found is None:
        found = _search(small, 1 / small.scale, -np.inf, np.inf).choice
    return None if found is None else kept[np.arange(len(found)), found]


def _worth_having(table: Table) -> Flags:
    """(L, K) bool, options that no other undercuts in every cost and in damage (with many, some more)."""
    finite = np.isfinite(table.damage)
    # Options stand in order of added cost: no other undercuts those below every damage before them.
    front = finite.copy()
    front[:, 1:] &= table.damage[:, 1:] < np.minimum.accumulate(table.damage, axis=1)[:, :-1]
    if len(table.room) == 1:
        return front
    values = np.concatenate([table.cost, table.damage[None]])
    best, _ = _subset(table, front)
    # (L, K', K): which of the front undercut which of all.
    undercut = np.ones((len(front), best.damage.shape[1], front.shape[1]), dtype=np.bool_)
    for mine, theirs in zip(values, (*best.cost, best.damage), strict=True):
        undercut &= theirs[:, :, None] <= mine[:, None]
    is_compared = finite.sum(axis=1) <= _MAX_COMPARED_OPTIONS
    keep: Flags = finite & (front | ~undercut.any(axis=1) | ~is_compared[:, None])
    for layer in np.flatnonzero(is_compared & (keep & ~front).any(axis=1)):
        options = np.flatnonzero(keep[layer])
        keep[layer, options] = _front(values[:, layer, options])
    return keep


def _front(values: Floats) -> Flags:
    """(K,) bool, columns of (V, K) that no other column undercuts; of equal ones the first."""
    below: Flags = np.all(values[:, :, None] <= values[:, None, :], axis=0)
    later = np.tri(len(below), k=-1, dtype=np.bool_).T
    return np.array(~(below & (later | ~below.T)).any(axis=0))


def _subset(table: Table, keep: Flags) -> tuple[Table, Ints]:
    """The table with some of its options, and where those stood: (L, K') int64."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, : max(int(keep.sum(axis=1).max(initial=1)), 1)]
    rows = np.arange(len(table.names))[:, None]
    kept = keep[rows, order]
    core = replace(
        table,
        # In memory order: what follows walks over these arrays many times.
        cost=np.ascontiguousarray(np.where(kept, table.cost[:, rows, order], 0.0)),
        damage=np.where(kept, table.damage[rows, order], np.inf),
        curve=table.curve[rows, order],
        rank=table.rank[rows, order],
    )
    return core, order


def _priced(table: Table, price: Floats) -> Floats:
    """(L, K) float64, damage plus the price of the cost."""
    return table.damage + added(price, table.cost)


def _bound(table: Table, priced: Floats, price: Floats) -> float:
    """What no choice within the budgets can undercut, at any prices of at least 0."""
    return float(priced.min(axis=1).sum() - price @ table.room)


def _bisected(table: Table) -> _Start | None:
    """The lowest common price at which the layers' own choices keep the budgets; None where none does."""
    weighted = table.weighted

    def choice_at(price: float) -> Ints:
        wanted: Ints = np.argmin(table.damage + price * weighted, axis=1)
        return wanted

    high = float(np.where(np.isfinite(table.damage), table.damage, 0.0).max(initial=0.0)) or 1.0
    free = choice_at(0.0)
    if is_feasible(table, free):
        return _Start(choice=free, price=np.zeros(len(table.room)))
    tries = 0
    while not is_feasible(table, choice_at(high)):
        high, tries = high * _PRICE_FACTOR, tries + 1
        if tries > _MAX_BISECTIONS // 4:
            return None
    low = high / _PRICE_FACTOR
    while is_feasible(table, choice_at(low)) and tries < 4 * _MAX_BISECTIONS:
        low, high, tries = low / _PRICE_FACTOR, low, tries + 1
    for _ in range(_MAX_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if is_feasible(table, choice_at(middle)) else (middle, high)
    return _Start(choice=choice_at(high), price=high / table.scale)


def _improved(table: Table, best: Ints, price: Floats) -> tuple[Ints, float]:
    """A better choice, if there is one, and the bound."""
    rounded: list[Ints] = []
    if len(table.room) > 1:
        price, rounded = _relaxed(table, best, price)
    priced = _priced(table, price)
    bound = max(_bound(table, priced, price), 0.0)
    for guess in (np.argmin(priced, axis=1), *rounded):
        if bound >= (1 - _GOOD_GAP) * total_damage(table, best):
            break
        mended = repair(table, guess)
        if mended is not None:
            best = min(best, top_up(table, mended), key=lambda choice: total_damage(table, choice))
    floor = bound
    for _ in range(_MAX_SEARCHES):
        if bound < (1 - _GOOD_GAP) * total_damage(table, best):
            best = top_up(table, _exchanged(table, best, priced))
        upper = total_damage(table, best)
        if upper - bound <= _ROUNDING * upper:
            break
        found = _search(table, price, floor, upper)
        bound = max(bound, found.bound)
        if found.choice is None:
            break
        best = top_up(table, found.choice)
        # A search that was cut short goes further from a better start, where that can pay.
        if upper - bound <= _GOOD_GAP * upper:
            break
    return best, bound


def _exchanged(table: Table, choice: Ints, priced: Floats) -> Ints:
    """The choice after one sweep of changing two layers at a time, each to one of its best-priced options."""
    choice = choice.copy()
    layers = len(choice)
    rows = np.arange(layers)
    near = np.argsort(priced, axis=1)[:, : max(int(_EXCHANGE_WORK**0.5 / layers), 2)]
    costs, damages = table.cost[:, rows[:, None], near], table.damage[rows[:, None], near]
    for layer in range(layers):
        room = table.room - used(table, choice)
        cost, damage = table.cost[:, rows, choice], table.damage[rows, choice]
        # (near, L, near): options of this layer, any other layer, options of that one.
        gain = (damage[layer] - damages[layer])[:, None, None] + (damage[:, None] - damages)[None]
        gain[:, layer] = -np.inf
        fits = gain > _ROUNDING
        for metric, left in enumerate(room):
            extra = costs[metric, layer] - cost[metric, layer]
            fits &= extra[:, None, None] + (costs[metric] - cost[metric][:, None])[None] <= left
        gain = np.where(fits, gain, 0.0)
        mine, other, theirs = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[mine, other, theirs] > 0:
            choice[layer], choice[other] = near[layer, mine], near[other, theirs]
    return choice


def _relaxed(table: Table, feasible: Ints, price: Floats) -> tuple[Floats, list[Ints]]:
    """Prices (B,) from the linear relaxation, and its solution rounded in every way (or the first few).

    Options are added to the relaxation as its prices ask for them.
    """
    # Here, since it takes longer than most plans, and only several budgets need it.
    from scipy.optimize import linprog  # noqa: PLC0415
    from scipy.sparse import csr_array  # noqa: PLC0415

    rows = np.arange(len(table.names))
    member = np.zeros(table.damage.shape, dtype=np.bool_)
    member[rows, feasible] = True
    priced = _priced(table, price)
    # A first set around what these prices ask for: fewer rounds than one option at a time.
    near = np.argsort(priced, axis=1)[:, :_FIRST_OPTIONS]
    member[rows[:, None], near] = np.isfinite(table.damage[rows[:, None], near])
    member[rows, feasible] = True
    unit = np.where(table.room > 0, table.room, 1.0)
    best, best_bound = price, _bound(table, priced, price)
    rounded: list[Ints] = []
    for _ in range(_MAX_RELAXATIONS):
        layer, option = np.nonzero(member)
        one_each = csr_array(
            (np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(rows), len(layer))
        )
        solved = linprog(
            table.damage[layer, option],
            A_ub=table.cost[:, layer, option] / unit[:, None],
            b_ub=table.room / unit,
            A_eq=one_each,
            b_eq=np.ones(len(rows)),
            method="highs-ds",
        )
        if solved.status != 0:
            break
        rounded = _roundings(solved.x, layer, option)
        price = np.maximum(-solved.ineqlin.marginals, 0.0) / unit
        priced = _priced(table, price)
        bound = _bound(table, priced, price)
        if bound > best_bound:
            best, best_bound = price, bound
        wanted = np.argmin(priced, axis=1)
        if member[rows, wanted].all() or solved.fun - best_bound <= _RELAXATION_GAP:
            break
        member[rows, wanted] = True
    return best, rounded


def _roundings(shares: Floats, layer: Ints, option: Ints) -> list[Ints]:
    """Choices made of the options that have a share in a relaxed one; few layers have more than one."""
    held = shares > _MIN_SHARE
    support = [option[held & (layer == index)] for index in range(int(layer.max()) + 1)]
    return [np.array(choice, dtype=np.int64) for choice in islice(product(*support), _MAX_ROUNDINGS)]


def _search(table: Table, price: Floats, bound: float, upper: float) -> _Search:
    """Look for a choice below ``upper``, layer by layer.

    Args:
        table: of the options.
        price: (B,) at least 0.
        bound: of all choices, at these prices.
        upper: damage of the best known choice.

    Returns:
        The best choice below ``upper``, or None; and the bound that holds now.
    """
    priced = _priced(table, price)
    lead = priced - priced.min(axis=1)[:, None]
    keep = lead <= upper - bound
    order = np.argsort(keep.sum(axis=1), kind="stable")
    options = [np.flatnonzero(keep[layer] & np.isfinite(table.damage[layer])) for layer in order]
    pairwise = int((_COMPARISON_WORK / len(order)) ** 0.5)
    cap = max(_SEARCH_WORK // sum(len(some) for some in options), _MIN_PARTIALS)
    # What the layers after each step cost at least, and what they cost and damage at their own minimum.
    lowest = _rest(
        [table.cost[:, layer, some].min(axis=1) for layer, some in zip(order, options, strict=True)]
    )
    favourite = np.argmin(priced, axis=1)
    usual = _rest([table.cost[:, layer, favourite[layer]] for layer in order])
    usual_damage = _rest([table.damage[layer, favourite[layer], None] for layer in order])[:, 0]

    # Layers with one option left take no search.
    settled = next((step for step, some in enumerate(options) if len(some) > 1), len(order))
    first = order[:settled]
    cost, leads = table.cost[:, first, favourite[first]].sum(axis=1)[None], np.zeros(1)
    damage = table.damage[first, favourite[first]].sum(keepdims=True)
    steps: list[tuple[Ints, Ints]] = []
    record: tuple[int, int] | None = None
    dropped = np.inf
    if (cost + usual[settled] <= table.room).all() and damage[0] + usual_damage[settled] < upper:
        upper = float(damage[0] + usual_damage[settled])
        record = (settled - 1, 0)
    for step, (layer, some) in enumerate(zip(order[settled:], options[settled:], strict=True), start=settled):
        came = np.repeat(np.arange(len(damage)), len(some))
        taken = np.tile(some, len(damage))
        leads = leads[came] + lead[layer, taken]
        near = np.flatnonzero(bound + leads < upper)
        came, taken, leads = came[near], taken[near], leads[near]
        cost = cost[came] + table.cost[:, layer, taken].T
        damage = damage[came] + table.damage[layer, taken]
        fits = np.flatnonzero((cost + lowest[step + 1] <= table.room).all(axis=1))
        fits = fits[_best_partial(cost[fits], damage[fits], pairwise)]
        if len(fits) > cap:
            ranked = fits[np.argsort(leads[fits], kind="stable")]
            dropped = min(dropped, bound + float(leads[ranked[cap]]))
            fits = ranked[:cap]
        came, taken, leads, cost, damage = came[fits], taken[fits], leads[fits], cost[fits], damage[fits]
        steps.append((came, taken))
        done = (cost + usual[step + 1] <= table.room).all(axis=1)
        whole = np.where(done, damage + usual_damage[step + 1], np.inf)
        if len(whole) and whole.min() < upper:
            upper = float(whole.min())
            record = (step, int(np.argmin(whole)))
        if not len(whole):
            break
    if record is None:
        return _Search(choice=None, bound=min(upper, dropped))
    choice = favourite.copy()
    step, partial = record
    for back in range(step, settled - 1, -1):
        came, taken = steps[back - settled]
        choice[order[back]] = taken[partial]
        partial = int(came[partial])
    return _Search(choice=choice, bound=min(upper, dropped))


def _rest(parts: list[Floats]) -> Floats:
    """(L + 1, B) float64, sums of the parts from each index to the end."""
    stacked = np.array([*parts, np.zeros_like(parts[0])])
    return stacked[::-1].cumsum(axis=0)[::-1]


def _best_partial(cost: Floats, damage: Floats, pairwise: int) -> Ints:
    """Indices of partial choices that no other undercuts (of many under several budgets, all)."""
    if cost.shape[1] == 1:
        order = np.lexsort((damage, cost[:, 0]))
        sorted_damage = damage[order]
        keep = np.ones(len(order), dtype=np.bool_)
        keep[1:] = sorted_damage[1:] < np.minimum.accumulate(sorted_damage)[:-1]
        return order[keep]
    if len(damage) > pairwise:
        return np.arange(len(damage))
    return np.flatnonzero(_front(np.concatenate([cost.T, damage[None]])))
