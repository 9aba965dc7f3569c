# SPDX-License-Identifier: Apache-2.0
"""What can be done to a layer, and what was chosen."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

Method = Literal["weight_svd", "spatial_svd", "channel_pruning"]
ChannelOrder = Literal["obs", "magnitude", "random"]
# Every allowed order, to check what a caller asks for.
CHANNEL_ORDERS: tuple[ChannelOrder, ...] = get_args(ChannelOrder)
# How much a study measures.
Effort = Literal["fast", "normal", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
# The one method that takes channels out of groups of layers; the others replace single layers.
PRUNING: Final = "channel_pruning"
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


def replaces_groups(method: str) -> bool:
    """Whether a method works on groups of channels; the others put modules in the place of single layers."""
    return method == PRUNING
