# SPDX-License-Identifier: Apache-2.0
"""Fits to outputs that are clipped afterwards: where a ReLU gives zero, any output below zero will do."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

# Share of the largest gain below which a channel is fitted as if nothing clipped it. Less would divide by
# tiny gains and blow up errors, more would leave channels without the better fit.
_MIN_GAIN = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clipping:
    """What is done to the outputs y of a layer: ``clip(gains * y + offsets, low, high)``.

    Attributes:
        gains: (O,).
        low, high: ends of the clipping; 0 and inf for a ReLU.
    """

    gains: Tensor
    low: float
    high: float

    @property
    def is_usable(self) -> Tensor:
        """(O,) bool: channels whose gain is large enough to divide by."""
        return has_usable_gain(self.gains)

    def wanted(self, outputs: Tensor, predicted: Tensor, offsets: Tensor) -> Tensor:
        """Outputs to fit next: those that are clipped in the original and in the fit stay as predicted.

        Fitting to them by least squares, again and again, lowers the squared error after the clipping: they
        are the nearest outputs to the predicted ones that are clipped to what is wanted.

        Args:
            outputs: (S, O), outputs of the original.
            predicted: (S, O), outputs of the fit so far.
            offsets: (S, O) or (O,).

        Returns:
            (S, O).

        Source: after the nonlinear response reconstruction of Zhang et al. 2016, arXiv 1505.06798,
        section 3.2, with the relaxation solved exactly (its penalty at infinity).
        """
        original, current = outputs * self.gains + offsets, predicted * self.gains + offsets
        nearest = original
        if self.low > -inf:
            nearest = torch.where(original <= self.low, current.clamp(max=self.low), nearest)
        if self.high < inf:
            nearest = torch.where(original >= self.high, current.clamp(min=self.high), nearest)
        return torch.where(self.is_usable, (nearest - offsets) / self.gains, outputs)

    def errors(self, outputs: Tensor, predicted: Tensor, offsets: Tensor) -> Tensor:
        """Differences after the clipping, in units of the layer's output.

        Args:
            outputs: (S, O), outputs of the original.
            predicted: (S, O), outputs of the fit.
            offsets: (S, O) or (O,).

        Returns:
            (S, O).
        """
        original = (outputs * self.gains + offsets).clamp(self.low, self.high)
        current = (predicted * self.gains + offsets).clamp(self.low, self.high)
        return torch.where(self.is_usable, (current - original) / self.gains, predicted - outputs)


def has_usable_gain(gains: Tensor) -> Tensor:
    """Channels whose gain is large enough to divide by.

    Args:
        gains: (O,).

    Returns:
        (O,) bool.
    """
    return gains.abs() > _MIN_GAIN * gains.abs().max()
