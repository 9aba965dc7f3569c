# SPDX-License-Identifier: Apache-2.0
"""What a result keeps of its study, so that it can be exported without being told again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from slimrank.calibrate import Likelihood
from slimrank.forward import Batch, OutputChoice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportSource:
    """The model that a result was made of, and data.

    Copies of a result share it; a pickled result leaves it behind: data need not be picklable.

    Attributes:
        original: in eval mode; not to be changed.
        batches: gives all samples, checked.
        outputs: which outputs matter.
        likelihood: how they are read.
        is_first: the model is the first original, however many steps the result's plan has.
    """

    original: nn.Module
    batches: Callable[[], Iterable[Batch]]
    outputs: OutputChoice
    likelihood: Likelihood
    is_first: bool = False

    def __deepcopy__(self, memo: dict[int, object]) -> "ExportSource":
        """Itself."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None, for pickle."""
        return type(None), ()
