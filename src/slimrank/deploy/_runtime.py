# SPDX-License-Identifier: Apache-2.0
"""An exported file, opened in its runtime."""

from collections.abc import Callable, Sequence

from torch import Tensor

from slimrank.forward import Batch

# Runs one batch, whose tensors have been handed over; outputs in the order of the program's.
Bound = Callable[[], Sequence[Tensor]]
# Hands a batch over: what is timed is the run alone.
Runtime = Callable[[Batch], Bound]
