# SPDX-License-Identifier: Apache-2.0
"""What can be called, with which names and defaults, changes only on purpose: Python and command line."""

import dataclasses
import difflib
import importlib
import inspect
import os
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import slimrank

_ROOT = Path(__file__).parents[2]
_FROZEN = Path(__file__).parent / "public_signatures.txt"
_HOW = "make golden, or SLIMRANK_GOLDEN=1 python -m pytest tests/api/test_public_signatures.py"


# --- Python ---


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _signature(function: object, *, is_bound: bool = False) -> str:
    """Names, kinds and defaults; no annotations, since the files that they name may move."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if _is_public(parameter.name)
    ]
    # Without the instance, or the class.
    return str(inspect.Signature(parameters[1:] if is_bound else parameters))


def _class_lines(cls: type) -> Iterator[str]:
    """What a class is, how it is made if its name is public, and its public members."""
    name = cls.__name__
    yield f"{name}  # class of {', '.join(base.__name__ for base in cls.__bases__)}"
    if dataclasses.is_dataclass(cls):
        if name in slimrank.__all__:
            yield f"{name}{_signature(cls)}"
        yield from (f"{name}.{f.name}  # attribute" for f in dataclasses.fields(cls) if _is_public(f.name))
    for key in {key for base in cls.__mro__ if _is_ours(base) for key in vars(base) if _is_public(key)}:
        member = inspect.getattr_static(cls, key)
        if isinstance(member, classmethod):
            yield f"{name}.{key}{_signature(member.__func__, is_bound=True)}  # of the class"
        elif isinstance(member, property):
            yield f"{name}.{key}  # property"
        elif inspect.isfunction(member):
            yield f"{name}.{key}{_signature(member, is_bound=True)}"


def _is_ours(cls: object) -> bool:
    return isinstance(cls, type) and cls.__module__.partition(".")[0] == "slimrank"


def _named_in(hint: object) -> Iterator[type]:
    """Our classes in an annotation, however deep."""
    if _is_ours(hint):
        yield typing.cast(type, hint)
    for part in typing.get_args(hint):
        # The parameters of a Callable stand in a list.
        for inner in part if isinstance(part, list) else (part,):
            yield from _named_in(inner)


def _hints_of(owner: object) -> Iterator[object]:
    """Annotations of what is public in a function, or in the members of a class."""
    if not isinstance(owner, type):
        yield from typing.get_type_hints(owner).values()
        return
    if dataclasses.is_dataclass(owner):
        yield from (hint for name, hint in typing.get_type_hints(owner).items() if _is_public(name))
    for name, member in vars(owner).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if _is_public(name) and inspect.isfunction(function):
            yield from typing.get_type_hints(inspect.unwrap(function)).values()


def _public_objects() -> dict[str, object]:
    """The public names, and the values that they hand out: classes that their annotations name."""
    found = {name: getattr(slimrank, name) for name in slimrank.__all__}
    waiting = list(found.values())
    while waiting:
        owner = waiting.pop()
        if not callable(owner):
            continue
        for cls in (cls for hint in _hints_of(owner) for cls in _named_in(hint)):
            if cls.__name__ not in found:
                found[cls.__name__] = cls
                waiting.append(cls)
            assert found[cls.__name__] is cls, f"two public classes are called {cls.__name__}"
    return found


def _python_lines() -> Iterator[str]:
    for name, value in _public_objects().items():
        if isinstance(value, type):
            yield from _class_lines(value)
        elif callable(value):
            yield f"{name}{_signature(value)}"
        else:
            yield name if name == "__version__" else f"{name} = {value!r}"


# --- the command line ---


def _command_group() -> click.Group:
    """The group behind the program ``slimrank``, wherever it stands."""
    scripts = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    # Imported by the program when it runs, so that Ctrl-C is answered meanwhile, too.
    module = importlib.import_module(f"{scripts['slimrank'].partition(':')[0]}._main")
    (group,) = [value for value in vars(module).values() if isinstance(value, click.Group)]
    return group


def _parameter_line(parameter: click.Parameter) -> str:
    kind = parameter.type
    parts = ["|".join(kind.choices) if isinstance(kind, click.Choice) else kind.name]
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if is_flag:
        parts = ["flag for False" if parameter.flag_value is False else "flag"]
    if parameter.multiple:
        parts.append("several times")
    default = parameter.default
    if parameter.required:
        parts.append("required")
    elif isinstance(default, bool | int | float | str | Path):
        parts.append(f"default {default.as_posix() if isinstance(default, Path) else default}")
    else:
        # What stands for no default differs from version to version of click.
        parts.append("default False" if is_flag else "no default")
    name = "/".join([*parameter.opts, *parameter.secondary_opts])
    if isinstance(parameter, click.Argument):
        name = parameter.metavar or str(parameter.name).upper()
    return f"{name}: {', '.join(parts)}"


def _command_lines() -> Iterator[str]:
    group = _command_group()
    yield from (f"$ slimrank {_parameter_line(parameter)}" for parameter in group.params)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
        yield f"$ slimrank {name} (arguments: {len(arguments)})"
        for number, argument in enumerate(arguments, start=1):
            yield f"$ slimrank {name} argument {number}, {_parameter_line(argument)}"
        for parameter in command.params:
            if parameter not in arguments:
                yield f"$ slimrank {name} {_parameter_line(parameter)}"


# --- tests ---


def _text() -> str:
    return "\n".join([*sorted(_python_lines()), "", *sorted(_command_lines())]) + "\n"


def test_public_signatures_are_the_frozen_ones() -> None:
    text = _text()
    if os.environ.get("SLIMRANK_GOLDEN"):
        _FROZEN.write_text(text, encoding="utf-8")
    frozen = _FROZEN.read_text(encoding="utf-8") if _FROZEN.is_file() else ""
    if text != frozen:
        lines = difflib.unified_diff(
            frozen.splitlines(), text.splitlines(), _FROZEN.name, "as it is now", lineterm="", n=0
        )
        pytest.fail(
            "\n".join(
                [*lines, "", f"If that is meant, say so in CHANGELOG.md and write the list anew: {_HOW}"]
            ),
            pytrace=False,
        )


def test_the_list_is_the_same_in_every_process() -> None:
    assert " at 0x" not in _text()
    assert "slimrank." not in _text()
