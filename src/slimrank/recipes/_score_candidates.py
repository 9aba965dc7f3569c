# SPDX-License-Identifier: Apache-2.0
"""What is tried for a table of scores: which layers and groups, at which ranks and numbers of units."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from numbers import Real

import numpy as np

from slimrank._errors import OptionError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._study import Study
from slimrank.cost import FORMS
from slimrank.records import PRUNING, Curve, Form, GroupCurve, LayerSpec, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What shall be tried of one layer."""

    method: Method
    form: Form
    rank: int
    keep_ratio: float


def methods_to_try(study: Study, methods: Sequence[Method] | None) -> tuple[Method, ...]:
    if methods is None:
        return study.methods
    if isinstance(methods, str) or not methods:
        raise OptionError(
            f"methods={methods!r} names no method; give a tuple such as ({study.methods[0]!r},)"
        )
    for method in methods:
        if method not in study.methods:
            raise UnknownNameError(
                f"method {method!r} was not measured by the study; {nearest(str(method), study.methods)}"
            )
    return tuple(method for method in study.methods if method in methods)


def ratios_to_try(candidates: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(candidates, int) and not isinstance(candidates, bool):
        if candidates < 2:
            raise OptionError(
                f"candidates={candidates}; give a whole number of at least 2, or a list of ratios"
            )
        return tuple(k / candidates for k in range(1, candidates))
    if not isinstance(candidates, Sequence) or isinstance(candidates, str) or not candidates:
        raise OptionError(
            f"candidates={candidates!r}; give a whole number such as 10, or ratios such as (0.25, 0.5)"
        )
    for ratio in candidates:
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 < float(ratio) < 1:
            raise OptionError(f"candidates: {ratio!r} is no share of a layer; give ratios in (0, 1)")
    return tuple(sorted({float(ratio) for ratio in candidates}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Something that may be tried: a layer, or a group.

    Attributes:
        name: of it.
        called: the names by which people may mean it.
        reason: why it cannot be tried; None where it can.
    """

    name: str
    called: tuple[str, ...]
    reason: str | None


def names_to_try(
    study: Study, methods: Sequence[Method], layers: Sequence[str] | None
) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the layers and of the groups to try."""
    tables = [_layers_to_try(study.layers, methods), _groups_to_try(study, methods)]
    if layers is None:
        patterns: tuple[str, ...] = ("*",)
    else:
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        _check_patterns(layers, patterns, [one for table in tables for one in table])
    found = [
        frozenset(
            one.name for one in table if one.reason is None and any(_is_meant(one, p) for p in patterns)
        )
        for table in tables
    ]
    return found[0], found[1]


def _layers_to_try(specs: Sequence[LayerSpec], methods: Sequence[Method]) -> list[_Target]:
    factored = [method for method in methods if method in FORMS]
    return [
        _Target(
            name=spec.name,
            called=(spec.name,),
            reason=None
            if set(spec.methods) & set(factored)
            else spec.reason or f"{listed(methods)} does not apply to it",
        )
        for spec in specs
    ]


def _groups_to_try(study: Study, methods: Sequence[Method]) -> list[_Target]:
    if PRUNING not in methods:
        return []
    offered = {curve.group for curve in study.group_curves if len(curve.kept)}
    return [
        _Target(
            name=group.name,
            called=(group.name, *group.producers),
            reason=None if group.name in offered else group.reason or "no channel of it can go",
        )
        for group in study.structure.channels.groups.values()
    ]


def _is_meant(one: _Target, pattern: str) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in one.called)


def _check_patterns(asked: Sequence[str], patterns: Sequence[str], targets: Sequence[_Target]) -> None:
    """Refuses what means nothing, or nothing that can be tried."""
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptionError(f"layers={asked!r}; give names or globs of layers, or None for all")
    for pattern in patterns:
        found = [one for one in targets if _is_meant(one, pattern)]
        if not found:
            names = dict.fromkeys(name for one in targets for name in one.called)
            raise UnknownNameError(f"layers: {pattern!r} matches no layer; {nearest(pattern, names)}")
        if all(one.reason is not None for one in found):
            raise OptionError(
                f"layers: {pattern!r} matches {found[0].name!r}, which cannot be compressed: "
                f"{found[0].reason}"
            )


def counts_to_try(curve: GroupCurve, ratios: Sequence[float]) -> list[int]:
    """Numbers of units to try of one group, ascending: the largest offered within each candidate.

    Where none is within a candidate, the smallest there is.
    """
    # Through its decimal digits, so that 0.7 means seven tenths.
    limits = [floor(Fraction(repr(ratio)) * len(curve.order)) for ratio in ratios]
    places = np.maximum(np.searchsorted(curve.kept, limits, side="right") - 1, 0)
    return [int(curve.kept[place]) for place in np.unique(places)]


def candidates_of(
    spec: LayerSpec, curves: Sequence[Curve], methods: Sequence[Method], ratios: Sequence[float]
) -> list[Candidate]:
    """What to try of one layer: per method and candidate the largest rank within it, cheapest first.

    Of several forms the one with the lowest error is taken, as for anchors; where no rank is within a
    candidate, the cheapest pair there is.
    """
    points: dict[tuple[Form, int], Candidate] = {}
    for method in methods:
        own = [curve for curve in curves if curve.layer == spec.name and curve.method == method]
        for ratio in ratios if own and spec.macs else ():
            offers = []
            for curve in own:
                # Through its decimal digits, so that 0.7 means seven tenths.
                limit = floor(Fraction(repr(ratio)) * spec.macs)
                place = int(np.searchsorted(curve.macs, limit, side="right")) - 1
                offers.append((curve, place))
            within = [
                (float(curve.error[place]), at) for at, (curve, place) in enumerate(offers) if place >= 0
            ]
            cheapest = min((int(curve.macs[0]), float(curve.error[0]), at) for at, curve in enumerate(own))
            at = min(within)[1] if within else cheapest[-1]
            curve, place = own[at], max(offers[at][1], 0)
            rank = int(curve.ranks[place])
            points[curve.form, rank] = Candidate(
                method=method, form=curve.form, rank=rank, keep_ratio=float(curve.macs[place] / spec.macs)
            )
    return list(points.values())
