# SPDX-License-Identifier: Apache-2.0
"""What each layer may become, as arrays."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimrank._errors import NonFiniteError
from slimrank.cost import at_multiples, pair_has_bias
from slimrank.plan import Multiples, PlanSource, multiple_for
from slimrank.records import Curve, LayerSpec, Limited, NetworkTimes, Setting
from slimrank.select._option_costs import Costing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Stands for a curve where a layer stays as it is.
UNTOUCHED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Options of L layers under B budgets; at most K per layer.

    Options stand in order of rising weighted cost, then of rising damage. Where a layer has fewer than K,
    the rest is padding with damage inf and cost 0. Costs are whole numbers below 2**53, of a unit of their
    own for times, so float64 holds them and their sums exactly.

    Attributes:
        names: (L,) dotted layer names.
        curves: what ``curve`` points into.
        cost: (B, L, K) float64, cost of the layer with that option.
        damage: (L, K) float64, at least 0; 0 for an untouched layer.
        curve: (L, K) int64, index into ``curves``; UNTOUCHED for the layer as it is.
        rank: (L, K) int64; 0 for the layer as it is.
        whole: (B, L) float64, cost of the layer as it is.
        room: (B,) float64, what the budgets leave for these layers, all others counted.
        scale: (B,) float64, cost of the whole model: costs over this can be added.
    """

    names: tuple[str, ...]
    curves: tuple[Curve, ...]
    cost: Floats
    damage: Floats
    curve: Ints
    rank: Ints
    whole: Floats
    room: Floats
    scale: Floats

    @property
    def weighted(self) -> Floats:
        """(L, K) float64, the costs as shares of the model, added."""
        return added(1 / self.scale, self.cost)

    @property
    def untouched(self) -> Ints:
        """(L,) int64, the option that leaves each layer as it is."""
        options: Ints = np.argmax((self.curve == UNTOUCHED) & np.isfinite(self.damage), axis=1)
        return options


def added(price: Floats, cost: Floats) -> Floats:
    """Costs times prices, added.

    Args:
        price: (B,) float64.
        cost: (B, ...) float64.

    Returns:
        (...) float64.
    """
    # One price is no matrix product: BLAS takes many times as long for it.
    return price[0] * cost[0] if len(price) == 1 else np.tensordot(price, cost, axes=1)


def table_of(
    source: PlanSource,
    limits: Mapping[Limited, float],
    *,
    methods: Collection[str],
    skipped: Collection[str],
    multiples: Multiples,
    times: NetworkTimes | None = None,
) -> Table:
    """The options that a source offers.

    Args:
        source: curves and structure.
        limits: metric -> largest cost allowed for the whole model.
        methods: that may be used.
        skipped: layers to leave alone.
        multiples: ranks are multiples of this: a number, or layer-name glob -> number.
        times: that a latency among the limits is counted by.

    Returns:
        The table, of the layers that have an option beside staying as they are, in execution order.

    Raises:
        NonFiniteError: a curve holds nan or inf.
    """
    by_layer: dict[str, list[Curve]] = {}
    for curve in source.curves:
        if curve.method in methods and curve.layer not in skipped:
            by_layer.setdefault(curve.layer, []).append(curve)
    costing = Costing(limits, times)
    before = costing.whole_model(source)
    scale = np.maximum(before, 1.0)
    curves: list[Curve] = []
    rows: list[tuple[str, Floats, Floats, Ints, Ints]] = []
    for name, spec in source.structure.layers.items():
        offered = [
            at_multiples(
                spec,
                curve,
                multiple_for(multiples, name),
                has_bias=pair_has_bias(spec, plan_has_bias=source.has_bias),
            )
            for curve in by_layer.get(name, ())
        ]
        options = _options(spec, offered, costing, len(curves))
        if options is not None:
            rows.append((name, *options))
            curves.extend(offered)
    layers, widest = len(rows), max((len(row[2]) for row in rows), default=1)
    cost = np.zeros((len(before), layers, widest))
    damage = np.full((layers, widest), np.inf)
    index = np.full((layers, widest), UNTOUCHED, dtype=np.int64)
    rank = np.zeros((layers, widest), dtype=np.int64)
    for layer, (_, costs, damages, indices, ranks) in enumerate(rows):
        order = np.lexsort((damages, costs.T @ (1 / scale)))
        count = len(order)
        cost[:, layer, :count] = costs[:, order]
        damage[layer, :count] = damages[order]
        index[layer, :count] = indices[order]
        rank[layer, :count] = ranks[order]
    names = tuple(row[0] for row in rows)
    whole = np.zeros((len(before), layers))
    for layer, name in enumerate(names):
        whole[:, layer] = costing.whole_layer(source.structure.layers[name])
    fixed = before - whole.sum(axis=1)
    return Table(
        names=names,
        curves=tuple(curves),
        cost=cost,
        damage=damage,
        curve=index,
        rank=rank,
        whole=whole,
        room=np.array(list(limits.values())) - fixed,
        scale=scale,
    )


def used(table: Table, choice: Ints) -> Floats:
    """Cost of the chosen options.

    Args:
        table: of the options.
        choice: (L,) option of each layer.

    Returns:
        (B,) float64.
    """
    total: Floats = table.cost[:, np.arange(len(choice)), choice].sum(axis=1)
    return total


def is_feasible(table: Table, choice: Ints) -> bool:
    """Whether a choice keeps every budget."""
    return bool(np.all(used(table, choice) <= table.room))


def total_damage(table: Table, choice: Ints) -> float:
    """Predicted damage of a choice, the sum over the layers."""
    return float(table.damage[np.arange(len(choice)), choice].sum())


def settings_of(table: Table, choice: Ints) -> dict[str, Setting]:
    """The settings that a choice means.

    Args:
        table: of the options.
        choice: (L,) option of each layer.

    Returns:
        Layer -> setting; untouched layers are not in it.
    """
    settings: dict[str, Setting] = {}
    for layer, name in enumerate(table.names):
        index = int(table.curve[layer, choice[layer]])
        if index != UNTOUCHED:
            curve = table.curves[index]
            settings[name] = curve.setting(int(table.rank[layer, choice[layer]]))
    return settings


def saves(cost: Floats, whole: Floats, latency: int | None) -> Flags:
    """Whether options save something of what they replace.

    Args:
        cost: (B, ...) of the options.
        whole: (B, ...) of what they replace, of a shape that broadcasts.
        latency: index of the latency among the metrics; None where there is none.

    Returns:
        (...) bool. An option that takes longer than what it replaces does not, whatever else it saves.
    """
    less = cost < whole
    return np.asarray(less.any(axis=0) if latency is None else less[latency])


def safe_damage(curve: Curve) -> Floats:
    """Damage of each option of a layer.

    Args:
        curve: of one form.

    Returns:
        (K,) float64, at least 0.

    Raises:
        NonFiniteError: the curve holds nan or inf.
    """
    if not np.isfinite(curve.damage).all():
        raise NonFiniteError(
            f"layer {curve.layer!r}: the damage of {curve.method} {curve.form} is nan or inf; "
            f"measure the study again with finite data, or skip this layer"
        )
    # Rounding may leave a damage a hair below zero.
    return np.maximum(curve.damage, 0.0)


def _options(
    spec: LayerSpec, curves: Sequence[Curve], costing: Costing, first: int
) -> tuple[Floats, Floats, Ints, Ints] | None:
    """Cost (B, K), damage, curve and rank (K,) of one layer; None where it can only stay as it is."""
    wholes = costing.whole_layer(spec)[:, None]
    costs, damages = [wholes], [np.zeros(1)]
    indices, ranks = [np.full(1, UNTOUCHED)], [np.zeros(1, dtype=np.int64)]
    for offset, curve in enumerate(curves):
        damage, cost = safe_damage(curve), costing.option_costs(spec, curve)
        good = saves(cost, wholes, costing.latency)
        costs.append(cost[:, good])
        damages.append(damage[good])
        indices.append(np.full(int(good.sum()), first + offset))
        ranks.append(curve.ranks[good])
    if sum(len(part) for part in ranks) == 1:
        return None
    return (
        np.concatenate(costs, axis=1),
        np.concatenate(damages),
        np.concatenate(indices),
        np.concatenate(ranks),
    )
