# SPDX-License-Identifier: Apache-2.0
"""Which machine and which packages times are of."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_CPU_FILE = Path("/proc/cpuinfo")


def machine_name() -> str:
    """Model of the processor, cores and architecture: times of one machine say little of another."""
    model = platform.processor()
    if _CPU_FILE.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", _CPU_FILE.read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    return f"{model or 'unknown processor'}, {os.cpu_count()} cores, {platform.machine()}"


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages by name."""
    return {name: version(name) for name in packages}
