# SPDX-License-Identifier: Apache-2.0
"""Figures for papers, by matplotlib, from the data that pages are drawn from."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from slimrank._errors import MissingPackageError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank.files import Json
from slimrank.report._words import METRIC_LABELS, name_text


class Plot(Protocol):
    """What slimrank needs of a ``matplotlib.figure.Figure``, which every figure here is."""

    @property
    def axes(self) -> Sequence[object]:
        """The pictures in it."""
        ...

    def savefig(self, fname: str | os.PathLike[str]) -> None:
        """Writes it to a file."""
        ...


# What can be drawn.
KINDS = ("damage", "costs")
# Inches: of one small picture, pictures beside each other, and the height of a bar.
_SMALL, _COLUMNS, _BAR = (2.4, 1.7), 4, 0.22
_Facts = Mapping[str, Json]
# Its name, and shares that stay with their damages: predicted, and measured.
_Curve = tuple[str, list[tuple[float, float]], list[tuple[float, float]]]


def draw_figure(data: _Facts, kind: str, names: Sequence[str] | None = None) -> Plot:
    """A figure of a study.

    Args:
        data: of the page of a study.
        kind: "damage" for damage over what stays, a small picture for each layer and group with dots where
            it was measured; "costs" for the MACs of each layer.
        names: of layers and groups; None for all.

    Returns:
        A matplotlib figure; save it by ``figure.savefig(path)``.

    Raises:
        UnknownNameError: no such kind, layer or group.
        OptionError: nothing to draw.
        MissingPackageError: matplotlib is not installed.
    """
    if kind not in KINDS:
        raise UnknownNameError(f"plot {kind!r}; {nearest(str(kind), KINDS)}")
    layers = cast("Sequence[_Facts]", data["layers"])
    groups = cast("Sequence[_Facts]", data["groups"])
    known = [str(row["name"]) for row in (*layers, *groups)]
    for name in names or ():
        if name not in known:
            raise UnknownNameError(f"plot: no layer or group {name!r}; {nearest(name, known)}")
    chosen = [row for row in layers if names is None or row["name"] in names]
    try:
        figures = import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingPackageError(
            "plot() needs matplotlib, which is not installed: pip install 'slimrank[plot]'"
        ) from error
    if kind == "costs":
        return _costs(figures.Figure, chosen)
    curves = [
        *_layer_curves(chosen),
        *_group_curves([g for g in groups if names is None or g["name"] in names]),
    ]
    if not curves:
        raise OptionError("plot 'damage': none of these layers and groups has a curve; give others in names=")
    return _damage(figures.Figure, curves, str(data["damage_unit"]))


def _layer_curves(rows: Sequence[_Facts]) -> list[tuple[str, list[_Curve]]]:
    """By layer: its curves."""
    found = []
    for row in rows:
        lines = []
        for curve in cast("Sequence[_Facts]", row["curves"]):
            points = _points(curve, "points")
            if points:
                lines.append((f"{curve['method']} {curve['form']}", points, _points(curve, "anchors")))
        if lines:
            found.append((name_text(str(row["name"])), lines))
    return found


def _group_curves(rows: Sequence[_Facts]) -> list[tuple[str, list[_Curve]]]:
    return [
        (f"{row['name']} (group)", [("channels", _points(row, "points"), _points(row, "anchors"))])
        for row in rows
        if _points(row, "points")
    ]


def _points(curve: _Facts, key: str) -> list[tuple[float, float]]:
    points = cast("Sequence[Sequence[float]]", curve[key])
    return [(keep, damage) for keep, damage, _ in points if damage > 0]


def _damage(
    make: Callable[..., Any],
    curves: Sequence[tuple[str, list[_Curve]]],
    unit: str,
) -> Plot:
    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = make(figsize=(_SMALL[0] * columns, _SMALL[1] * rows), layout="constrained")
    for index, (name, lines) in enumerate(curves):
        axes = figure.add_subplot(rows, columns, index + 1)
        for label, points, measured in lines:
            (line,) = axes.plot(*zip(*points, strict=True), linewidth=1, label=label)
            if measured:
                axes.plot(*zip(*measured, strict=True), "o", markersize=3, color=line.get_color())
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_title(name, fontsize=7)
        axes.tick_params(labelsize=6)
        axes.legend(fontsize=5, frameon=False)
    figure.supxlabel("share of the MACs, or of the units, that stays", fontsize=8)
    has_dots = any(measured for _, lines in curves for _, _, measured in lines)
    kinds = "lines predicted, dots measured" if has_dots else "predicted"
    figure.supylabel(f"damage ({unit}), {kinds}", fontsize=8)
    return cast("Plot", figure)


def _costs(make: Callable[..., Any], rows: Sequence[_Facts]) -> Plot:
    names = [name_text(str(row["name"])) for row in rows][::-1]
    costs = [float(cast("int", cast("_Facts", row["before"])["macs"])) for row in rows][::-1]
    figure = make(figsize=(6, 0.8 + _BAR * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    axes.barh(names, costs)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(METRIC_LABELS["macs"], fontsize=8)
    axes.margins(y=0.01)
    return cast("Plot", figure)
