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

# For messages: how references are written.
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
    value = _value_of(reference, "MODEL")
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
    value = _value_of(reference, where)
    if not isinstance(value, Iterable):
        raise OptionError(
            f"{where} {reference!r} gives a {type(value).__name__}; give batches, as a list or a DataLoader"
        )
    return value


def _value_of(reference: str, where: str) -> object:
    """What a reference stands for: the object itself, or what the function of that name returns."""
    value = _object_named(reference, where)
    if isinstance(value, nn.Module) or not callable(value):
        return value
    needed = _needed_arguments(value)
    if needed:
        raise OptionError(
            f"{where} {reference!r} needs arguments ({', '.join(needed)}); name a function without"
        )
    with user_errors(f"{where} {reference!r}"):
        made: object = value()
    return made


def _needed_arguments(function: Callable[..., object]) -> list[str]:
    """Names of the arguments that a call must give."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
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
    value = _object_named(reference, where)
    if not callable(value):
        raise OptionError(f"{where} {reference!r} is a {type(value).__name__}; name a function")
    return value


def _object_named(reference: str, where: str) -> object:
    """The object that a reference names."""
    module_text, _, name = reference.rpartition(":")
    if not module_text or not name:
        raise OptionError(f"{where} {reference!r} names nothing; write {HOW_TO_WRITE}")
    is_file = module_text.endswith(".py") or "/" in module_text or "\\" in module_text
    module = _module_of_file(Path(module_text), where) if is_file else _module_of_name(module_text, where)
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [key for key in dir(value) if not key.startswith("_")]
            raise UnknownNameError(f"{where}: {module_text} has no {name!r}; {nearest(part, known)}")
        value = getattr(value, part)
    return value


def _module_of_name(name: str, where: str) -> ModuleType:
    """An installed module, or one of the current directory."""
    # A program, unlike ``python -m``, does not look for modules in the current directory by itself.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with user_errors(f"{where}: {name}", passing=(SlimrankError, ModuleNotFoundError)):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise OptionError(f"{where}: {name} imports {error.name}, which is not installed") from error
        known = [path.stem for path in Path.cwd().glob("*.py")]
        raise UnknownNameError(
            f"{where}: no module {name!r} is installed or lies in {Path.cwd()}; {nearest(name, known)}"
        ) from error


def _module_of_file(path: Path, where: str) -> ModuleType:
    """The module of a file, which runs once in a process."""
    file = path.resolve()
    if not file.is_file():
        known = [neighbour.name for neighbour in file.parent.glob("*.py")]
        raise FileError(f"{where}: {path} does not exist; {nearest(file.name, known)}")
    # As when Python runs the file: it may import what lies beside it.
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    # Under its plain name, so that what the user's files import from each other is the same module.
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
        with user_errors(f"{where}: {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def user_errors(where: str, passing: tuple[type[Exception], ...] = (SlimrankError,)) -> Iterator[None]:
    """Errors of the user's code, named as such.

    Args:
        where: which code of the user's runs.
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
