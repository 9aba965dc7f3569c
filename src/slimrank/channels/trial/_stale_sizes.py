# SPDX-License-Identifier: Apache-2.0
"""Sizes of groups in the user's modules that only methods beside the forward read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from inspect import isfunction
from types import CodeType

from torch import nn

from slimrank.channels.trial._size_search import candidates
from slimrank.records import ChannelMap, Kept

# Runs before there is anything to slim.
_BEFORE = "__init__"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleSize:
    """A whole number that was a size of a group, and stays what it was.

    Attributes:
        module: dotted name.
        path: attribute, or element of it.
        value: the number.
        fitting: what it would be after the slimming.
        methods: of the module, in which it is read.
    """

    module: str
    path: str
    value: int
    fitting: int
    methods: tuple[str, ...]


def stale_sizes(model: nn.Module, channels: ChannelMap, kept: Kept) -> tuple[StaleSize, ...]:
    """Numbers that other methods of the user's modules will read as sizes, though the forward does without.

    Args:
        model: not slimmed yet.
        channels: its groups.
        kept: group -> units that stay.

    Returns:
        Those that equal the number of units, or of all channels, of a group that loses some, and are not
        among the sizes that go with it; each once.
    """
    found: dict[tuple[str, str], StaleSize] = {}
    adapted = {size for name in kept for size in channels.groups[name].sizes}
    for name, units in kept.items():
        group = channels.groups[name]
        if len(units) == group.units:
            continue
        for candidate in candidates(model, channels, group):
            key = (candidate.module, candidate.path)
            if candidate.kind not in ("units", "total") or not candidate.is_near or key in adapted:
                continue
            module = model.get_submodule(candidate.module)
            attribute, _, rest = candidate.path.partition("[")
            methods = _other_readers(type(module), attribute)
            value = getattr(module, attribute)
            number = value[int(rest[:-1])] if rest else value
            fitting = Fraction(int(number) * len(units), group.units)
            if methods and fitting.denominator == 1:
                found.setdefault(
                    key,
                    StaleSize(
                        module=candidate.module,
                        path=candidate.path,
                        value=int(number),
                        fitting=int(fitting),
                        methods=methods,
                    ),
                )
    return tuple(found.values())


def _other_readers(kind: type, attribute: str) -> tuple[str, ...]:
    """Methods of a user's class that read an attribute and that neither its making nor its forward runs."""
    methods: dict[str, set[str]] = {}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for name, value in vars(base).items():
            code = _code_of(value)
            if code is not None:
                methods.setdefault(name, set(_names_in(code)))
    run = _reached(methods, "forward")
    return tuple(
        name for name, names in methods.items() if name != _BEFORE and name not in run and attribute in names
    )


def _reached(methods: Mapping[str, set[str]], start: str) -> set[str]:
    """Methods that one runs, or may run, with itself."""
    reached, pending = {start}, [start]
    while pending:
        further = (methods.get(pending.pop(), set()) & methods.keys()) - reached
        reached |= further
        pending += sorted(further)
    return reached


def _code_of(value: object) -> CodeType | None:
    inner: Callable[..., object] | object = value
    if isinstance(value, property):
        inner = value.fget
    elif isinstance(value, staticmethod | classmethod):
        inner = value.__func__
    # Decorated functions hold the one that they wrap.
    inner = getattr(inner, "__wrapped__", inner)
    return inner.__code__ if isfunction(inner) else None


def _names_in(code: CodeType) -> Iterator[str]:
    """Attributes and globals that a function, or one inside it, names."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
