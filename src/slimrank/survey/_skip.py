# SPDX-License-Identifier: Apache-2.0
"""What a caller leaves alone: globs, or modules of the model."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from glob import escape

from torch import nn

from slimrank._errors import OptionError, StudyError, UnknownNameError
from slimrank._names import listed, nearest

Skip = str | nn.Module | Sequence[str | nn.Module]


class CallersModel:
    """The model of the caller, by whose modules names are found as long as it lives; copies forget it.

    Args:
        model: it is not kept alive; None for one that is not known.
    """

    __slots__ = ("_reference",)

    def __init__(self, model: nn.Module | None = None) -> None:
        self._reference = None if model is None else weakref.ref(model)

    def __reduce__(self) -> tuple[type["CallersModel"], tuple[()]]:
        return CallersModel, ()

    @property
    def model(self) -> nn.Module | None:
        """The model; None where it is gone or not known."""
        return None if self._reference is None else self._reference()


def globs_of(skip: Skip, model: nn.Module | None, layers: Callable[[], Iterable[str]]) -> tuple[str, ...]:
    """Globs of what a caller leaves alone; one text or module stands for itself.

    Args:
        skip: as typed.
        model: of the caller, whose modules may be named; None where there is none.
        layers: gives the names of its layers; asked where there are modules.

    Returns:
        Globs; of a module the names of all layers in it.

    Raises:
        OptionError: neither text nor module, or a module that is not in the model or holds no layer.
        StudyError: a module, and no model.
    """
    given = (skip,) if isinstance(skip, str | nn.Module) else skip
    if not isinstance(given, Iterable):
        raise OptionError(f"skip={skip!r}; give globs or modules, e.g. skip=('fc', model.conv1)")
    known = tuple(layers()) if any(isinstance(item, nn.Module) for item in given) else ()
    globs: list[str] = []
    for item in given:
        if isinstance(item, nn.Module):
            globs += [escape(name) for name in _layers_in(item, model, known)]
        elif isinstance(item, str):
            globs.append(item)
        else:
            raise OptionError(
                f"skip holds a {type(item).__name__}; give globs or modules, e.g. skip=('fc', model.conv1)"
            )
    return tuple(dict.fromkeys(globs))


def check_skip(skip: Sequence[str], model: nn.Module) -> None:
    """Refuses globs that match no module of a model, before it runs.

    Args:
        skip: globs.
        model: of the caller.

    Raises:
        UnknownNameError: such a glob; the message has the closest names.
    """
    names = [name for name, _ in model.named_modules()]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(f"skip: {pattern!r} matches no layer; {nearest(pattern, names[1:])}")


def _layers_in(module: nn.Module, model: nn.Module | None, layers: Sequence[str]) -> list[str]:
    """Names of the layers that a module is or holds."""
    kind = type(module).__name__
    if model is None:
        raise StudyError(
            f"skip holds a {kind}, and this study has no model in which to find it; give its name, e.g. "
            f"{listed(layers[:1])}, or Study.load(dir, model=model)"
        )
    name = next((name for name, known in model.named_modules() if known is module), None)
    if name is None:
        raise OptionError(
            f"skip holds a {kind} that is no module of the model that was studied; give that model's own "
            "modules, or names"
        )
    found = [layer for layer in layers if not name or layer == name or layer.startswith(f"{name}.")]
    if not found:
        raise OptionError(f"skip holds the {kind} {name!r}, which is no layer and holds none; leave it out")
    return found
