# SPDX-License-Identifier: Apache-2.0
"""Formulas for the times of layers, from what variants of the network took.

An operation takes a share for each multiply-accumulate, one for each number that it writes and one for each
that it reads, and a constant. Kernels of one kind (shape, stride, groups) have rates of their own; each layer
starts from those of its kind and departs from them as far as its own entries tell.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, prod

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from slimrank._errors import LatencyError
from slimrank.cost import (
    FORM_ROWS,
    FORMS,
    factor_costs,
    factor_taps,
    forms_of,
    layer_cost,
    pair_rows_and_columns,
    rows_and_columns,
    slimmed_spec,
    timed_pair_sizes,
    timed_sizes,
)
from slimrank.latencies import Parts
from slimrank.latency._parts import groups_by_layer
from slimrank.latency._predict import changing_time, group_edge
from slimrank.latency._variants import untouched, useful_ranks
from slimrank.plan import Step, Structure, is_inside, predicted_time, slimmable_groups
from slimrank.records import (
    DenseTime,
    Form,
    LayerSpec,
    LayerTimes,
    Method,
    NetworkTimes,
    PairTime,
    Steps,
    step_edge,
)

# Entries that the rates of all kernels count for beside those of one kind, and those of a kind beside a
# layer's own.
_KIND_WEIGHT, _LAYER_WEIGHT = 0.5, 0.1
# Variants that the original counts for: plans leave much as it is, and ratios are shares of its time.
_ORIGINAL_WEIGHT = 2
# Narrower widths that a line through them takes at least, and how many times as long as it says a whole group
# must take to be apart from it.
_TELLING, _FAR = 3, 2.0
# A pair must be faster than its layer by this share at least: less is within what measurements repeat.
_NOISE = 0.02
_Vector = NDArray[np.float64]
# A layer, the form of its pair or "" for the layer in one piece, and which factor.
_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one variant took.

    Attributes:
        variant: what was done to the network.
        parts: times of its parts, by the profile.
        ratio: whole time over that of the original in float32.
        spread: interquartile range of that ratio, or of one that is a factor of it, over its median.
    """

    variant: Step
    parts: Parts
    ratio: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Formulas, and how well they predict.

    Attributes:
        times: the formulas.
        errors: relative error of the predicted time of each variant, 0 or more.
    """

    times: NetworkTimes
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """A layer in one piece, or a factor of a pair.

    Attributes:
        kind: of its kernel.
        sizes: (4,): 1, multiply-accumulates, numbers written, numbers read; for one run of the batch.
    """

    kind: str
    sizes: _Vector


def fit_times(
    structure: Structure,
    methods: Sequence[Method],
    measured: Sequence[Measured],
    *,
    original: Parts,
    before: float,
    reference: float,
    batch: int,
    steps: Steps,
) -> Fit:
    """The formulas that fit what was measured.

    Args:
        structure: of the network.
        methods: that plans may use.
        measured: the variants.
        original: parts of the network as it stands, in the precision of the variants.
        before: whole time of the network as it stands, in that precision, ns.
        reference: whole time of the original that ratios are to, ns.
        batch: samples of the batch.
        steps: of ranks and widths, and of what layers read.

    Returns:
        The formulas. Node times are scaled, and the constant chosen, so that whole times come out on
        average: ``before`` need not be quite what was measured.

    Raises:
        LatencyError: smaller variants were not faster, so that nothing can be told of the layers.
    """
    whole = untouched(structure)
    profiles = _even(
        [(whole, original), *((entry.variant, entry.parts) for entry in measured)],
        [before, *(reference * entry.ratio for entry in measured)],
    )
    profiles += [profiles[0]] * (_ORIGINAL_WEIGHT - 1)
    formulas, rows = part_formulas(
        structure, methods, profiles, before=before, reference=reference, batch=batch, steps=steps
    )
    raw = with_rows(faster_pairs(structure, formulas), rows)
    # Parts are a little faster beside smaller neighbours, which leave them more of the caches. So the line
    # goes through all whole times, and not through the original's alone.
    changing = np.array([changing_time(raw, variant) for variant in (whole, *(e.variant for e in measured))])
    wholes = np.array([before, *(reference * entry.ratio for entry in measured)])
    if not changing.all() or np.cov(changing, wholes)[0, 1] < 0:
        raise LatencyError(
            "whole times do not follow what the variants change: the machine does other work, or the batch "
            "takes too little time to tell layers apart; measure again on a quiet machine, or with a larger "
            "batch="
        )
    fixed, scale = _line(changing, wholes)
    times = replace(raw.scaled(scale), fixed=fixed, before=float(fixed + scale * changing[0]))
    errors = [
        abs(predicted_time(times, entry.variant) / times.reference / entry.ratio - 1) for entry in measured
    ]
    return Fit(times=times, errors=tuple(errors))


def part_formulas(
    structure: Structure,
    methods: Sequence[Method],
    profiles: Sequence[tuple[Step, Parts]],
    *,
    before: float,
    reference: float,
    batch: int,
    steps: Steps,
) -> tuple[NetworkTimes, dict[str, float]]:
    """The formulas that fit the times of parts alone.

    Args:
        structure: of the network.
        methods: that plans may use.
        profiles: variants and the times of their parts.
        before: whole time of the network as it stands, ns.
        reference: whole time of the original that ratios are to, ns.
        batch: samples of the batch.
        steps: of ranks and widths, and of what layers read.

    Returns:
        Formulas of all forms, whether they are faster than their layers or not; nothing is fixed. And, by
        layer, ns for each of its outputs of what is no layer, which ``with_rows`` adds.
    """
    layers = _layers(structure, methods, profiles, batch, steps)
    others = _others(structure, profiles, layers, steps)
    times = NetworkTimes(
        layers=layers,
        groups=others.groups,
        ragged=others.ragged,
        blocks=others.blocks,
        fixed=0.0,
        before=before,
        reference=reference,
        step=steps.rows,
        column_step=steps.columns,
    )
    return times, dict(others.rows)


def with_rows(times: NetworkTimes, rows: Mapping[str, float]) -> NetworkTimes:
    """Times of layers with so many ns more for each of their outputs, in every form."""

    def more(layer: LayerTimes, time: float) -> LayerTimes:
        dense = replace(layer.dense, per_row=layer.dense.per_row + time)
        pairs = {form: replace(pair, any_row=pair.any_row + time) for form, pair in layer.pairs.items()}
        return LayerTimes(dense=dense, pairs=pairs)

    layers = {name: more(layer, rows.get(name, 0.0)) for name, layer in times.layers.items()}
    return replace(times, layers=layers)


def faster_pairs(structure: Structure, times: NetworkTimes) -> NetworkTimes:
    """Times without the pairs that are not faster than their layers."""

    def kept(name: str, layer: LayerTimes) -> LayerTimes:
        spec = structure.layers[name]
        most = (1 - _NOISE) * float(layer.dense.time(*timed_sizes(spec, times.steps)))
        rows, columns = timed_pair_sizes(spec, times.steps)
        pairs = {
            form: pair
            for form, pair in layer.pairs.items()
            if float(pair.time(times.step, rows, columns)) < most
        }
        return replace(layer, pairs=pairs)

    return replace(times, layers={name: kept(name, layer) for name, layer in times.layers.items()})


def _even(profiles: Sequence[tuple[Step, Parts]], wholes: Sequence[float]) -> list[tuple[Step, Parts]]:
    """Profiles as if the machine had been equally fast for all: nodes make up whole times but a constant.

    Whole times are those of runs that took turns with another file; profiles were taken one after the other.
    """
    totals = np.array([parts.total for _, parts in profiles])
    if not totals.all():
        return list(profiles)
    constant, _ = _line(totals, np.array(wholes))
    return [
        (step, parts.scaled((time - constant) / parts.total)) if time > constant else (step, parts)
        for (step, parts), time in zip(profiles, wholes, strict=True)
    ]


def _line(sums: _Vector, wholes: _Vector) -> tuple[float, float]:
    """Constant and slope of whole times over sums of their parts, both 0 or more.

    Most of the noise is in the sums: profiles are single runs, and formulas miss something of each part,
    while whole times are medians of several turns of many runs. A fit of whole times to such sums would find
    too small a slope and too large a constant, so the sums are fitted to them.

    Args:
        sums: (V,), above 0.
        wholes: (V,), above 0.

    Returns:
        Of least relative errors.

    Source: regression dilution and inverse regression, Fuller 1987, "Measurement Error Models".
    """
    (share, missing), _ = nnls(np.column_stack([np.ones(len(wholes)), -1 / wholes]), sums / wholes)
    return float(missing / share), float(1 / share)


def _layers(
    structure: Structure,
    methods: Sequence[Method],
    profiles: Sequence[tuple[Step, Parts]],
    batch: int,
    steps: Steps,
) -> dict[str, LayerTimes]:
    entries = _entries(structure, profiles, batch, steps)
    rates = _Rates.fitted(entries)
    return {
        name: _layer_times(spec, methods, rates, batch, steps)
        for name, spec in structure.layers.items()
        if (name, "", 0) in entries
    }


def _entries(
    structure: Structure, profiles: Sequence[tuple[Step, Parts]], batch: int, steps: Steps
) -> dict[_Key, list[tuple[_Operation, float]]]:
    """What each operation of each layer took, at which sizes."""
    entries: dict[_Key, list[tuple[_Operation, float]]] = {}
    for variant, parts in profiles:
        for name, times in parts.factors.items():
            spec = slimmed_spec(structure.layers[name], structure.channels, variant.groups)
            setting = variant.settings.get(name)
            found: tuple[_Operation, ...]
            if setting is None:
                rows, columns = timed_sizes(spec, steps)
                found = (_dense(spec, rows, columns, batch),)
            else:
                rank = int(step_edge(setting.rank, steps.rows))
                found = _pair(spec, setting.form, rank, *timed_pair_sizes(spec, steps), batch)
            form = "" if setting is None else setting.form
            for index, (operation, time) in enumerate(zip(found, times, strict=True)):
                if time > 0:
                    entries.setdefault((name, form, index), []).append((operation, time))
    return entries


def _layer_times(
    spec: LayerSpec, methods: Sequence[Method], rates: "_Rates", batch: int, steps: Steps
) -> LayerTimes:
    """The formulas of a layer and its pairs."""
    step = steps.rows
    rows, columns = timed_sizes(spec, steps)
    dense = _dense_time(spec, rates.of((spec.name, "", 0), _dense(spec, rows, columns, batch)), batch)
    rows, columns = timed_pair_sizes(spec, steps)
    pairs = {}
    for method, forms in FORMS.items():
        for form in forms:
            is_offered = method in methods and method in spec.methods and form in forms_of(spec, method)
            if not is_offered or not FORM_ROWS[form].is_timed or not useful_ranks(spec, form, step):
                continue
            first, second = (
                rates.of((spec.name, form, index), operation)
                for index, operation in enumerate(_pair(spec, form, step, rows, columns, batch))
            )
            pairs[form] = _pair_time(spec, form, (first, second), rows, columns, batch)
    return LayerTimes(dense=dense, pairs=pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """Rates of operations, ns for each of their sizes.

    Attributes:
        own: (4,) of each operation of each layer that was measured.
        kinds: (4,) of each kind.
        common: (4,) of all.
        factors: by how much the operations of a layer are slower than their kinds.
    """

    own: Mapping[_Key, _Vector]
    kinds: Mapping[str, _Vector]
    common: _Vector
    factors: Mapping[str, float]

    @classmethod
    def fitted(cls, entries: Mapping[_Key, Sequence[tuple[_Operation, float]]]) -> "_Rates":
        """Fits them to what was measured."""
        every = [entry for found in entries.values() for entry in found]
        common = _solved(every)
        by_kind: dict[str, list[tuple[_Operation, float]]] = {}
        for operation, time in every:
            by_kind.setdefault(operation.kind, []).append((operation, time))
        kinds = {kind: _solved(found, common, _KIND_WEIGHT) for kind, found in by_kind.items()}
        # A layer whose maps have an awkward size is slow in all its forms.
        logs: dict[str, list[float]] = {}
        for (name, _, _), found in entries.items():
            for operation, time in found:
                usual = max(1.0, float(np.dot(kinds[operation.kind], operation.sizes)))
                logs.setdefault(name, []).append(log(time / usual))
        factors = {
            name: exp(sum(found_logs) / (len(found_logs) + _LAYER_WEIGHT))
            for name, found_logs in logs.items()
        }
        own = {
            key: _solved(found, factors[key[0]] * kinds[found[0][0].kind], _LAYER_WEIGHT)
            for key, found in entries.items()
        }
        return cls(own=own, kinds=kinds, common=common, factors=factors)

    def of(self, key: _Key, operation: _Operation) -> _Vector:
        """The rates of an operation: its own, or those of its kind where it was not measured."""
        if key in self.own:
            return self.own[key]
        return self.factors.get(key[0], 1.0) * self.kinds.get(operation.kind, self.common)


def _solved(
    entries: Sequence[tuple[_Operation, float]], prior: _Vector | None = None, weight: float = 0.0
) -> _Vector:
    """Rates, none below 0, of least relative errors; drawn to others where entries do not tell."""
    matrix = np.array([operation.sizes / time for operation, time in entries])
    wanted = np.ones(len(matrix))
    if prior is not None:
        # By how much each rate counts in these times, so that all are drawn alike.
        pull = np.sqrt(weight) * matrix.mean(0)
        matrix = np.vstack([matrix, np.diag(pull)])
        wanted = np.concatenate([wanted, pull * prior])
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    solution, _ = nnls(matrix / scale, wanted)
    return np.asarray(solution / scale)


def _dense(spec: LayerSpec, rows: int, columns: int, batch: int) -> _Operation:
    macs, written, read = _unit_sizes(spec, batch)
    by_row, by_column = read
    return _Operation(
        kind=kernel_kind(spec, spec.kernel),
        sizes=np.array([1.0, macs * rows * columns, written * rows, by_row * rows + by_column * columns]),
    )


def _unit_sizes(spec: LayerSpec, batch: int) -> tuple[float, float, tuple[float, float]]:
    """Multiply-accumulates for each row and column; numbers written for each row; read for each of both."""
    rows, columns = rows_and_columns(spec)
    macs = batch * layer_cost(spec).macs / (rows * columns)
    written = batch * sum(prod(call.output_shape) for call in spec.calls) / rows
    read = batch * sum(prod(call.input_shape) for call in spec.calls)
    # Each output of a depthwise kernel reads an input of its own.
    return macs, written, (read / rows, 0.0) if _is_depthwise(spec) else (0.0, read / columns)


def _pair(
    spec: LayerSpec, form: Form, rank: int, rows: int, columns: int, batch: int
) -> tuple[_Operation, _Operation]:
    """Sizes of both factors; ``rank`` channels between them for each group, ``columns`` of all groups."""
    first, second = factor_costs(spec, form)
    taps, _ = factor_taps(spec, form)
    between = spec.groups * batch * first.macs / taps
    _, written, _ = _unit_sizes(spec, batch)
    _, n_inputs = pair_rows_and_columns(spec)
    read = batch * sum(prod(call.input_shape) for call in spec.calls) / n_inputs
    takes = FORM_ROWS[form].first_taps(len(spec.kernel))
    kernels = [
        tuple(size if taken is own else 1 for size, taken in zip(spec.kernel, takes, strict=True))
        for own in (True, False)
    ]
    return (
        _Operation(
            kind=kernel_kind(spec, kernels[0]),
            sizes=np.array(
                [1.0, batch * first.macs * rank * columns, between * rank, read * columns], dtype=np.float64
            ),
        ),
        _Operation(
            kind=kernel_kind(spec, kernels[1]),
            sizes=np.array(
                [1.0, batch * second.macs * rank * rows, written * rows, between * rank], dtype=np.float64
            ),
        ),
    )


def kernel_kind(spec: LayerSpec, kernel: Iterable[int]) -> str:
    """Operations that runtimes have one kernel for."""
    size = "x".join(map(str, kernel))
    grouped = " depthwise" if _is_depthwise(spec) else " grouped" if spec.groups > 1 else ""
    stride = " strided" if any(step > 1 for step in spec.stride) and size != "1x1" else ""
    return f"{spec.kind} {size}{grouped}{stride}"


def _is_depthwise(spec: LayerSpec) -> bool:
    return spec.groups > 1 and rows_and_columns(spec)[1] == 1


def _dense_time(spec: LayerSpec, rates: _Vector, batch: int) -> DenseTime:
    macs, written, (by_row, by_column) = _unit_sizes(spec, batch)
    fixed, per_mac, per_written, per_read = map(float, rates)
    return DenseTime(
        fixed=fixed,
        per_row=per_written * written + per_read * by_row,
        per_column=per_read * by_column,
        per_product=per_mac * macs,
    )


def _pair_time(
    spec: LayerSpec, form: Form, rates: tuple[_Vector, _Vector], rows: int, columns: int, batch: int
) -> PairTime:
    first, second = rates
    one, other = _pair(spec, form, 1, rows, columns, batch)
    return PairTime(
        fixed=float(first[0] + second[0]),
        per_rank=float(first[2] * one.sizes[2] + second[3] * other.sizes[3]),
        per_row=float(second[1] * other.sizes[1] / rows),
        per_column=float(first[1] * one.sizes[1] / columns),
        any_row=float(second[2] * other.sizes[2] / rows),
        any_column=float(first[3] * one.sizes[3] / columns),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Others:
    """Times of what belongs to no layer.

    Attributes:
        groups: by unit.
        blocks: of blocks.
        ragged: of groups with ragged widths.
        rows: by output of a layer whose outputs are products of groups: heads, and numbers in each.
    """

    groups: Mapping[str, float]
    blocks: Mapping[str, float]
    ragged: Mapping[str, float]
    rows: Mapping[str, float]


def _others(
    structure: Structure, profiles: Sequence[tuple[Step, Parts]], layers: Iterable[str], steps: Steps
) -> _Others:
    """A line for each place: a constant, and a share for each unit of its groups, none below 0.

    Where several groups make up the outputs of one layer, there is a share for each of these outputs as well.
    A constant outside of blocks is part of that of the network.
    """
    known, step = slimmable_groups(structure.channels), steps.rows
    outputs = groups_by_layer(structure)
    groups: dict[str, float] = {}
    ragged: dict[str, float] = {}
    rows: dict[str, float] = {}
    constants: dict[str, float] = {}
    for place in sorted({place for _, parts in profiles for place in parts.others}):
        shared = [name for name in layers if len(outputs.get(name, set()) & {*place.groups}) > 1][:1]
        sizes, times, is_ragged, is_whole = [], [], [], []
        for variant, parts in profiles:
            if place in parts.others and parts.others[place] > 0:
                counts = [len(variant.groups.get(name, range(known[name].units))) for name in place.groups]
                widths = [
                    group_edge(known[name], count, step)
                    for name, count in zip(place.groups, counts, strict=True)
                ]
                specs = [
                    slimmed_spec(structure.layers[name], structure.channels, variant.groups)
                    for name in shared
                ]
                sizes.append([1.0, *widths, *(float(timed_sizes(spec, steps)[0]) for spec in specs)])
                times.append(parts.others[place])
                is_ragged.append(
                    any(
                        known[name].unit_width * count % step
                        for name, count in zip(place.groups, counts, strict=True)
                    )
                )
                is_whole.append(all(name not in variant.groups for name in place.groups))
        if not times:
            continue
        matrix, taken, off = np.array(sizes), np.array(times), np.array(is_ragged)
        if len(place.groups) == 1 and not off.any() and _leaves_line(matrix, taken, np.array(is_whole)):
            off = np.array(is_whole)
        # Ragged widths take longer than any line says; without others there is no telling.
        used = ~off if (~off).any() else np.ones_like(off)
        constant, *slopes = nnls(matrix[used] / taken[used, None], np.ones(int(used.sum())))[0]
        for name, slope in zip(place.groups, slopes[: len(place.groups)], strict=True):
            groups[name] = groups.get(name, 0.0) + float(slope)
        for name, slope in zip(shared, slopes[len(place.groups) :], strict=True):
            rows[name] = rows.get(name, 0.0) + float(slope)
        constants[place.block] = constants.get(place.block, 0.0) + float(constant)
        if len(place.groups) == 1 and off.any():
            beyond = float(np.median(taken[off] - matrix[off] @ np.array([constant, *slopes])))
            ragged[place.groups[0]] = ragged.get(place.groups[0], 0.0) + max(0.0, beyond)
    names = structure.channels.blocks
    blocks = {
        name: sum(constants.get(other, 0.0) for other in names if is_inside(other, (name,))) for name in names
    }
    return _Others(groups=groups, blocks=blocks, ragged=ragged, rows=rows)


def _leaves_line(matrix: _Vector, taken: _Vector, is_whole: NDArray[np.bool_]) -> bool:
    """Whether a place takes far longer while its group is whole than its narrower widths say.

    Kernels of what is no layer have stairs of their own: int8 pooling on AVX2 is fast at 32 channels, and
    takes fifteen times as long at 48.

    Args:
        matrix: (V, 2): 1 and the width, of each variant.
        taken: (V,): times, above 0.
        is_whole: (V,).
    """
    narrower = ~is_whole
    if not is_whole.any() or narrower.sum() < _TELLING:
        return False
    line = nnls(matrix[narrower] / taken[narrower, None], np.ones(int(narrower.sum())))[0]
    return bool(np.median(taken[is_whole] / (matrix[is_whole] @ line)) > _FAR)
