# SPDX-License-Identifier: Apache-2.0
"""The spread of an output over the data, as what its samples are divided by."""

from torch import Tensor


def matched_spread(spread: Tensor, values: Tensor) -> Tensor:
    """A spread in a shape that divides values; one number where their samples differ in shape.

    Args:
        spread: without the sample dimension: of every element, or of every channel, e.g. (C, 1, 1).
        values: (N, ...).

    Returns:
        The spread, or the root of its mean square.
    """
    sizes = values.shape[1:]
    if len(sizes) == spread.ndim and all(
        of_spread in (1, size) for of_spread, size in zip(spread.shape, sizes, strict=True)
    ):
        return spread
    return spread.square().mean().sqrt()
