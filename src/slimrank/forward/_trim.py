# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed, given back to the system."""

import ctypes
import sys


class Trimmer:
    """Gives freed memory back, where the C library can, whenever much has come and gone.

    Large matrices come and go by the layer, and forwards run in threads; glibc keeps what each thread freed
    for that thread, so that the process would hold the sum of all peaks.

    Args:
        every: bytes that must have come and gone before memory is given back.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._came = 0

    def after(self, n_bytes: int) -> None:
        """Counts what came and went.

        Args:
            n_bytes: of a layer that is done, about.
        """
        self._came += n_bytes
        if self._came >= self._every:
            self._came = 0
            give_back()


def give_back() -> None:
    """Gives back to the system what was freed, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
