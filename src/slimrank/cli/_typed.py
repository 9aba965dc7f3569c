# SPDX-License-Identifier: Apache-2.0
"""Typed text to values."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

import click

from slimrank._errors import OptionError
from slimrank._names import nearest
from slimrank.plan import MultipleOf, SettingLike
from slimrank.records import LIKELIHOODS, LikelihoodChoice, LikelihoodName, Method, Weights

_Value = TypeVar("_Value")

_FIX_FORMS = (
    "e.g. fc=weight_svd:0.4, fc=weight_svd:rank=32, conv1=channel_pruning:keep=24, layer4.1=drop or fc=none"
)
_FIX_READERS: Mapping[str, Callable[[str], int | float]] = {
    "": float,
    "ratio": float,
    "rank": int,
    "keep": int,
}


def read_fixed(texts: Sequence[str]) -> dict[str, SettingLike] | None:
    """What --fix says: name -> setting, a list where a name is given twice; None where it is not given."""
    found: dict[str, SettingLike] = {}
    for text in texts:
        name, equals, typed = text.partition("=")
        if not (equals and name and typed):
            raise OptionError(f"--fix {text!r}: give NAME=SETTING, {_FIX_FORMS}")
        setting = _read_setting(text, typed)
        known = found.get(name)
        if name not in found:
            found[name] = setting
        elif isinstance(known, tuple) and isinstance(setting, tuple):
            found[name] = [known, setting]
        else:
            raise OptionError(
                f"--fix {text!r}: {name!r} is fixed twice; only a pair and channels go together"
            )
    return found or None


def _read_setting(text: str, typed: str) -> SettingLike:
    """A setting as --fix takes it."""
    if typed == "drop":
        return "drop"
    if typed == "none":
        return None
    method, colon, amount = typed.partition(":")
    key, equals, number = amount.rpartition("=")
    if not (colon and method and number and bool(equals) == bool(key)) or key not in _FIX_READERS:
        raise OptionError(f"--fix {text!r}: {typed!r} is no setting; give {_FIX_FORMS}")
    try:
        value = _FIX_READERS[key](number)
    except ValueError as error:
        raise OptionError(f"--fix {text!r}: {number!r} is no number; give {_FIX_FORMS}") from error
    return (method, value if not key else {key: value})


def writable(study_dir: Path) -> Path | None:
    """The directory of a study, for the events of later work; None where nothing can be written to it."""
    return study_dir if os.access(study_dir, os.W_OK) else None


def split_names(names: Iterable[str]) -> tuple[Method, ...]:
    """Names given one by one or with commas between them; the library checks that they exist."""
    parts = [part.strip() for name in names for part in name.split(",")]
    return cast(tuple[Method, ...], tuple(part for part in parts if part))


def read_likelihood_option(entries: Sequence[str]) -> LikelihoodChoice:
    """One family, or one for each output that is named."""
    families = [entry for entry in entries if "=" not in entry]
    if families and len(entries) > 1:
        why = (
            "has several families" if len(families) > 1 else "mixes a family for all outputs with NAME=FAMILY"
        )
        raise OptionError(
            f"--likelihood {why} ({', '.join(entries)}); give one FAMILY, or NAME=FAMILY for each output"
        )
    if families:
        return _family(families[0], families[0])
    return _by_name(entries, "--likelihood", _family) or "auto"


def _family(text: str, entry: str) -> LikelihoodName:
    if text not in LIKELIHOODS:
        raise OptionError(
            f"--likelihood {entry!r} is no family; give one of {', '.join(LIKELIHOODS)}, or NAME=FAMILY with "
            "one of these"
        )
    return text


def read_weights(entries: Sequence[str]) -> Weights:
    """Weights by the output they name; the library checks their range."""
    return _by_name(entries, "--weight", _number) or None


def _number(text: str, entry: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(
            f"--weight {entry!r} is no number; give --weight NAME=VALUE, e.g. --weight boxes=2"
        ) from error


def _by_name(entries: Sequence[str], option: str, read: Callable[[str, str], _Value]) -> dict[str, _Value]:
    """Values of NAME=VALUE by name; names may hold "=" themselves."""
    found: dict[str, _Value] = {}
    for entry in entries:
        name, _, text = entry.rpartition("=")
        if not name or not text:
            raise OptionError(f"{option} {entry!r} names no output and value; give {option} NAME=VALUE")
        if name in found:
            raise OptionError(f"{option} names {name!r} twice; name each output once")
        found[name] = read(text, entry)
    return found


def read_multiple_of(entries: Sequence[str], *, default: int | Literal["auto"] = "auto") -> MultipleOf:
    """One number or "auto", or globs in their order; a number among globs is for all other layers.

    Args:
        entries: as typed.
        default: where nothing was typed.

    Returns:
        For ``Study.plan``.

    Raises:
        OptionError: something else was typed.
    """
    by_glob: dict[str, int | Literal["auto"]] = {}
    others: int | Literal["auto"] | None = None
    for entry in entries:
        glob, _, text = entry.rpartition("=")
        if text != "auto" and not text.isdecimal():
            raise OptionError(
                f"--multiple-of {entry!r} is no number; give N or GLOB=N, e.g. 8 or 'layer*=16', or auto "
                f"in place of N; {nearest(text, ('auto',))}"
            )
        number: int | Literal["auto"] = "auto" if text == "auto" else int(text)
        if glob:
            by_glob[glob] = number
        elif others is not None:
            raise OptionError(f"--multiple-of has two numbers, {others} and {text}; give one, and GLOB=N")
        else:
            others = number
    if not by_glob:
        return default if others is None else others
    return by_glob if others is None else {**by_glob, "*": others}


def read_budget(text: str | None) -> float | str | None:
    """A whole number, a ratio, or any other text as it was typed, for ``Study.plan``; None for nothing."""
    if text is None:
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def read_latency(text: str | None) -> float | str | None:
    """A ratio, or a time as it was typed, for ``Study.plan``; None where nothing was typed."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def refuse_given(ctx: click.Context, names: Sequence[str], why: str) -> None:
    """Refuses options that would be without effect."""
    given = [
        param.opts[0]
        for param in ctx.command.params
        if param.name in names
        and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise OptionError(f"{', '.join(given)}: {why}")
