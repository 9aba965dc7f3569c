# SPDX-License-Identifier: Apache-2.0
"""Monotone fits."""

import numpy as np
from numpy.typing import NDArray


def never_falling(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression by pooling adjacent violators, equal weights.

    Args:
        values: (K,) float64.

    Returns:
        (K,) float64, never falling, with the least sum of squared differences.
    """
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            last_mean, last_count = pools.pop()
            mean = (mean * count + last_mean * last_count) / (count + last_count)
            count += last_count
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])
