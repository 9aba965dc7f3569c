# SPDX-License-Identifier: Apache-2.0
"""The spread of an output over the data, as what its samples are divided by."""

import torch
from torch import Tensor

# Largest over median spread along a dimension from which on its entries are told apart.
_OTHER_SPREAD = 1.5


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


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation over the data, in a shape that divides one sample.

    Args:
        values: (N, ...).

    Returns:
        Of every element; of maps of every channel, e.g. (C, 1, 1); never 0. One number, 1, where there are no
        values.
    """
    if not values.numel():
        return values.new_ones(())
    # One sample has no spread; the size of the values then stands in.
    spread = values.std(0, correction=0) if len(values) > 1 else values.abs()[0]
    if values.ndim >= 4:
        # Of every channel of a map: a position that hardly varies, such as a border, would outweigh the rest.
        channels = _channel_dims(spread)
        others = [dim for dim in range(spread.ndim) if dim not in channels]
        spread = spread.square().mean(others, keepdim=True).sqrt()
    typical = spread.square().mean().sqrt()
    # Not below rounding noise: outputs that never vary would else make any change look huge.
    size = values.square().mean().sqrt()
    floor = torch.maximum(typical * 1e-2, size * 1e-4)
    floor = torch.where(floor > 0, floor, torch.ones_like(floor))
    return spread.clamp_min(floor)


def _channel_dims(spread: Tensor) -> tuple[int, ...]:
    """Dimensions of a map, (C, H, W) or more, that hold channels: the first; of (H, W, C) the last.

    In five dimensions both where spreads differ along the last: anchors, height, width, then what each tells.
    """
    last = spread.ndim - 1
    if spread.ndim == 3:
        first, second, third = spread.shape
        return (last,) if first == second and third < first else (0,)
    along = spread.square().mean(list(range(last))).sqrt()
    # A border varies less than the rest, never more.
    return (0, last) if bool(along.max() > _OTHER_SPREAD * along.median()) else (0,)
