# SPDX-License-Identifier: Apache-2.0
"""Which packages times are of."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages by name; "none" of those that are not installed."""

    def told(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    return {name: told(name) for name in packages}
