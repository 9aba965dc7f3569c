# SPDX-License-Identifier: Apache-2.0
"""Measured times of a network, as formulas that a plan can be chosen by.

Between the steps of the hardware times are stairs. The formulas hold on the stairs' edges, where ranks and
widths are multiples of ``NetworkTimes.step``; between two edges they are below the true time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from numbers import Real
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slimrank._errors import LatencyError
from slimrank.records._setting import Form

# Sizes that have kernels of their own, and are padded to no step.
_LEAST_ROUNDED = 4


class Steps(NamedTuple):
    """Of how many channels kernels compute at a time.

    Attributes:
        rows: of those that they write; ranks, and widths of plans, are multiples of it.
        columns: of those that they read.
    """

    rows: int = 1
    columns: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTime:
    """Time of a layer in one piece: ``fixed + per_row * R + per_column * C + per_product * R * C``.

    R rows are its outputs that stay. C columns are its inputs that stay, of one group of a grouped
    convolution: 1 for a depthwise one.

    Attributes:
        fixed: ns.
        per_row: ns for each output.
        per_column: ns for each input.
        per_product: ns for each output and input.

    Raises:
        LatencyError: a coefficient that is not finite or below 0.
    """

    fixed: float
    per_row: float
    per_column: float
    per_product: float

    def __post_init__(self) -> None:
        _check(self)

    def time(self, rows: ArrayLike, columns: ArrayLike) -> NDArray[np.float64]:
        """The time at some sizes.

        Args:
            rows: outputs that stay, of any shape.
            columns: inputs that stay, of a shape that broadcasts with it.

        Returns:
            ns, float64, of the broadcast shape.
        """
        r, c = np.asarray(rows, dtype=np.float64), np.asarray(columns, dtype=np.float64)
        return np.asarray(self.fixed + self.per_row * r + self.per_column * c + self.per_product * r * c)

    def scaled(self, factor: float) -> "DenseTime":
        """Every time multiplied."""
        return _changed(self, lambda time: factor * time)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTime:
    """Time of a pair in the place of a layer, at rank r, with R rows and C columns of the layer that stay.

    ``fixed + any_row * R + any_column * C + r * (per_rank + per_row * R + per_column * C)``: reading what
    comes in and writing what goes out takes its time at any rank. C counts the inputs of all groups of a
    grouped convolution; r channels between the factors are those of one group.

    Attributes:
        fixed: ns.
        any_row: ns for each output of the layer that stays, at any rank.
        any_column: ns for each input of the layer that stays, at any rank.
        per_rank: ns for each rank.
        per_row: ns for each rank and output of the layer that stays.
        per_column: ns for each rank and input of the layer that stays.

    Raises:
        LatencyError: a coefficient that is not finite or below 0.
    """

    fixed: float
    per_rank: float
    per_row: float
    per_column: float
    any_row: float = 0.0
    any_column: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def time(self, rank: ArrayLike, rows: ArrayLike, columns: ArrayLike) -> NDArray[np.float64]:
        """The time at some ranks and sizes.

        Args:
            rank: of the pair, of any shape.
            rows: outputs of the layer that stay, of a shape that broadcasts with it.
            columns: inputs of the layer that stay, likewise.

        Returns:
            ns, float64, of the broadcast shape.
        """
        rank, r, c = (np.asarray(size, dtype=np.float64) for size in (rank, rows, columns))
        alone = self.fixed + self.any_row * r + self.any_column * c
        return np.asarray(alone + rank * (self.per_rank + self.per_row * r + self.per_column * c))

    def scaled(self, factor: float) -> "PairTime":
        """Every time multiplied."""
        return _changed(self, lambda time: factor * time)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Times of what one layer can become.

    Attributes:
        dense: of the layer in one piece.
        pairs: of each form that a plan may use. A form whose pairs are never faster than the layer, beyond
            the noise of the measurement, is left out.
    """

    dense: DenseTime
    pairs: Mapping[Form, PairTime] = field(default_factory=dict)

    def scaled(self, factor: float) -> "LayerTimes":
        """Every time multiplied."""
        return _changed_layer(self, lambda time: factor * time)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTimes:
    """Times of a network and its parts, for ONE run of the batch that they were measured with.

    ``before`` is ``fixed`` and everything at full size, added up. What is in no other field is in ``fixed``:
    layers that are not in ``layers``, for example.

    Attributes:
        layers: by dotted name; with what else goes with the outputs of each.
        groups: ns for each unit of a channel group that stays (up to the next step), of what goes with its
            channels and is no layer: norms, activations, sums, pooling. What goes with products of groups, as
            attention does with heads and their width, is in the layer whose outputs they make up.
        blocks: ns that go with a dropped block beside its layers, and beside the groups that are wholly in
            it.
        ragged: ns that a group costs beyond that as long as it is whole, where its width is no multiple of
            the step, or not of what kernels other than those of layers take: they are slower then.
        fixed: ns that no plan changes.
        before: ns of the network as it stands, at the precision of the table.
        reference: ns that ratios are shares of: of the original in float32, as measured. In a float32 table
            about the same as ``before``, which the formulas give.
        step: ranks and widths (outputs of a group's first producer) at which the formulas hold are multiples
            of this.
        column_step: what a layer reads counts up to the next multiple of this; kernels that read each number
            by itself pad nothing there. None for the same as ``step``.

    Raises:
        LatencyError: a time that is not finite or below 0, no time before, or a step below 1.
    """

    layers: Mapping[str, LayerTimes]
    groups: Mapping[str, float]
    blocks: Mapping[str, float]
    fixed: float
    before: float
    reference: float
    step: int = 1
    ragged: Mapping[str, float] = field(default_factory=dict)
    column_step: int | None = None

    def __post_init__(self) -> None:
        times = {
            "fixed": self.fixed,
            **{f"groups[{name!r}]": time for name, time in self.groups.items()},
            **{f"blocks[{name!r}]": time for name, time in self.blocks.items()},
            **{f"ragged[{name!r}]": time for name, time in self.ragged.items()},
        }
        for what, time in times.items():
            _check_number(what, time, above_zero=False)
        for what, time in (("before", self.before), ("reference", self.reference)):
            _check_number(what, time, above_zero=True)
        for name, step in (("step", self.step), ("column_step", self.steps.columns)):
            if isinstance(step, bool) or not isinstance(step, int) or step < 1:
                raise LatencyError(f"times: {name} is {step!r}; give a whole number of at least 1, e.g. 8")

    @property
    def steps(self) -> Steps:
        """Both steps."""
        return Steps(rows=self.step, columns=self.step if self.column_step is None else self.column_step)

    def edge(self, size: ArrayLike) -> NDArray[np.int64]:
        """``step_edge`` at the step of ranks and widths."""
        return step_edge(size, self.step)

    def scaled(self, factor: float) -> "NetworkTimes":
        """The same with the times of all that a plan can change multiplied, and ``fixed`` kept.

        Args:
            factor: above 0.

        Returns:
            New times; ``reference`` stays, ``before`` follows.
        """
        before = self.fixed + factor * (self.before - self.fixed)
        return replace(with_parts(self, lambda time: factor * time), before=before)


def with_parts(times: NetworkTimes, change: Callable[[float], float]) -> NetworkTimes:
    """Times of which every one that a plan can change is changed; ``fixed``, ``before`` and others stay.

    Args:
        times: of a network.
        change: ns, or ns for each of something -> the same.

    Returns:
        New times.
    """

    def changed(parts: Mapping[str, float]) -> dict[str, float]:
        return {name: change(time) for name, time in parts.items()}

    return replace(
        times,
        layers={name: _changed_layer(layer, change) for name, layer in times.layers.items()},
        groups=changed(times.groups),
        blocks=changed(times.blocks),
        ragged=changed(times.ragged),
    )


def _changed_layer(layer: LayerTimes, change: Callable[[float], float]) -> LayerTimes:
    return LayerTimes(
        dense=_changed(layer.dense, change),
        pairs={form: _changed(pair, change) for form, pair in layer.pairs.items()},
    )


def step_edge(size: ArrayLike, step: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks, rows or columns as runtimes compute them: up to the next step, below which time stands still.

    Args:
        size: whole numbers, of any shape.
        step: of the hardware; an array broadcasts.

    Returns:
        int64, same shape. Less than 4 stays as it is: the inputs of a depthwise kernel, colours.
    """
    sizes = np.asarray(size, dtype=np.int64)
    return np.where(sizes < _LEAST_ROUNDED, sizes, -(-sizes // step) * step)


_Times = TypeVar("_Times", DenseTime, PairTime)


def _changed(times: _Times, change: Callable[[float], float]) -> _Times:
    """Every coefficient of a formula changed."""
    return replace(times, **{known.name: change(getattr(times, known.name)) for known in fields(times)})


def _check(times: DenseTime | PairTime) -> None:
    for known in fields(times):
        _check_number(f"{type(times).__name__}.{known.name}", getattr(times, known.name), above_zero=False)


def _check_number(what: str, time: float, *, above_zero: bool) -> None:
    is_number = isinstance(time, Real) and not isinstance(time, bool) and isfinite(time)
    if not is_number or time < 0 or (above_zero and time == 0):
        raise LatencyError(
            f"times: {what} is {time!r}; give ns, {'above 0' if above_zero else '0 or more'}, or measure anew"
        )
