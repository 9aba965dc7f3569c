# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed, given back to the system."""

import ctypes
import sys

# How much must have come and gone before memory is given back. Less would cost a call for every small layer;
# more would let the peaks of several layers add up.
_TRIM_BYTES = 96_000_000


class Trimmer:
    """Gives freed memory back, where the C library can, whenever much has come and gone.

    Large matrices come and go by the layer, and forwards run in threads; glibc keeps what each thread freed
    for that thread, so that the process would hold the sum of all peaks.
    """

    def __init__(self) -> None:
        self._came = 0

    def after(self, n_bytes: int) -> None:
        """Counts what came and went.

        Args:
            n_bytes: of a layer that is done, about.
        """
        self._came += n_bytes
        if self._came >= _TRIM_BYTES:
            self._came = 0
            _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
