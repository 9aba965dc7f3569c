# SPDX-License-Identifier: Apache-2.0
"""Packages that only some formats need, imported when they are used."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from slimrank._errors import MissingPackageError

# Reports each import of openvino, each conversion and its options to Intel. Without it, openvino does the
# same and reports nothing.
_TELEMETRY = "openvino_telemetry"


def import_package(name: str, *, extra: str, what: str) -> ModuleType:
    """A package, imported; one that reports its use to its makers does not, unless it was imported before.

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
        with _without_telemetry():
            return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "which is not installed" if is_missing else f"which cannot be imported ({error})"
        raise MissingPackageError(
            f"{what} needs {package}, {why}; pip install 'slimrank[{extra}]'"
        ) from error


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Makes the module that reports look as if it were not installed, where nobody has imported it yet."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
