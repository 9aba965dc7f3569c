# SPDX-License-Identifier: Apache-2.0
"""What is tried for a table of scores: which layers and groups, at which ranks and numbers of units."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor

import numpy as np

from slimrank._errors import OptionError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import real_number, whole_number
from slimrank._study import Study
from slimrank.cost import FORMS
from slimrank.records import PRUNING, Curve, Form, GroupCurve, LayerSpec, Method, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What to try in the place of one layer."""

    setting: Setting
    keep_ratio: float

    @property
    def key(self) -> tuple[Form, int, int | None]:
        """As that of the entry in a table."""
        return self.setting.form, self.setting.rank, self.setting.rank_in


def methods_to_try(study: Study, methods: Sequence[Method] | None) -> tuple[Method, ...]:
    """Methods of the study that are to be tried, in its order.

    Raises:
        OptionError: no method is named.
        UnknownNameError: a method that the study did not measure.
    """
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
    """Keep ratios to try, ascending.

    Raises:
        OptionError: too small a number, or a ratio outside (0, 1).
    """
    count = whole_number(candidates)
    if count is not None:
        if count < 2:
            raise OptionError(
                f"candidates={candidates}; give a whole number of at least 2, or a list of ratios"
            )
        return tuple(k / count for k in range(1, count))
    if not isinstance(candidates, Sequence) or isinstance(candidates, str) or not candidates:
        raise OptionError(
            f"candidates={candidates!r}; give a whole number such as 10, or ratios such as (0.25, 0.5)"
        )
    found = set()
    for ratio in candidates:
        number = real_number(ratio)
        if number is None or not 0 < number < 1:
            raise OptionError(f"candidates: {ratio!r} is no share of a layer; give ratios in (0, 1)")
        found.add(number)
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerOrGroup:
    """Something that may be tried.

    Attributes:
        name: of it.
        names: those by which people may mean it: of a group, its layers as well.
        reason: why it cannot be tried; None where it can.
    """

    name: str
    names: tuple[str, ...]
    reason: str | None


def names_to_try(
    study: Study, methods: Sequence[Method], layers: Sequence[str] | None
) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the layers and of the groups to try.

    Args:
        study: of the model.
        methods: to try.
        layers: names or globs, as the caller gave them; None for all.

    Raises:
        OptionError: a pattern that means nothing that can be compressed.
        UnknownNameError: a pattern that matches nothing.
    """
    tables = [_layers_to_try(study.layers, methods), _groups_to_try(study, methods)]
    if layers is None:
        patterns: tuple[str, ...] = ("*",)
    else:
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        _check_patterns(layers, patterns, [item for table in tables for item in table])
    layer_names, group_names = (
        frozenset(
            item.name
            for item in table
            if item.reason is None and any(_is_meant(item, pattern) for pattern in patterns)
        )
        for table in tables
    )
    return layer_names, group_names


def _layers_to_try(specs: Sequence[LayerSpec], methods: Sequence[Method]) -> list[_LayerOrGroup]:
    factored = [method for method in methods if method in FORMS]
    return [
        _LayerOrGroup(
            name=spec.name,
            names=(spec.name,),
            reason=None
            if set(spec.methods) & set(factored)
            else spec.reason or f"{listed(methods)} does not apply to it",
        )
        for spec in specs
    ]


def _groups_to_try(study: Study, methods: Sequence[Method]) -> list[_LayerOrGroup]:
    if PRUNING not in methods:
        return []
    offered = {curve.group for curve in study.group_curves if len(curve.kept)}
    return [
        _LayerOrGroup(
            name=group.name,
            names=(group.name, *group.producers),
            reason=None if group.name in offered else group.reason or "no channel of it can go",
        )
        for group in study.structure.channels.groups.values()
    ]


def _is_meant(item: _LayerOrGroup, pattern: str) -> bool:
    """Whether a name or glob means a layer or group."""
    return any(pattern == name or fnmatchcase(name, pattern) for name in item.names)


def _check_patterns(asked: Sequence[str], patterns: Sequence[str], items: Sequence[_LayerOrGroup]) -> None:
    """Refuses what means nothing, or nothing that can be tried."""
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptionError(f"layers={asked!r}; give names or globs of layers, or None for all")
    for pattern in patterns:
        meant = [item for item in items if _is_meant(item, pattern)]
        if not meant:
            names = dict.fromkeys(name for item in items for name in item.names)
            raise UnknownNameError(f"layers: {pattern!r} matches no layer; {nearest(pattern, names)}")
        if all(item.reason is not None for item in meant):
            raise OptionError(
                f"layers: {pattern!r} matches {meant[0].name!r}, which cannot be compressed: "
                f"{meant[0].reason}"
            )


def counts_to_try(curve: GroupCurve, ratios: Sequence[float]) -> list[int]:
    """Numbers of units to try of one group, ascending: the largest offered within each candidate.

    Where none is within a candidate, the smallest there is.
    """
    limits = [_share_of(len(curve.order), ratio) for ratio in ratios]
    indices = np.maximum(np.searchsorted(curve.kept, limits, side="right") - 1, 0)
    return [int(curve.kept[index]) for index in np.unique(indices)]


def _share_of(total: int, ratio: float) -> int:
    """A share of a number, rounded down; the ratio is read by its decimal digits: 0.7 is seven tenths."""
    return floor(Fraction(repr(ratio)) * total)


def candidates_of(
    spec: LayerSpec, curves: Sequence[Curve], methods: Sequence[Method], ratios: Sequence[float]
) -> list[Candidate]:
    """What to try of one layer: per method and candidate the largest rank within it, cheapest first.

    Of several forms the one with the lowest error is taken, as for anchors; where no rank is within a
    candidate, the cheapest pair there is.
    """
    candidates: dict[Setting, Candidate] = {}
    for method in methods:
        forms = [curve for curve in curves if curve.layer == spec.name and curve.method == method]
        for ratio in ratios if forms and spec.macs else ():
            limit = _share_of(spec.macs, ratio)
            # Of each form, the index of its largest rank within the ratio; -1 where none is.
            last = [int(np.searchsorted(curve.macs, limit, side="right")) - 1 for curve in forms]
            within = [
                (float(curve.error[index]), number)
                for number, (curve, index) in enumerate(zip(forms, last, strict=True))
                if index >= 0
            ]
            cheapest = min(
                (int(curve.macs[0]), float(curve.error[0]), number) for number, curve in enumerate(forms)
            )
            number = min(within)[1] if within else cheapest[-1]
            curve, index = forms[number], max(last[number], 0)
            setting = curve.setting(int(curve.ranks[index]))
            candidates[setting] = Candidate(setting=setting, keep_ratio=float(curve.macs[index] / spec.macs))
    return list(candidates.values())
