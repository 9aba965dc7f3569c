# SPDX-License-Identifier: Apache-2.0
"""Packages that only some formats need, imported when they are used."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from slimrank._errors import MissingPackageError

# Reports each import of openvino, each conversion and its options to Intel. Without it, openvino does the
# same and reports nothing.
_TELEMETRY = "openvino_telemetry"
# Read by onnxruntime when it is imported. Without it, onnxruntime keeps a number of this machine in the
# user's cache and reports sessions to Microsoft.
_ORT_SWITCH = "ORT_DISABLE_TELEMETRY"


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
    """Keeps packages from reporting: the user's own settings and imports of before stay as they are."""
    with contextlib.ExitStack() as stack:
        if _TELEMETRY not in sys.modules:
            # As if it were not installed.
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
            stack.callback(sys.modules.pop, _TELEMETRY, None)
        if _ORT_SWITCH not in os.environ:
            os.environ[_ORT_SWITCH] = "1"
            stack.callback(os.environ.pop, _ORT_SWITCH, None)
        yield
