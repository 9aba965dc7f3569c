# SPDX-License-Identifier: Apache-2.0
"""What listeners hear of curves: a few points of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slimrank._progress import Phases
from slimrank.records import PRUNING, Curve, GroupCurve, LayerSpec

# Shares at which points are told: whole curves are in the study, and a line of the journal for every rank
# would be more than all the rest.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def tell_curves(phases: Phases, spec: LayerSpec, curves: Sequence[Curve]) -> None:
    """Tells what a layer loses in each form, where a few shares of its MACs are left.

    Args:
        phases: whose listeners are told.
        spec: the layer.
        curves: of the layer.
    """
    for curve in curves:
        ratios = curve.macs / max(spec.macs, 1)
        for index in _points(ratios):
            phases.emit(
                "damage",
                layer=spec.name,
                method=curve.method,
                form=curve.form,
                rank=int(curve.ranks[index]),
                keep_ratio=round(float(ratios[index]), 6),
                damage=float(curve.damage[index]),
            )


def tell_group(phases: Phases, curve: GroupCurve, units: int) -> None:
    """Tells what a group loses where a few shares of its units are left.

    Args:
        phases: whose listeners are told.
        curve: of the group.
        units: of the whole group.
    """
    ratios = curve.kept / units
    for index in _points(ratios):
        phases.emit(
            "damage",
            layer=curve.group,
            method=PRUNING,
            form=None,
            rank=int(curve.kept[index]),
            keep_ratio=round(float(ratios[index]), 6),
            damage=float(curve.damage[index]),
        )


def _points(ratios: NDArray[np.float64]) -> list[int]:
    """Index of the largest ratio within each share, ascending, each once."""
    found = {int(np.searchsorted(ratios, share, side="right")) - 1 for share in _SHARES}
    return sorted(index for index in found if index >= 0)
