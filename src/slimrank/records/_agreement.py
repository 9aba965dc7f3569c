# SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a compressed model agree with those of the original."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slimrank._names import nearest


def element_at(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Index in a shape of the element at a position, counted through in order.

    Args:
        position: from 0.
        sizes: of the shape.
    """
    index = []
    for size in reversed(sizes):
        position, place = divmod(position, size)
        index.append(place)
    return tuple(reversed(index))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputAgreement:
    """How far one output agrees with the original's, over held-out samples.

    Attributes:
        family: how it is read.
        shape: of one sample.
        positions: how many terms ``divergence`` is a sum of: tokens, pixels, labels; 1 for a mean.
        divergence: per sample, without the output's weight.
        weight: factor of it in the divergence of all outputs together.
        lost: divergence over that of always answering the average: 0 as before, 1 where nothing is left.
        top1: share of positions with the same most likely class, 0 to 1; None where there are no classes.
        cosine: mean over samples of the cosine between the values of both; None where there are classes.
        relative_error: root of the mean squared error over the root of the mean squared spread over the data;
            None where there are classes.
        by_element: the share of equal classes at each position, or the relative error of each element, in
            the order of ``elements``; empty where samples differ in shape, or are very large.
        elements: shape of ``by_element``; of maps without classes (C,), their channels.
    """

    family: Literal["categorical", "bernoulli", "gaussian"]
    shape: tuple[int, ...]
    positions: int
    divergence: float
    lost: float
    weight: float = 1.0
    top1: float | None = None
    cosine: float | None = None
    relative_error: float | None = None
    # Up to some thousands of figures: too many to print.
    by_element: tuple[float, ...] = field(default=(), repr=False)
    elements: tuple[int, ...] = ()

    @property
    def worst(self) -> tuple[int, ...] | None:
        """Index of the element that agrees least, in ``elements``; None where there are not several."""
        if len(self.by_element) < 2:
            return None
        worst = min if self.top1 is not None else max
        return element_at(self.by_element.index(worst(self.by_element)), self.elements)


class Agreement(Mapping[str, OutputAgreement]):
    """How far outputs agree with the original's, by path ("" for a model that returns one tensor).

    Args:
        outputs: of each output.
        divergence: of all together, per sample, as the study measures it.
    """

    def __init__(self, outputs: Mapping[str, OutputAgreement], divergence: float) -> None:
        self._outputs = dict(outputs)
        self.divergence = divergence

    def __getitem__(self, path: str) -> OutputAgreement:
        if path not in self._outputs:
            raise KeyError(f"there is no output {path!r}; {nearest(path, self._outputs)}")
        return self._outputs[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    @property
    def top1(self) -> float | None:
        """Share of equal classes, 0 to 1, mean over the outputs that have any; None where none has."""
        return _mean([output.top1 for output in self.values()])

    @property
    def cosine(self) -> float | None:
        """Mean over the outputs without classes; None where all have some."""
        return _mean([output.cosine for output in self.values()])

    @property
    def relative_error(self) -> float | None:
        """Mean over the outputs without classes; None where all have some."""
        return _mean([output.relative_error for output in self.values()])

    @property
    def lost(self) -> float:
        """Share of what the outputs tell that is lost, mean over outputs: 0 as before, 1 for nothing left."""
        return _mean([output.lost for output in self.values()]) or 0.0

    def __float__(self) -> float:
        """The share of equal classes where there are any, else the cosine."""
        value = self.cosine if self.top1 is None else self.top1
        return float("nan") if value is None else value

    def __repr__(self) -> str:
        names = ("top1", "cosine", "relative_error", "lost")
        figures = [(name, getattr(self, name)) for name in names]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures if value is not None)
        return f"Agreement({len(self)} outputs; {shown})" if len(self) != 1 else f"Agreement({shown})"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
