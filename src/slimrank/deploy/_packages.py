# SPDX-License-Identifier: Apache-2.0
"""Packages that only some formats need, imported when they are used."""

import importlib
from types import ModuleType

from slimrank._errors import MissingPackageError


def import_package(name: str, *, extra: str, what: str) -> ModuleType:
    """A package, imported.

    Args:
        name: of the package or of a module in it.
        extra: of slimrank that brings it.
        what: that needs it, for the error.

    Returns:
        The module.

    Raises:
        MissingPackageError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "which is not installed" if is_missing else f"which cannot be imported ({error})"
        raise MissingPackageError(
            f"{what} needs {package}, {why}; pip install 'slimrank[{extra}]'"
        ) from error
