# SPDX-License-Identifier: Apache-2.0
"""What can be done to a layer, and what was chosen."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

Method = Literal["weight_svd", "spatial_svd", "tucker2", "channel_pruning"]
# All, in the order in which they are listed everywhere; and the public lists of names: what is measured where
# a caller names none, and what exists beside it.
ALL_METHODS: tuple[Method, ...] = get_args(Method)
MORE_METHODS: tuple[Method, ...] = ("tucker2",)
METHODS: tuple[Method, ...] = tuple(method for method in ALL_METHODS if method not in MORE_METHODS)
ChannelOrder = Literal["obs", "magnitude", "random"]
# Every allowed order, to check what a caller asks for.
CHANNEL_ORDERS: tuple[ChannelOrder, ...] = get_args(ChannelOrder)
# How much a study measures.
Effort = Literal["fast", "normal", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
# The one method that takes channels out of groups of layers; the others replace single layers.
PRUNING: Final = "channel_pruning"
Form = Literal["linear", "kxk_1x1", "1x1_kxk", "v_h", "h_v", "1x1_kxk_1x1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is done to one layer.

    Attributes:
        method: a name of ``slimrank.METHODS`` or ``slimrank.MORE_METHODS``.
        form: how the layer is split (``kxk_1x1``, ``1x1_kxk``, ``v_h``, ``h_v``; ``linear`` for a Linear;
            ``1x1_kxk_1x1`` in three).
        rank: size between the two factors, at least 1; of a form with three, between the last two.
        rank_in: of a form with three factors, the size between the first two; None for the others.
    """

    method: Method
    form: Form
    rank: int
    rank_in: int | None = None

    def __repr__(self) -> str:
        # It goes into checksums on disk, of which many are older than ``rank_in``.
        shown = [f"{name}={getattr(self, name)!r}" for name in ("method", "form", "rank")]
        shown += [] if self.rank_in is None else [f"rank_in={self.rank_in!r}"]
        return f"Setting({', '.join(shown)})"

    @property
    def ranks(self) -> tuple[int, ...]:
        """Sizes between the factors, in the order in which they are applied."""
        return (self.rank,) if self.rank_in is None else (self.rank_in, self.rank)

    @property
    def rank_text(self) -> str:
        """The ranks, for people."""
        return ", ".join(map(str, self.ranks))


def replaces_groups(method: str) -> bool:
    """Whether a method works on groups of channels; the others put modules in the place of single layers."""
    return method == PRUNING
