# SPDX-License-Identifier: Apache-2.0
"""What the model, its layers and their options cost: the one place where both selectors read it.

An option is a rank of a form. Where layers alone are chosen they keep their shape, and the cost of an option
stands in its curve. Next to groups a layer may lose rows and columns, so there the cost comes in parts. A
latency is one more metric, whose costs come from measured times instead of shapes, and so are the bytes that
are alive at one place of a forward pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import frexp, ldexp

import numpy as np
from numpy.typing import NDArray

from slimrank.cost import (
    factor_costs,
    group_is_inside,
    group_time,
    layer_cost,
    middle_cost,
    timed_pair_sizes,
    timed_sizes,
)
from slimrank.plan import PlanSource, is_inside
from slimrank.records import (
    LATENCY,
    Cost,
    Curve,
    Form,
    GroupSpec,
    LayerSpec,
    LayerTimes,
    Limited,
    NetworkTimes,
    PairBytes,
    PairTime,
    PeakPoint,
    Steps,
    with_parts,
)

Floats = NDArray[np.float64]

# Bits below the time of the network that coefficients are rounded to. What is added up then stays a whole
# number of such units below 2**53, so that times add up exactly in any order, as counts do; the eight bits
# that are left are for sums above the time of the network. An error of 2**-45, times the rows and columns of
# a layer, is far below what can be measured.
_TIME_BITS = 45

_NO_BYTES = PairBytes(fixed=0, per_rank=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostParts:
    """Cost of a pair without its bias, exact at any shape.

    ``fixed + columns * any_column + rows * any_row + rank * (each + columns * column + rows * row)``. Of two
    ranks on a path no cost is in proportion to either, so there all of it is that of any pair.

    Attributes:
        column: (B,) float64, cost for each rank and column of the weight that stays.
        row: (B,) float64, cost for each rank and row of the weight that stays.
        each: (B,) float64, cost for each rank; 0 but for times.
        fixed: (B,) float64, cost of any pair; 0 but for times and two ranks.
        any_column: (B,) float64, cost for each column that stays, at any rank; 0 likewise.
        any_row: (B,) float64, cost for each row that stays, at any rank; 0 likewise.
    """

    column: Floats
    row: Floats
    each: Floats
    fixed: Floats
    any_column: Floats
    any_row: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseParts:
    """Time of a layer in one piece as costs: those that go with its shape, and where they do.

    Attributes:
        row: (B,) float64, for each row of the weight that stays.
        column: (B,) float64, for each column that stays.
        product: (B,) float64, for each row and column that stay.
    """

    row: Floats
    column: Floats
    product: Floats


class Costing:
    """What budgets count: B metrics, in the order that is wanted.

    Attributes:
        metrics: of the budgets.
        times: measured, rounded so that they add up exactly; None where no latency is among the metrics.
        latency: index of the latency; None where there is none.
        points: index and formula of each place whose bytes are among the metrics.
    """

    def __init__(self, metrics: Iterable[Limited], times: NetworkTimes | None = None) -> None:
        """Round the times.

        Args:
            metrics: of the budgets.
            times: measured; needed where a latency is among the metrics.
        """
        self.metrics: tuple[Limited, ...] = tuple(metrics)
        self.latency = self.metrics.index(LATENCY) if LATENCY in self.metrics else None
        self.times = None if times is None or self.latency is None else exact_times(times)
        self.points = tuple(
            (index, metric) for index, metric in enumerate(self.metrics) if isinstance(metric, PeakPoint)
        )

    @property
    def steps(self) -> Steps:
        """Sizes count up to the next multiples of these for times; 1 where there are none."""
        return Steps() if self.times is None else self.times.steps

    def as_array(self, cost: Cost) -> Floats:
        """A counted cost as numbers.

        Args:
            cost: of anything; it takes no time.

        Returns:
            (B,) float64. Costs are whole numbers below 2**53, so float64 holds them exactly.
        """
        return np.array(
            [
                0 if isinstance(metric, PeakPoint) or metric == LATENCY else cost.metric(metric)
                for metric in self.metrics
            ],
            dtype=np.float64,
        )

    def _time(self, time: float) -> Floats:
        """(B,) float64, a time alone."""
        return time * np.array([float(metric == LATENCY) for metric in self.metrics])

    def _alive(self, bytes_of: Callable[[PeakPoint], int]) -> Floats:
        """(B,) float64, bytes at each place alone."""
        alive = np.zeros(len(self.metrics))
        for index, point in self.points:
            alive[index] = bytes_of(point)
        return alive

    def whole_model(self, source: PlanSource) -> Floats:
        """(B,) float64, cost of the model that is planned for, as it stands."""
        counted = self.as_array(source.before) + self._alive(lambda point: point.whole)
        return counted if self.times is None else counted + self._time(self.times.before)

    def shared(self, of: Cost) -> Floats:
        """(B,) float64, what keep ratios are shares of.

        Args:
            of: counted cost that they are shares of.

        Returns:
            Of a latency, the time of the original in float32; of a place, the peak of all places.
        """
        counted = self.as_array(of) + self._alive(lambda point: point.peak)
        return counted if self.times is None else counted + self._time(self.times.reference)

    def whole_layer(self, spec: LayerSpec) -> Floats:
        """(B,) float64, cost of a layer that stays as it is."""
        counted = self.as_array(layer_cost(spec)) + self._alive(lambda point: _dense(point, spec))
        layer = self._layer(spec.name)
        if layer is None:
            return counted
        return counted + self._time(self._whole_time(spec, layer))

    def option_costs(self, spec: LayerSpec, curve: Curve) -> Floats:
        """Cost of each option of a layer that keeps its shape.

        Args:
            spec: the layer.
            curve: of one form. Its costs count the bias that the pairs of a plan carry: a study and a score
                table make them with the ``has_bias`` that they give to their plans.

        Returns:
            (B, K) float64, one column for each rank of the curve; a time is inf where the form is not in the
            table of times.
        """
        stored = {"macs": curve.macs, "params": curve.params, "bytes": curve.bytes}

        def costs_in(metric: Limited) -> Floats:
            if isinstance(metric, PeakPoint):
                pair = _pair_bytes(metric, spec, curve.form)
                alive = _dense(metric, spec) + pair.fixed + pair.per_rank * curve.ranks
                return alive.astype(np.float64)
            return self._pair_times(spec, curve) if metric == LATENCY else stored[metric].astype(np.float64)

        return np.array([costs_in(metric) for metric in self.metrics], dtype=np.float64)

    def _pair_times(self, spec: LayerSpec, curve: Curve) -> Floats:
        pair = self._pair(spec.name, curve.form)
        if pair is None:
            return np.full(len(curve.ranks), np.inf)
        return pair.time(curve.ranks, *timed_pair_sizes(spec, self.steps))

    def offers(self, spec: LayerSpec, form: Form) -> bool:
        """Whether pairs of a form may be used: always, unless times are asked for and it has none."""
        return self.times is None or self._pair(spec.name, form) is not None

    def cost_parts(self, spec: LayerSpec, form: Form, ranks: tuple[int, int] | None = None) -> CostParts:
        """Cost of the options of a layer that may lose rows and columns.

        What a curve holds of it are sums at full shape.

        Args:
            spec: the layer; its numbers of rows and columns do not matter.
            form: how the layer is split; one that is offered.
            ranks: of a form with two ranks, both, in the order of its factors; else None.

        Returns:
            The parts.
        """
        column, row = (self.as_array(cost) for cost in factor_costs(spec, form))
        alive = self._alive(lambda point: _dense(point, spec) + _pair_bytes(point, spec, form).fixed)
        per_rank = self._alive(lambda point: _pair_bytes(point, spec, form).per_rank)
        if ranks is not None:
            rank_in, rank = ranks
            nothing = 0 * column
            return CostParts(
                column=nothing,
                row=nothing,
                each=nothing,
                fixed=rank_in * rank * self.as_array(middle_cost(spec, form)) + alive + rank * per_rank,
                any_column=rank_in * column,
                any_row=rank * row,
            )
        pair = self._pair(spec.name, form)
        if pair is None:
            nothing = self._time(0.0)
            return CostParts(
                column=column, row=row, each=per_rank, fixed=alive, any_column=nothing, any_row=nothing
            )
        return CostParts(
            column=column + self._time(pair.per_column),
            row=row + self._time(pair.per_row),
            each=self._time(pair.per_rank) + per_rank,
            fixed=self._time(pair.fixed) + alive,
            any_column=self._time(pair.any_column),
            any_row=self._time(pair.any_row),
        )

    def dense_parts(self, name: str) -> DenseParts | None:
        """What the time of a layer in one piece goes with; None where no time is known."""
        layer = self._layer(name)
        if layer is None:
            return None
        return DenseParts(
            row=self._time(layer.dense.per_row),
            column=self._time(layer.dense.per_column),
            product=self._time(layer.dense.per_product),
        )

    def unit_cost(self, group: str) -> Floats:
        """(B,) float64, cost of what goes with one unit of a group and is no tensor and no product."""
        return self._time(self._unit_time(group)) + self._alive(lambda point: point.units.get(group, 0))

    def whole_extra(self, group: GroupSpec) -> Floats:
        """(B,) float64, what that costs beyond a unit each as long as the group is whole."""
        return self._time(self._whole_group(group) - group.units * self._unit_time(group.name))

    def slimmed_group(self, group: GroupSpec, count: int) -> Floats:
        """(B,) float64, what that costs with ``count`` units, less what it costs whole."""
        alive = self._alive(lambda point: point.units.get(group.name, 0)) * (count - group.units)
        if self.times is None:
            return alive
        return alive + self._time(
            _rounded(self.times, group_time(self.times, group, count)) - self._whole_group(group)
        )

    def _unit_time(self, group: str) -> float:
        return 0.0 if self.times is None else self.times.groups.get(group, 0.0)

    def _whole_group(self, group: GroupSpec) -> float:
        return 0.0 if self.times is None else _rounded(self.times, group_time(self.times, group, group.units))

    def whole_block(self, source: PlanSource, name: str) -> Floats:
        """(B,) float64, cost of everything in a block."""
        channels = source.structure.channels
        block = channels.blocks[name]
        counted = self.as_array(Cost(macs=block.macs, params=block.params, bytes=block.bytes))
        if self.points:
            inside = [
                group for group in channels.groups.values() if group_is_inside(channels, group.name, (name,))
            ]
            # A place in the block is gone with it.
            counted += self._alive(
                lambda point: (
                    point.whole
                    if point.is_gone_with((name,))
                    else sum(group.units * point.units.get(group.name, 0) for group in inside)
                )
            )
        if self.times is None:
            return counted
        layers = [spec for spec in source.structure.layers.values() if is_inside(spec.name, (name,))]
        time = self.times.blocks.get(name, 0.0)
        time += sum(
            self._whole_group(group)
            for group in channels.groups.values()
            if group_is_inside(channels, group.name, (name,))
        )
        for spec in layers:
            layer = self._layer(spec.name)
            time += 0.0 if layer is None else self._whole_time(spec, layer)
        return counted + self._time(time)

    def number_cost(self, itemsize: int) -> Floats:
        """Cost of one stored number that takes no MACs, such as one entry of a bias.

        Args:
            itemsize: its bytes.

        Returns:
            (B,) float64.
        """
        return self.as_array(Cost(macs=0, params=1, bytes=itemsize))

    def _whole_time(self, spec: LayerSpec, layer: LayerTimes) -> float:
        return float(layer.dense.time(*timed_sizes(spec, self.steps)))

    def _layer(self, name: str) -> LayerTimes | None:
        return None if self.times is None else self.times.layers.get(name)

    def _pair(self, name: str, form: Form) -> PairTime | None:
        layer = self._layer(name)
        return None if layer is None else layer.pairs.get(form)


def _dense(point: PeakPoint, spec: LayerSpec) -> int:
    """Bytes at a place that count as those of a layer in one piece."""
    return point.dense if point.module == spec.name else 0


def _pair_bytes(point: PeakPoint, spec: LayerSpec, form: Form) -> PairBytes:
    """What a pair in the place of a layer adds to the bytes at a place."""
    return point.pairs.get(form, _NO_BYTES) if point.module == spec.name else _NO_BYTES


def exact_times(times: NetworkTimes) -> NetworkTimes:
    """The same times, rounded to units so coarse that sums of them are exact in any order."""

    def rounded(time: float) -> float:
        return _rounded(times, time)

    return replace(
        with_parts(times, rounded),
        fixed=rounded(times.fixed),
        before=rounded(times.before),
        reference=rounded(times.reference),
    )


def _rounded(times: NetworkTimes, time: float) -> float:
    _, exponent = frexp(max(times.before, times.reference))
    unit = ldexp(1.0, exponent - _TIME_BITS)
    return round(time / unit) * unit
