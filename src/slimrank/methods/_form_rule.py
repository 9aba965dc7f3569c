# SPDX-License-Identifier: Apache-2.0
"""What a form is: which taps of the kernel each factor takes."""

from collections.abc import Callable
from dataclasses import dataclass

from slimrank.records import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class FormRule:
    """One way to split a kernel between two factors.

    Attributes:
        form: its name in plans.
        first_taps: kernel dimensions, of so many, that the first factor takes; the second takes the others.
        is_closed: the second factor has one tap, so that the best pair of every rank has a closed form.
    """

    form: Form
    first_taps: Callable[[int], tuple[bool, ...]]
    is_closed: bool

    def second_taps(self, n_dims: int) -> tuple[bool, ...]:
        """Kernel dimensions that the second factor takes."""
        return tuple(not taken for taken in self.first_taps(n_dims))
