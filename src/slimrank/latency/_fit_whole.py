# SPDX-License-Identifier: Apache-2.0
"""Formulas for a runtime that tells whole times only: those of another runtime, scaled part by part.

Each layer in one piece, each form of its pairs, and all that is no layer has a scale of its own. There are
more of them than whole times. So scales are drawn to that of their kind, and those of kinds to each other, as
far as variants that are left out are predicted best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from slimrank.cost import slimmed_spec, timed_pair_sizes, timed_sizes
from slimrank.latencies import Parts
from slimrank.latency._fit import Fit, Measured, faster_pairs, kernel_kind, part_formulas, with_rows
from slimrank.latency._predict import changing_time
from slimrank.latency._variants import untouched
from slimrank.plan import Step, Structure, is_inside
from slimrank.records import Form, LayerTimes, Method, NetworkTimes, Steps

_Vector = NDArray[np.float64]
# A layer and the form of its pair, "" for the layer in one piece; ("", "") for all that is no layer.
_Key = tuple[str, str]
_ELSE: _Key = ("", "")
# Relative error of a whole time.
_ERROR = 0.01
# By which share scales of kinds differ from each other, and those of parts within their kind: what is tried.
_SPREADS = ((0.15, 0.05), (0.3, 0.1), (0.6, 0.2), (1.0, 0.5))
# What is no layer is often fused, and then takes no time.
_ELSE_SPREAD = 1.0


def fit_whole_times(
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
    """The formulas that fit whole times.

    Args:
        structure: of the network.
        methods: that plans may use.
        measured: the variants, whole times of the runtime and times of parts in another one.
        original: parts of the network as it stands, in the other one.
        before: whole time of the network as it stands, ns.
        reference: whole time of the original that ratios are to, ns.
        batch: samples of the batch.
        steps: of ranks and widths, and of what layers read.

    Returns:
        The formulas; the error of each variant is that of formulas fitted to all others.
    """
    profiles = [
        (untouched(structure), original),
        *((entry.variant, entry.parts) for entry in measured),
    ]
    raw, rows = part_formulas(
        structure, methods, profiles, before=before, reference=reference, batch=batch, steps=steps
    )
    kinds = _kinds(structure, raw)
    terms = np.array([_terms(structure, raw, rows, variant, kinds) for variant, _ in profiles])
    wholes = np.array([before, *(reference * entry.ratio for entry in measured)])
    problem = _Problem.of(terms, wholes, tuple(kinds.values()))
    tried = [(problem.left_out(spreads), spreads) for spreads in _SPREADS]
    errors, spreads = min(tried, key=lambda entry: float(np.square(entry[0]).mean()))
    fixed, scales = problem.solved(spreads)
    scale_of = dict(zip(kinds, map(float, scales), strict=True))
    scaled = replace(_scaled(raw, scale_of), fixed=fixed, before=float(fixed + terms[0] @ scales))
    beside = {name: scale_of[_ELSE] * time for name, time in rows.items()}
    times = with_rows(faster_pairs(structure, scaled), beside)
    return Fit(times=times, errors=tuple(map(float, abs(errors[1:]))))


def _kinds(structure: Structure, raw: NetworkTimes) -> dict[_Key, str]:
    """The kind of each part."""
    kinds: dict[_Key, str] = {_ELSE: ""}
    for name, layer in raw.layers.items():
        spec = structure.layers[name]
        kind = kernel_kind(spec, spec.kernel)
        kinds |= {(name, form): f"{kind} {form}" for form in ("", *layer.pairs)}
    return kinds


def _terms(
    structure: Structure,
    raw: NetworkTimes,
    rows: Mapping[str, float],
    variant: Step,
    kinds: Mapping[_Key, str],
) -> list[float]:
    """What each part takes in a variant by unscaled formulas, ns; ``rows`` belong to what is no layer."""
    found = dict.fromkeys(kinds, 0.0)
    for name, layer in raw.layers.items():
        if is_inside(name, variant.dropped):
            continue
        spec = slimmed_spec(structure.layers[name], structure.channels, variant.groups)
        setting = variant.settings.get(name)
        pair = None if setting is None else layer.pairs.get(setting.form)
        if setting is None or pair is None:
            found[name, ""] = float(layer.dense.time(*timed_sizes(spec, raw.steps)))
        else:
            sizes = timed_pair_sizes(spec, raw.steps)
            found[name, setting.form] = float(pair.time(raw.edge(setting.rank), *sizes))
    found[_ELSE] = max(0.0, changing_time(with_rows(raw, rows), variant) - sum(found.values()))
    return list(found.values())


def _scaled(raw: NetworkTimes, scales: Mapping[_Key, float]) -> NetworkTimes:
    """Formulas of which each part is scaled."""

    def layer_of(name: str, layer: LayerTimes) -> LayerTimes:
        def scale(form: Form) -> float:
            return float(scales[name, form])

        return LayerTimes(
            dense=layer.dense.scaled(float(scales[name, ""])),
            pairs={form: pair.scaled(scale(form)) for form, pair in layer.pairs.items()},
        )

    def other(times: Mapping[str, float]) -> dict[str, float]:
        return {name: float(scales[_ELSE]) * time for name, time in times.items()}

    return replace(
        raw,
        layers={name: layer_of(name, layer) for name, layer in raw.layers.items()},
        groups=other(raw.groups),
        ragged=other(raw.ragged),
        blocks=other(raw.blocks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """Whole times as sums of scaled parts.

    Attributes:
        terms: (V, K) unscaled times of parts, as shares of the whole time of their variant.
        kinds: (K,) kind of each part, as an index; 0 for what is no layer.
        usual: a scale of them all.
    """

    terms: _Vector
    constants: _Vector
    kinds: NDArray[np.int64]
    usual: float

    @classmethod
    def of(cls, terms: _Vector, wholes: _Vector, kinds: Sequence[str]) -> "_Problem":
        """The problem of some variants.

        Args:
            terms: (V, K) unscaled times of parts, ns.
            wholes: (V,) whole times, ns.
            kinds: (K,) of the parts, "" for what is no layer.
        """
        names = list(dict.fromkeys(kinds))
        return cls(
            terms=terms / wholes[:, None],
            constants=1 / wholes,
            kinds=np.array([names.index(kind) for kind in kinds]),
            usual=float(np.median(wholes / terms.sum(1))),
        )

    def solved(self, spreads: tuple[float, float], without: int | None = None) -> tuple[float, _Vector]:
        """The constant, ns, and (K,) scales, none below 0.

        Args:
            spreads: of scales between kinds, and within them.
            without: a variant that is left out.
        """
        between, within = spreads
        n_parts, n_kinds = self.terms.shape[1], int(self.kinds.max()) + 1
        # Unknown: the constant, as a share of the first whole time; a common scale; those of kinds; of parts.
        used = [number for number in range(len(self.terms)) if number != without]
        data = np.zeros((len(used), 2 + n_kinds + n_parts))
        data[:, 0] = self.constants[used] / self.constants[0]
        data[:, 2 + n_kinds :] = self.usual * self.terms[used]
        of_kinds = np.zeros((n_kinds, data.shape[1]))
        of_kinds[:, 1] = -1.0
        of_kinds[:, 2 : 2 + n_kinds] = np.eye(n_kinds)
        of_kinds /= np.where(np.arange(n_kinds) == 0, _ELSE_SPREAD, between)[:, None]
        of_parts = np.zeros((n_parts, data.shape[1]))
        of_parts[np.arange(n_parts), 2 + self.kinds] = -1.0
        of_parts[:, 2 + n_kinds :] = np.eye(n_parts)
        matrix = np.vstack([data / _ERROR, of_kinds, of_parts / within])
        wanted = np.concatenate([np.full(len(used), 1 / _ERROR), np.zeros(n_kinds + n_parts)])
        found = nnls(matrix, wanted, maxiter=20 * matrix.shape[1])[0]
        return float(found[0] / self.constants[0]), self.usual * np.asarray(found[2 + n_kinds :])

    def left_out(self, spreads: tuple[float, float]) -> _Vector:
        """(V,) relative error for each variant, predicted by all others."""
        errors = []
        for number, (terms, constant) in enumerate(zip(self.terms, self.constants, strict=True)):
            fixed, scales = self.solved(spreads, without=number)
            errors.append(fixed * constant + terms @ scales - 1)
        return np.array(errors)
