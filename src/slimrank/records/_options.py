# SPDX-License-Identifier: Apache-2.0
"""What can be done to a layer, and what was chosen."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["weight_svd", "spatial_svd", "channel_pruning"]
ChannelOrder = Literal["obs", "magnitude", "random"]
Form = Literal["linear", "kxk_1x1", "1x1_kxk", "v_h", "h_v"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is done to one layer.

    Attributes:
        method: a name of ``slimrank.METHODS``.
        form: how the pair is split (``kxk_1x1``, ``1x1_kxk``, ``v_h``, ``h_v``; ``linear`` for a Linear).
        rank: size between the two factors, at least 1.
    """

    method: Method
    form: Form
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Cost and damage of one layer in one form, at every rank that saves something.

    Attributes:
        layer: dotted name.
        method: the method the form belongs to.
        form: how the pair is split.
        ranks: (K,) int64, ascending.
        macs, params, bytes: (K,) int64, cost of the pair at each rank (all calls, one sample).
        error: (K,) float64, the quadratic form E, never rising; no unit across layers.
        damage: (K,) float64, predicted divergence from the original; nats per sample once anchored.
    """

    layer: str
    method: Method
    form: Form
    ranks: NDArray[np.int64]
    macs: NDArray[np.int64]
    params: NDArray[np.int64]
    bytes: NDArray[np.int64]
    error: NDArray[np.float64]
    damage: NDArray[np.float64]
