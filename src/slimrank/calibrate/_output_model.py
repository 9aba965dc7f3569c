# SPDX-License-Identifier: Apache-2.0
"""How outputs are read: a family for each, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slimrank.calibrate._own_loss import OwnLoss
from slimrank.records import Family

NATS, RELATIVE, OWN = "nats per sample", "relative squared error", "loss per sample"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputModel:
    """How one output tensor is read.

    Attributes:
        family: its distribution.
        dim: dimension of the classes (categorical).
        is_probability: values are probabilities, not logits.
        scale: spread (standard deviation) over the data, without the sample dimension: of every element, of
            maps of every channel, e.g. (C, 1, 1); None where there are classes.
        shape: of one sample.
        positions: how many terms the divergence of one sample is a sum of (tokens, pixels, labels); 1 where
            it is a mean.
        weight: factor of its divergence.
        all_lost: divergence per sample of always answering the average over the data: what is lost when
            nothing is left; above 0, without ``weight``.
    """

    family: Family
    dim: int
    is_probability: bool
    scale: Tensor | None
    shape: tuple[int, ...] = ()
    positions: int = 1
    weight: float = 1.0
    all_lost: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likelihood:
    """How the outputs of a model are read.

    Attributes:
        outputs: how each tensor is read, by its path in the outputs.
        reasons: which family was taken for which outputs and why, and what changes it: texts for people.
        loss: the caller's, in place of the families; they still tell how outputs agree.
    """

    outputs: Mapping[str, OutputModel]
    reasons: tuple[str, ...] = ()
    loss: OwnLoss | None = field(default=None)

    @property
    def unit(self) -> str:
        """Unit of the divergence."""
        if self.loss is not None:
            return OWN
        families = {output.family for output in self.outputs.values()}
        return RELATIVE if families == {"gaussian"} else NATS

    @property
    def all_lost(self) -> float:
        """Divergence at which nothing is left of the outputs."""
        if self.loss is not None:
            return self.loss.all_lost
        return sum(output.weight * output.all_lost for output in self.outputs.values())
