# SPDX-License-Identifier: Apache-2.0
"""Convolutions that pad by "same" or "valid", with the padding in numbers."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd

_PADS: tuple[Callable[..., nn.Module], ...] = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


def explicit_padding(conv: nn.Module) -> nn.Module | None:
    """Writes the padding of a convolution as numbers (in place).

    Args:
        conv: a convolution.

    Returns:
        What takes its place: the convolution itself; one that pads one side more than the other ("same" with
        an even kernel) behind zeros, without padding of its own. None where nothing is to be done: the
        padding is in numbers already, or other values than zeros are padded.
    """
    if not isinstance(conv, _ConvNd) or not isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    totals = [
        dilation * (taps - 1) if conv.padding == "same" else 0
        for taps, dilation in zip(conv.kernel_size, conv.dilation, strict=True)
    ]
    if not any(total % 2 for total in totals):
        conv.padding = tuple(total // 2 for total in totals)
        return conv
    conv.padding = (0,) * len(totals)
    # From the last dimension to the first, each before and after; "same" pads more after.
    amounts = tuple(side for total in reversed(totals) for side in (total // 2, total - total // 2))
    padded = nn.Sequential(_PADS[len(totals) - 1](amounts), conv)
    return padded.train(conv.training)
