# SPDX-License-Identifier: Apache-2.0
"""What forwards of the original show, looked at once for all models that are built beside it."""

from collections.abc import Mapping, Sequence

from torch import nn

from slimrank.capture import Epilogue, find_epilogues
from slimrank.forward import Batch, can_interleave, take_samples


class Seen:
    """What forwards of one model over the same batches show; each is found when it is first asked for.

    Args:
        model: a private copy in eval mode.
        layers: all that a build may ask about, in execution order.
        paused: bytes of one sample that are alive in both networks while forwards are paused at a layer.

    Attributes:
        paused: as given.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], paused: Mapping[str, int]) -> None:
        self._model = model
        self._layers = layers
        self.paused = paused
        self._epilogues: Mapping[str, Epilogue] | None = None
        self._may_interleave: dict[bool, bool] = {}

    def epilogues(self, batches: Sequence[Batch]) -> Mapping[str, Epilogue]:
        """What happens to the outputs of layers; see ``find_epilogues``.

        Args:
            batches: one sample of the first is enough.
        """
        if self._epilogues is None:
            first = batches[0]
            sample = first if first.is_whole else take_samples(first, [0])
            self._epilogues = find_epilogues(self._model, sample, self._layers)
        return self._epilogues

    def may_interleave(self, batches: Sequence[Batch], *, gives_up: bool) -> bool:
        """Whether forwards may pause side by side at these layers; see ``can_interleave``.

        Args:
            batches: of the forwards.
            gives_up: whether some end before others.
        """
        if len(batches) < 2:
            return True
        if gives_up not in self._may_interleave:
            self._may_interleave[gives_up] = can_interleave(
                self._model, batches, self._layers, gives_up=gives_up
            )
        return self._may_interleave[gives_up]
