# SPDX-License-Identifier: Apache-2.0
"""Memory that was freed, given back to the system."""

import ctypes
import sys


def release_memory() -> None:
    """Gives freed memory back, where the C library can.

    Large matrices come and go by the layer, and forwards run in threads; glibc keeps what each thread freed
    for that thread, so that the process would hold the sum of all peaks.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
