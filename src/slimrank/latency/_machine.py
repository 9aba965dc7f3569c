# SPDX-License-Identifier: Apache-2.0
"""Which packages times are of."""

from collections.abc import Sequence
from importlib.metadata import version


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages by name."""
    return {name: version(name) for name in packages}
