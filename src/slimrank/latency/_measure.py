# SPDX-License-Identifier: Apache-2.0
"""Measuring: variant after variant, each exported, profiled and timed in turns with the original."""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from torch import nn

from slimrank._errors import FileError, LatencyError, OptionError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import whole_number
from slimrank._progress import Phases
from slimrank.cost import FORMS
from slimrank.deploy import (
    FORMATS,
    PROFILES,
    Precision,
    TimedFile,
    compare_in_turns,
    machine_name,
    quantizer_for,
)
from slimrank.forward import Batch, take_samples
from slimrank.latencies import (
    Conditions,
    Latencies,
    LatencyRecord,
    Parts,
    VariantTime,
    differing_topics,
    read_latencies,
    tie_of,
    write_latencies,
)
from slimrank.latency._backends import BACKENDS, open_timed
from slimrank.latency._fit import Measured, fit_times
from slimrank.latency._fit_whole import fit_whole_times
from slimrank.latency._machine import package_versions
from slimrank.latency._parts import node_counts, parts_of, without_overhead
from slimrank.latency._step import find_steps
from slimrank.latency._variants import (
    build_variant,
    draw_variants,
    has_timed_form,
    shared_step,
    untouched,
    without_useful_rank,
)
from slimrank.plan import Step, Structure
from slimrank.records import Method, Note

PRECISIONS = ("float32", "int8")
# Variants that layers are fitted to, and those that drop blocks as well; of these, prediction is judged too.
_FITTED, _MIXED = 12, 2
# The same where only whole times tell of the runtime.
_WHOLE_FITTED, _WHOLE_MIXED = 16, 4
# Seconds that a variant and the original of its precision are run in turns; two originals take half of it.
SECONDS = 2.0
# Of the draw of variants and their weights.
SEED = 0
# Interquartile range over median of a ratio from which times are noise, and a table says so.
_NOISY = 0.1
# Samples that the norms of variants are settled on.
_SETTLED = 16
# Milliseconds of a run below which the microseconds of a profile are coarse.
_SHORT = 1.0
# Node times over whole times, by the profile, from which other work must have stretched them.
_DISTURBED = 1.15
# Of the errors at the variants: the share of them that the error which a table states covers.
_COVERED = 0.9


def check_conditions(
    *, backend: object, precision: object, threads: object, batch: object
) -> tuple[int, int]:
    """Refuses what cannot be measured, before all work.

    Returns:
        ``threads`` and ``batch``, as Python's own numbers.

    Raises:
        UnknownNameError: no such runtime or precision.
        OptionError: ``threads`` or ``batch`` is no positive number, or the runtime cannot be measured, in
            this precision or at all.
        MissingPackageError: the runtime is not installed.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise UnknownNameError(f"backend={backend!r}; {nearest(str(backend), BACKENDS)}")
    if precision not in PRECISIONS:
        raise UnknownNameError(f"precision={precision!r}; {nearest(str(precision), PRECISIONS)}")
    if precision == "int8" and not BACKENDS[backend].has_int8:
        offered = [name for name, row in BACKENDS.items() if row.has_int8]
        raise OptionError(
            f"precision='int8': int8 files of backend={backend!r} are not measured; give "
            f"{' or '.join(map(repr, offered))}, or precision='float32'"
        )
    n_threads, n_samples = (
        _from_one_on(name, value) for name, value in (("threads", threads), ("batch", batch))
    )
    BACKENDS[backend].check()
    quantize = quantize_of(precision)
    if quantize is not None:
        quantizer_for(BACKENDS[backend].format, quantize)
    return n_threads, n_samples


def _from_one_on(name: str, value: object) -> int:
    number = whole_number(value)
    if number is None or number < 1:
        raise OptionError(f"{name}={value!r}; give a whole number from 1 on")
    return number


def quantize_of(precision: object) -> Precision | None:
    """The precision of a table as exports name it: None for float32."""
    return "int8" if precision == "int8" else None


def measure_variants(
    model: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    structure: Structure,
    *,
    methods: Sequence[Method],
    has_bias: bool,
    backend: str,
    threads: int,
    batch: int,
    precision: str,
    path: str | os.PathLike[str] | None,
    phases: Phases,
) -> Latencies:
    """Measures a table.

    Args:
        model: the network; it is not changed.
        batches: gives real inputs, checked.
        structure: of the network.
        methods: that plans may use.
        has_bias: whether pairs have a bias even where the layer has none.
        backend: a name of ``BACKENDS``.
        threads: of the runtime.
        batch: samples in the batch.
        precision: "float32", or "int8": of the variants. Ratios are to the original in float32.
        path: of the table's file, written after every variant, and gone on with; None for none.
        phases: progress.

    Returns:
        The table.

    Raises:
        LatencyError: the file holds a table of something else, or the network takes another batch only.
        SlimrankError: for the export.
    """
    row, quantize = BACKENDS[backend], quantize_of(precision)
    here = _conditions_here(backend=backend, threads=threads, batch=batch, precision=precision)
    conditions = replace(here, fingerprint=tie_of(structure), methods=tuple(methods))
    record = None if path is None else _found(Path(path), conditions)
    clock_threads = row.clock_threads(threads)
    # Parts of another runtime say nothing of the noise of this one.
    profiles = 1 if row.parts_of else PROFILES
    variants_at = partial(drawn_variants, structure, methods, precision=precision, has_parts=not row.parts_of)
    n_variants = len(variants_at(shared_step(structure, methods)))
    if record is not None and len(record.variants) == n_variants:
        return finished_table(record, structure, methods, path)
    if record is not None and quantize is not None:
        # An earlier version did not measure how the original stands in that precision: these do not mix.
        known = takewhile(lambda variant: variant.standing_ratio is not None, record.variants)
        record = replace(record, variants=tuple(known))
    with tempfile.TemporaryDirectory(prefix="slimrank-latency-") as draft, torch.no_grad():
        folder = Path(draft)

        def written(network: nn.Module, name: str, quantize: Precision | None) -> TimedFile:
            return open_timed(
                backend,
                network,
                batches(),
                folder / name,
                batch=batch,
                threads=threads,
                quantize=quantize,
            )

        with phases.phase("latency", 1 + n_variants) as advance:
            original = written(model, "original", None)
            if original.batch != batch:
                raise LatencyError(
                    f"batch={batch}: a file of this network takes batches of {original.batch} only; give "
                    f"batch={original.batch}"
                )
            whole = original if quantize is None else written(model, "whole", quantize)
            if record is None:
                turns = compare_in_turns(whole.run, whole.run, threads=clock_threads, seconds=SECONDS / 2)
                record = LatencyRecord(
                    conditions=conditions,
                    steps=find_steps(
                        structure, folder / "step", backend=backend, threads=threads, quantize=quantize
                    ),
                    original=_parts(whole, untouched(structure), turns.after.milliseconds, profiles),
                )
            advance(1 + len(record.variants), "original")
            # Float kernels take as long for all values.
            sample = None if quantize is None else _few(next(iter(batches())))
            variants = variants_at(record.steps.rows)
            for number in range(len(record.variants), len(variants)):
                variant = variants[number]
                network = build_variant(model, variant, has_bias=has_bias, seed=SEED + number, sample=sample)
                file = written(network, f"variant{number}", quantize)
                time = _timed(original, whole, file, variant, clock_threads, profiles)
                record = replace(record, variants=(*record.variants, time))
                if path is not None:
                    write_latencies(path, record, None)
                advance(1, f"variant {number + 1}")
    return finished_table(record, structure, methods, path)


def drawn_variants(
    structure: Structure,
    methods: Sequence[Method],
    step: int,
    *,
    precision: str = "float32",
    has_parts: bool = True,
) -> tuple[Step, ...]:
    """The variants that a table is measured with.

    Args:
        structure: of the network.
        methods: that plans may use.
        step: that ranks and widths are multiples of.
        precision: of the variants.
        has_parts: whether the runtime tells the times of parts.

    Returns:
        In the order in which they are measured; in another precision than the original's first the network
        as it stands.
    """
    fitted, mixed = (_FITTED, _MIXED) if has_parts else (_WHOLE_FITTED, _WHOLE_MIXED)
    return (
        *(() if precision == "float32" else (untouched(structure),)),
        *draw_variants(structure, methods, count=fitted, step=step, seed=SEED),
        *draw_variants(structure, methods, count=mixed, step=step, seed=SEED + 1, mixed=True),
    )


def _timed(
    original: TimedFile, whole: TimedFile, file: TimedFile, variant: Step, threads: int, profiles: int
) -> VariantTime:
    """What a variant takes, in its parts and beside the original.

    In another precision it takes turns with the network as it stands in that precision, and this one with
    the original: where other work slows a machine, it slows the precisions unlike.
    """
    standing = None
    if whole is not original:
        standing = compare_in_turns(original.run, whole.run, threads=threads, seconds=SECONDS / 2)
    compared = compare_in_turns(whole.run, file.run, threads=threads, seconds=SECONDS)
    parts = _parts(file, variant, compared.after.milliseconds, profiles)
    before = compared.before if standing is None else standing.before
    return VariantTime(
        settings=variant.settings,
        kept={name: len(units) for name, units in variant.groups.items()},
        dropped=variant.dropped,
        parts=parts,
        before_ms=before.milliseconds,
        before_spread=before.spread,
        ratio=compared.ratio if standing is None else compared.ratio * standing.ratio,
        spread=compared.spread,
        standing_ratio=None if standing is None else standing.ratio,
    )


def _standing_ratios(variants: Sequence[VariantTime]) -> list[float]:
    return [variant.standing_ratio for variant in variants if variant.standing_ratio is not None]


def _standing_spread(variants: Sequence[VariantTime]) -> float:
    """Interquartile range of ``standing_ratio`` over its median; 0 where there are none."""
    ratios = _standing_ratios(variants)
    if len(ratios) < 2:
        return 0.0
    first, middle, third = quantiles(ratios, n=4)
    return (third - first) / middle


def _ratios(variants: Sequence[VariantTime]) -> list[float]:
    """Whole times of variants over that of the original, as if the machine had been in one state for all."""
    standing = _standing_ratios(variants)
    usual = median(standing) if standing else 1.0
    return [
        variant.ratio if variant.standing_ratio is None else variant.ratio * usual / variant.standing_ratio
        for variant in variants
    ]


def _few(batch: Batch) -> Batch:
    """The first samples of a batch."""
    return batch if batch.is_whole else take_samples(batch, range(min(_SETTLED, batch.n_samples)))


def _parts(file: TimedFile, variant: Step, whole_ms: float, profiles: int) -> Parts:
    """Times of the parts of a file of which a whole run takes so long, from so many profiles at most.

    A single profile is that of another runtime, of which the whole time says nothing.
    """
    whole = 1e6 * whole_ms
    nodes = file.nodes()
    parts, counts = parts_of(nodes, variant), node_counts(nodes, variant)
    for _ in range(profiles - 1):
        if parts.total <= whole:
            break
        nodes = file.nodes()
        parts = parts.least(parts_of(nodes, variant))
        counts = counts.least(node_counts(nodes, variant))
    return parts if profiles == 1 else without_overhead(parts, counts, whole)


def check_kept(path: Path, *, backend: str, threads: int, batch: int, precision: str) -> None:
    """Refuses the file of a table that cannot be gone on with, as far as that is known without the network.

    Raises:
        LatencyError: it was measured under other conditions.
        FileError: it cannot be read, or is no file.
    """
    if path.exists():
        there = read_latencies(path)[0].conditions
        here = _conditions_here(backend=backend, threads=threads, batch=batch, precision=precision)
        _found(path, replace(here, fingerprint=there.fingerprint, methods=there.methods))


def _conditions_here(*, backend: str, threads: int, batch: int, precision: str) -> Conditions:
    """What is known without a network."""
    row, quantize = BACKENDS[backend], quantize_of(precision)
    packages = row.packages
    if quantize is not None:
        packages = (*packages, *FORMATS[row.format].precisions[quantize].packages)
    return Conditions(
        backend=backend,
        threads=threads,
        batch=batch,
        precision=precision,
        machine=row.machine(machine_name()),
        versions=package_versions(packages),
        fingerprint={},
        methods=(),
    )


def _found(path: Path, conditions: Conditions) -> LatencyRecord | None:
    """What the file of a table holds, which must have been measured under the same conditions."""
    if not path.is_file():
        if path.exists() or not path.parent.is_dir():
            # Found out here, not after the first variant, which takes long.
            raise FileError(f"latency table {path}: cannot be written; give a file in an existing folder")
        return None
    record, _ = read_latencies(path)
    there = record.conditions
    differing = differing_topics(there.fingerprint, conditions.fingerprint)
    for known in fields(Conditions):
        if known.name not in ("fingerprint", "versions"):
            old, new = getattr(there, known.name), getattr(conditions, known.name)
            if old != new:
                differing.append(f"{known.name} ({old!r} there, {new!r} here)")
    for name in sorted({*there.versions, *conditions.versions}):
        old, new = there.versions.get(name), conditions.versions.get(name)
        if old != new:
            differing.append(f"version of {name} ({old} there, {new} here)")
    if differing:
        raise LatencyError(
            f"latency table {path}: it was measured with other {', '.join(differing)}; give another path, or "
            "delete the file"
        )
    return record


def finished_table(
    record: LatencyRecord,
    structure: Structure,
    methods: Sequence[Method],
    path: str | os.PathLike[str] | None,
) -> Latencies:
    """The table that was measured, with its formulas; written.

    Args:
        record: all that was measured.
        structure: of the network.
        methods: that plans may use.
        path: of the table's file; None for none.

    Returns:
        The table.

    Raises:
        FileError: the file cannot be written.
    """
    before_ms = median(variant.before_ms for variant in record.variants)
    measured = [
        Measured(variant=variant.step(structure), parts=variant.parts, ratio=ratio, spread=variant.spread)
        for variant, ratio in zip(record.variants, _ratios(record.variants), strict=True)
    ]
    reference = whole = 1e6 * before_ms
    changed = measured
    if record.conditions.precision != "float32":
        # The first variant is the network as it stands.
        whole *= measured[0].ratio
        changed = measured[1:]
    borrowed = BACKENDS[record.conditions.backend].parts_of
    fit = (fit_whole_times if borrowed else fit_times)(
        structure,
        methods,
        changed,
        original=record.original,
        before=whole,
        reference=reference,
        batch=record.conditions.batch,
        steps=record.steps,
    )
    times, errors = fit.times, fit.errors
    spread = median(variant.before_spread for variant in record.variants)
    noise = median(variant.spread for variant in record.variants)
    error = float(np.quantile(errors, _COVERED)) + (noise / 2 if noise > _NOISY else 0.0)
    notes = []
    untimed = [method for method in methods if method in FORMS and not has_timed_form(method)]
    if untimed:
        text = f"{listed(untimed)}: three factors are not timed, so plans with a latency do without"
        notes.append(Note(where="latency", text=text))
    if borrowed:
        text = (
            f"{record.conditions.backend} tells whole times only: formulas of layers are those of "
            f"{borrowed!r}, scaled to {1 + len(measured)} whole times, and so are shares of layers"
        )
        notes.append(Note(where="latency", text=text))
    too_fine = without_useful_rank(structure, methods, record.steps.rows)
    if too_fine:
        text = (
            f"ranks count in steps of {record.steps.rows}, and one group of these grouped convolutions has "
            f"no such rank that saves MACs; they stay in one piece: {listed(too_fine, 4)}"
        )
        notes.append(Note(where="latency", text=text))
    if whole < 1e6 * _SHORT and not borrowed:
        text = (
            f"a run takes {whole / 1e6:.3f} ms, and profiles of runtimes count in microseconds, so shares of "
            "single layers are rough; give a larger batch="
        )
        notes.append(Note(where="latency", text=text))
    excess = median(entry.parts.total / (1e6 * before_ms * entry.ratio) for entry in record.variants)
    if excess > _DISTURBED and whole >= 1e6 * _SHORT and not borrowed:
        # The variants that formulas are fitted to cannot tell what such noise does to others.
        error *= 2
        text = (
            f"nodes of the profiles add up to {excess:.0%} of whole times: the machine did other work, and "
            f"predicted times may be off by {error:.0%}; measure again when it is quiet"
        )
        notes.append(Note(where="latency", text=text, is_warning=True))
    if noise > _NOISY:
        text = (
            f"ratios of whole times spread by {noise:.0%}: the machine did other work, and predicted times "
            f"may be off by {error:.0%}; measure again when it is quiet"
        )
        notes.append(Note(where="latency", text=text, is_warning=True))
    # What the state of the machine does to a ratio between two precisions, the variants do not show.
    standing = _standing_spread(record.variants)
    error += standing / 2
    if standing > _NOISY:
        text = (
            f"the ratio of the original in {record.conditions.precision} to that in float32 moved by "
            f"{standing:.0%} meanwhile: other work slows the two unlike, and predicted ratios may be off by "
            f"{error:.0%}; measure again when it is quiet"
        )
        notes.append(Note(where="latency", text=text, is_warning=True))
    table = Latencies(
        before_ms=before_ms, spread=spread, error=error, times=times, notes=tuple(notes), _record=record
    )
    if path is not None:
        table.save(path)
    return table
