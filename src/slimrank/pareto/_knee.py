# SPDX-License-Identifier: Apache-2.0
"""Where damage begins to rise fast."""

from collections.abc import Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from slimrank._isotonic import never_falling

# An infinite damage counts as so many times the largest finite one.
_ABOVE_FINITE = 10.0
# Distances from the chord, 0 to 1, that count as equal: differences below are rounding.
_SAME_DISTANCE = 1e-9


def knee_index(costs: Sequence[float], damages: Sequence[float], *, is_log: bool) -> int:
    """The point below whose cost damage rises fastest.

    Damages are first made to fall with the cost (isotonic regression), which evens out noise of
    measurements. Then, where they are divergences, they are taken as ``log(1 + damage / median)``: steps are
    compared by what they multiply, and damages far below the median count as none. Where both axes run from
    0 to 1, the knee is the point farthest below the chord from the cheapest point to the dearest one.

    Args:
        costs: ascending; at least one.
        damages: of the same points; infinite where a model gives no finite outputs.
        is_log: damages span powers of ten, as divergences do; else they are compared by their differences,
            as losses of a score are.

    Returns:
        Index of the knee. Where damage rises evenly, or fastest at once, that of the dearest point; where
        nothing is lost anywhere, that of the cheapest.

    Source: Satopaa et al. 2011, "Finding a Kneedle in a Haystack", doi:10.1109/ICDCSW.2011.20; without its
    smoothing.
    """
    x = np.array(costs, dtype=np.float64)
    y = _falling(damages)
    reference = _reference(y)
    if reference is None:
        return 0
    y = np.log1p(y / reference) if is_log else y
    width, height = x[-1] - x[0], y[0] - y[-1]
    if width <= 0 or height <= 0:
        return len(x) - 1
    below_chord = 1 - (x - x[0]) / width - (y - y[-1]) / height
    farthest = below_chord.max()
    if farthest <= _SAME_DISTANCE:
        return len(x) - 1
    # Of equal ones the dearest, which loses least.
    return int(np.flatnonzero(below_chord >= farthest - _SAME_DISTANCE)[-1])


def _falling(damages: Sequence[float]) -> NDArray[np.float64]:
    """(K,) float64, damages that fall with the cost, at least 0 and finite."""
    finite = [damage for damage in damages if isfinite(damage)]
    top = _ABOVE_FINITE * max(finite, default=1.0)
    y = np.array([damage if isfinite(damage) else top for damage in damages], dtype=np.float64)
    return np.maximum(never_falling(y[::-1])[::-1], 0.0)


def _reference(y: NDArray[np.float64]) -> float | None:
    """What damages are compared with: their median, or the smallest above 0; None where nothing is lost."""
    median = float(np.median(y))
    if median > 0:
        return median
    above = y[y > 0]
    return float(above.min()) if len(above) else None
