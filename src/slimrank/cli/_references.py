# SPDX-License-Identifier: Apache-2.0
"""References to the user's code: ``package.module:name`` or ``path/to/file.py:name``."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from torch import nn

from slimrank._errors import FileError, OptionError, SlimrankError, UnknownNameError
from slimrank._names import nearest

HOW_TO_WRITE = "package.module:name or path/to/file.py:name"


def model_at(reference: str) -> nn.Module:
    """The model that a reference names, or that a function of that name returns.

    Args:
        reference: as the user wrote it.

    Returns:
        The model.

    Raises:
        OptionError: it is no module, or the user's code fails.
        UnknownNameError: there is no such module or name.
        FileError: there is no such file.
    """
    value = _made(reference, "MODEL")
    if not isinstance(value, nn.Module):
        raise OptionError(f"MODEL {reference!r} gives a {type(value).__name__}; give a torch.nn.Module")
    return value


def batches_at(reference: str, where: str = "BATCHES") -> Iterable[object]:
    """The batches that a reference names, or that a function of that name returns.

    Args:
        reference: as the user wrote it.
        where: of messages.

    Returns:
        Something that can be iterated.

    Raises:
        SlimrankError: as in ``model_at``.
    """
    value = _made(reference, where)
    if not isinstance(value, Iterable):
        raise OptionError(
            f"{where} {reference!r} gives a {type(value).__name__}; give batches, as a list or a DataLoader"
        )
    return value


def _made(reference: str, where: str) -> object:
    """What a reference stands for: the object itself, or what the function of that name returns."""
    value = _named(reference, where)
    if isinstance(value, nn.Module) or not callable(value):
        return value
    needed = _needed_arguments(value)
    if needed:
        raise OptionError(
            f"{where} {reference!r} needs arguments ({', '.join(needed)}); name a function without"
        )
    with told(f"{where} {reference!r}"):
        made: object = value()
    return made


def _needed_arguments(function: Callable[..., object]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin tells none
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in variadic
    ]


def function_at(reference: str, where: str) -> Callable[..., object]:
    """The function that a reference names.

    Args:
        reference: as the user wrote it.
        where: of messages.

    Returns:
        The function, not called.

    Raises:
        SlimrankError: as in ``model_at``.
    """
    value = _named(reference, where)
    if not callable(value):
        raise OptionError(f"{where} {reference!r} is a {type(value).__name__}; name a function")
    return value


def _named(reference: str, where: str) -> object:
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise OptionError(f"{where} {reference!r} names nothing; write {HOW_TO_WRITE}")
    is_file = place.endswith(".py") or "/" in place or "\\" in place
    module = _module_of_file(Path(place), where) if is_file else _module_of_name(place, where)
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [key for key in dir(value) if not key.startswith("_")]
            raise UnknownNameError(f"{where}: {place} has no {name!r}; {nearest(part, known)}")
        value = getattr(value, part)
    return value


def _module_of_name(name: str, where: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with told(f"{where}: {name}", passing=(SlimrankError, ModuleNotFoundError)):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise OptionError(f"{where}: {name} imports {error.name}, which is not installed") from error
        known = [path.stem for path in Path.cwd().glob("*.py")]
        raise UnknownNameError(
            f"{where}: no module {name!r} is installed or lies in {Path.cwd()}; {nearest(name, known)}"
        ) from error


def _module_of_file(path: Path, where: str) -> ModuleType:
    file = path.resolve()
    if not file.is_file():
        known = [other.name for other in file.parent.glob("*.py")]
        raise FileError(f"{where}: {path} does not exist; {nearest(file.name, known)}")
    # As when Python runs the file: it may import what lies beside it.
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    name = file.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) != str(file):
        name = f"{name}_{sha256(str(file).encode()).hexdigest()[:8]}"
        loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileError(f"{where}: {path} is no Python file; write {HOW_TO_WRITE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with told(f"{where}: {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def told(where: str, passing: tuple[type[Exception], ...] = (SlimrankError,)) -> Iterator[None]:
    """Errors of the user's own code, named as such.

    Args:
        where: what of the user's runs.
        passing: errors that are let through.

    Yields:
        Nothing.

    Raises:
        OptionError: the user's code raised.
    """
    try:
        yield
    except passing:
        raise
    except (Exception, SystemExit) as error:
        raise OptionError(
            f"{where} raised {type(error).__name__}: {error} (--traceback shows where)"
        ) from error
