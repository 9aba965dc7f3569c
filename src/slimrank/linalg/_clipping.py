# SPDX-License-Identifier: Apache-2.0
"""Fits that know what is clipped after them: where a ReLU gives zero, how far below zero does not matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    def reaches(self) -> Tensor:
        """(O,) bool: channels whose gain is large enough to reason back from what is clipped."""
        return reaching(self.gains)

    def wanted(self, outputs: Tensor, predicted: Tensor, offsets: Tensor) -> Tensor:
        """Outputs to fit next: what is clipped away in both is left as predicted.

        Fitting to them by least squares, again and again, lowers the squared error after the clipping: they
        are the nearest outputs to the predicted ones that are clipped to what is wanted.

        Args:
            outputs: (S, O), of the original.
            predicted: (S, O), of the fit so far.
            offsets: (S, O) or (O,).

        Returns:
            (S, O).

        Source: after the nonlinear response reconstruction of Zhang et al. 2016, arXiv 1505.06798,
        section 3.2, with the relaxation solved exactly (its penalty at infinity).
        """
        before, now = outputs * self.gains + offsets, predicted * self.gains + offsets
        nearest = torch.where(before <= self.low, now.clamp(max=self.low), before)
        nearest = torch.where(before >= self.high, now.clamp(min=self.high), nearest)
        return torch.where(self.reaches, (nearest - offsets) / self.gains, outputs)

    def errors(self, outputs: Tensor, predicted: Tensor, offsets: Tensor) -> Tensor:
        """Differences after the clipping, in units of the layer's output.

        Args:
            outputs: (S, O), of the original.
            predicted: (S, O), of the fit.
            offsets: (S, O) or (O,).

        Returns:
            (S, O).
        """
        before = (outputs * self.gains + offsets).clamp(self.low, self.high)
        now = (predicted * self.gains + offsets).clamp(self.low, self.high)
        return torch.where(self.reaches, (now - before) / self.gains, predicted - outputs)


def reaching(gains: Tensor) -> Tensor:
    """Channels whose gain is not next to nothing.

    Args:
        gains: (O,).

    Returns:
        (O,) bool.
    """
    return gains.abs() > _MIN_GAIN * gains.abs().max()
