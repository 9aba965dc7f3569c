# SPDX-License-Identifier: Apache-2.0
"""Which layers and groups a script means, and what becomes of them.

AIMET names the layers that read channels, slimrank the groups of layers that make and read them: the group
that a layer reads stands for its input channels.
"""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Literal

import numpy as np
from torch import nn

from slimrank._errors import OptionError
from slimrank._names import listed, nearest
from slimrank._result import Result
from slimrank._study import Study
from slimrank.plan import SettingLike
from slimrank.records import PRUNING, Curve, GroupSpec, LayerSpec, Method
from slimrank.scores import UNSCORED, Scores
from slimrank.select import HOW_TO_REACH

_Metric = Literal["macs", "params"]


def layers_of(study: Study, method: Method, ignored: Sequence[str]) -> tuple[str, ...]:
    """The layers that may be compressed, in execution order.

    Args:
        study: of the model.
        method: of the scheme.
        ignored: modules to leave alone, with all that is in them.

    Returns:
        Names; of channel pruning those of layers that read channels which can go.

    Raises:
        OptionError: none is left.
    """
    if method == PRUNING:
        readers = {name for group in _slimmable(study).values() for name in group.consumers}
        possible = [spec.name for spec in study.layers if spec.name in readers]
    else:
        possible = [spec.name for spec in study.layers if method in spec.methods]
    found = tuple(name for name in possible if not _is_inside(name, ignored))
    if not found:
        raise OptionError(
            f"modules_to_ignore leaves no layer to compress; {method} applies to {listed(possible)}"
            if possible
            else f"{method} applies to no layer of the model; choose another compress_scheme"
        )
    return found


def names_to_score(study: Study, method: Method, layers: Sequence[str]) -> tuple[str, ...]:
    """What a score table is measured of: layers, or groups all of whose readers may lose channels.

    Raises:
        OptionError: no group is left.
    """
    if method != PRUNING:
        return tuple(layers)
    names = tuple(name for name, group in _slimmable(study).items() if set(group.consumers) <= set(layers))
    if not names:
        raise OptionError(
            "modules_to_ignore leaves no channels to remove: each group of channels is read by a layer that "
            "is ignored; ignore fewer modules"
        )
    return names


def floor_in_aimets_words(text: str, study: Study, ignored: Collection[str]) -> str:
    """The message of a target out of reach, with AIMET's arguments in place of those of a plan.

    Args:
        text: the message of a plan.
        study: of the model.
        ignored: modules to leave alone, with all that is in them.
    """
    for name in study.structure.layers:
        reason = "in modules_to_ignore" if _is_inside(name, ignored) else "none of its channels may go"
        text = text.replace(f"{name!r} (left alone: {UNSCORED})", f"{name!r} (left alone: {reason})")
    return text.replace(
        HOW_TO_REACH,
        "Raise target_comp_ratio, or allow more: fewer modules in modules_to_ignore, a smaller multiplicity, "
        "another compress_scheme",
    )


def manual_settings(
    study: Study, method: Method, metric: _Metric, ratios: Mapping[str, float], multiple_of: int
) -> tuple[dict[str, SettingLike], list[str]]:
    """Ratios of layers as settings of a plan.

    Args:
        study: of the model.
        method: of the scheme.
        metric: that ratios are of; of channel pruning they are of input channels.
        ratios: by layer.
        multiple_of: of ranks.

    Returns:
        The settings, and what the user should know.

    Raises:
        OptionError: a layer to which the method does not apply.
    """
    for name in ratios:
        if name not in study.structure.layers:
            raise OptionError(
                f"module {name!r} is no layer that can be compressed; {nearest(name, study.structure.layers)}"
            )
    if method == PRUNING:
        return _widths(study, ratios)
    settings: dict[str, SettingLike] = {}
    notes: list[str] = []
    for name, ratio in ratios.items():
        spec = study.structure.layers[name]
        curves = [curve for curve in study.curves if curve.layer == name and curve.method == method]
        if not curves or method not in spec.methods:
            # Plan.manual knows why, and says so.
            settings[name] = (method, ratio)
        elif ratio < 1:
            curve, index = _largest_within(curves, spec, metric, ratio)
            smallest = _costs(curve, metric)[0] / _cost(spec, metric)
            if ratio < smallest:
                notes.append(f"{name}: ratio {ratio:g} is below {smallest:.4f}, that of rank 1, which it got")
            rank, top = int(curve.ranks[index]), int(curve.ranks[-1])
            rounded = ceil(rank / multiple_of) * multiple_of
            if rounded > top:
                rounded = top // multiple_of * multiple_of or rank
            settings[name] = (method, {"rank": rounded, "form": curve.form})
    return settings, notes


def _largest_within(
    curves: Sequence[Curve], spec: LayerSpec, metric: _Metric, ratio: float
) -> tuple[Curve, int]:
    """The form, and the index of the rank, that keep most within a ratio; the cheapest where none is."""
    limit = floor(Fraction(repr(ratio)) * _cost(spec, metric))
    last = [int(np.searchsorted(_costs(curve, metric), limit, side="right")) - 1 for curve in curves]
    within = [
        (float(curve.error[index]), number)
        for number, (curve, index) in enumerate(zip(curves, last, strict=True))
        if index >= 0
    ]
    if within:
        number = min(within)[1]
        return curves[number], last[number]
    return min(curves, key=lambda curve: int(_costs(curve, metric)[0])), 0


def _cost(spec: LayerSpec, metric: _Metric) -> int:
    return spec.macs if metric == "macs" else spec.params


def _costs(curve: Curve, metric: _Metric) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return curve.macs if metric == "macs" else curve.params


def _widths(study: Study, ratios: Mapping[str, float]) -> tuple[dict[str, SettingLike], list[str]]:
    """Shares of input channels as numbers of units of the groups that the layers read."""
    kept: dict[str, int] = {}
    asked: dict[str, list[str]] = {}
    for name, ratio in ratios.items():
        for group in _groups_read(study, name):
            count = max(1, floor(Fraction(repr(ratio)) * group.units))
            # A channel goes only where all that were named let it go, as in AIMET.
            kept[group.name] = max(kept.get(group.name, 0), count)
            asked.setdefault(group.name, []).append(name)
    notes = []
    groups = study.structure.channels.groups
    for group_name, names in asked.items():
        others = [name for name in groups[group_name].consumers if name not in names]
        if others and kept[group_name] < groups[group_name].units:
            notes.append(f"{listed(names)}: {listed(others)} reads the same channels and loses them, too")
    return {
        name: (PRUNING, {"keep": count}) for name, count in kept.items() if count < groups[name].units
    }, notes


def _groups_read(study: Study, name: str) -> list[GroupSpec]:
    """The groups that a layer reads and that can be slimmed."""
    found = [group for group in _slimmable(study).values() if name in group.consumers]
    if found:
        return found
    frozen = [group for group in study.structure.channels.groups.values() if name in group.consumers]
    reason = next((group.reason for group in frozen if group.reason), None)
    readers = dict.fromkeys(reader for group in _slimmable(study).values() for reader in group.consumers)
    raise OptionError(
        f"layer {name!r}: channel_pruning cannot take input channels from it: "
        f"{reason or 'no layer of the model makes them alone (those of the inputs stay)'}; leave its pair "
        f"out, or choose from {listed(readers)}"
    )


def _slimmable(study: Study) -> dict[str, GroupSpec]:
    """The groups that can lose units, by name."""
    offered = {curve.group for curve in study.group_curves if len(curve.kept)}
    return {name: group for name, group in study.structure.channels.groups.items() if name in offered}


def _is_inside(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def eval_scores(study: Study, scores: Scores, metric: _Metric) -> dict[str, dict[Decimal, float]]:
    """Scores by layer and ratio: of pairs the counted ratio of the metric, of groups the share that stays."""
    table: dict[str, dict[Decimal, float]] = {}
    for name, entries in scores.entries.items():
        spec = study.structure.layers[name]
        for entry in entries:
            ratio = entry.keep_ratio
            if metric == "params":
                curve = next(c for c in study.curves if c.layer == name and c.form == entry.form)
                index = int(np.searchsorted(curve.ranks, entry.rank))
                ratio = float(curve.params[index]) / spec.params
            table.setdefault(name, {})[_decimal(ratio)] = entry.score
    groups = study.structure.channels.groups
    readers = [name for group in scores.groups for name in groups[group].consumers]
    for group, entries in scores.groups.items():
        for name in groups[group].consumers:
            # A layer may read several groups, each with scores of its own.
            key = name if readers.count(name) == 1 else f"{name} ({group})"
            table[key] = {_decimal(entry.keep_ratio): entry.score for entry in entries}
    return table


def ratios_reached(
    study: Study,
    method: Method,
    metric: _Metric,
    layers: Sequence[str],
    result: Result,
    original: nn.Module,
) -> dict[str, Decimal | None]:
    """The ratio of each layer, counted on the result; None for a layer that was left as it was.

    Args:
        study: of the model.
        method: of the scheme.
        metric: that ratios are of; of channel pruning they are of input channels.
        layers: to tell of.
        result: what was built.
        original: the model before.

    Returns:
        Layer -> ratio, in the order of ``layers``.
    """
    if method == PRUNING:
        before = {name: _n_inputs(original, name) for name in layers}
        after = {name: _n_inputs(result.model, name) for name in layers}
    else:
        costs = {layer.name: layer for layer in result.layers if layer.setting is not None}
        before = {name: costs[name].before.metric(metric) if name in costs else 0 for name in layers}
        after = {name: costs[name].after.metric(metric) if name in costs else 0 for name in layers}
    return {
        name: None if before[name] == after[name] else _decimal(after[name] / before[name]) for name in layers
    }


def _n_inputs(model: nn.Module, name: str) -> int:
    """Input channels or features of a layer."""
    layer = model.get_submodule(name)
    found = getattr(layer, "in_channels", getattr(layer, "in_features", None))
    return int(found) if found is not None else int(next(layer.parameters()).shape[0])


def _decimal(ratio: float) -> Decimal:
    return Decimal(f"{ratio:.6f}")
