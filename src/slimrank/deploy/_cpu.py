# SPDX-License-Identifier: Apache-2.0
"""What the processor of this machine lacks for int8."""

import platform
from collections.abc import Mapping

import torch

from slimrank.records import Note

X86 = ("x86_64", "amd64", "i386", "i686")


def sums_overflow() -> bool:
    """Whether kernels for int8 add products of 8 bits in 16, of which two are too many: x86 without VNNI."""
    return platform.machine().lower() in X86 and not _has_vnni()


def overflow_notes(format: str, reduced: str) -> tuple[Note, ...]:
    """That a file was made so that sums do not overflow; nothing where they cannot.

    Args:
        format: of the file.
        reduced: what has 7 bits in it.

    Returns:
        One note, or none.
    """
    if not sums_overflow():
        return ()
    text = f"this machine has no VNNI: {reduced} have 7 bits, so that sums do not overflow"
    return (Note(where=format, text=text),)


def _has_vnni() -> bool:
    """Whether it has AVX-512 VNNI or AVX-VNNI."""
    if torch.cpu._is_vnni_supported():
        return True
    # That function does not look at AVX-VNNI; older versions of torch do not tell of it at all.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx_vnni", False))
