# SPDX-License-Identifier: Apache-2.0
"""The containers that tensors stand in, as JSON: of a model's arguments and of what it returns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from slimrank._errors import BatchesError, ExportError, FileError
from slimrank.deploy._graph_values import value_to_json
from slimrank.files import Json

_TENSOR, _DICT, _LIST, _TUPLE, _VALUE = "tensor", "dict", "list", "tuple", "value"
# A dict of which not every key is a plain text, as pairs: keys of JSON objects are texts.
_PAIRS = "pairs"
_Key = str | int | None


def outline_of(value: object, number: Callable[[Tensor], int | None]) -> Json:
    """The structure of a value.

    Args:
        value: tensors in nested containers. A dataclass and an object of transformers become a dict, a named
            tuple becomes a tuple.
        number: gives a tensor its number, in the order of ``named_tensors``; None for one that is left out.

    Returns:
        The structure; None for what is left out, and for what no file can keep.

    Raises:
        ExportError: a key of a dict is no text, no whole number and not None.
    """
    if isinstance(value, Tensor):
        index = number(value)
        return None if index is None else {_TENSOR: index}
    if isinstance(value, Mapping):
        return _dict_outline(value, number)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {_DICT: {name: outline_of(item, number) for name, item in items}}
    if isinstance(value, tuple | list):
        kind = _LIST if isinstance(value, list) else _TUPLE
        return {kind: [outline_of(item, number) for item in value]}
    try:
        return {_VALUE: value_to_json(value)}
    except TypeError:
        return None


def _dict_outline(value: Mapping[object, object], number: Callable[[Tensor], int | None]) -> Json:
    items = {key: outline_of(item, number) for key, item in value.items()}
    for key in items:
        if not _is_key(key):
            raise ExportError(
                f"a dict has the key {key!r}; the architecture can be recorded with keys that are texts, "
                "whole numbers or None: return others, or leave architecture=True out"
            )
    if all(type(key) is str for key in items):
        return {_DICT: {str(key): item for key, item in items.items()}}
    return {_PAIRS: [[key, item] for key, item in items.items()]}  # type: ignore[list-item]


def filled(outline: Json, tensors: Sequence[Tensor], where: str) -> object:
    """The containers of an outline with tensors in them.

    Args:
        outline: of ``outline_of``; plain values in it may be others for other samples, and become None.
        tensors: by their numbers.
        where: the file, for errors.
    """
    kind, content = _read(outline, where)
    if kind == _TENSOR and isinstance(content, int) and 0 <= content < len(tensors):
        return tensors[content]
    if kind == _DICT and isinstance(content, dict):
        return {key: filled(item, tensors, where) for key, item in content.items()}
    if kind == _PAIRS:
        return {key: filled(item, tensors, where) for key, item in _pairs(content, where).items()}
    if kind in (_LIST, _TUPLE) and isinstance(content, list):
        items = [filled(item, tensors, where) for item in content]
        return items if kind == _LIST else tuple(items)
    if kind in (_VALUE, None):
        return None
    raise _unreadable(where)


def tensors_of(outline: Json, value: object, name: str, where: str) -> dict[int, Tensor]:
    """The tensors of an argument by their numbers.

    Args:
        outline: of the argument that the graph was captured with.
        value: what was passed.
        name: of the argument, for errors.
        where: the file, for errors.

    Raises:
        BatchesError: it has another structure.
    """
    kind, content = _read(outline, where)
    if kind == _TENSOR:
        if isinstance(value, Tensor) and isinstance(content, int):
            return {content: value}
        raise BatchesError(f"{name} is a {type(value).__name__}; give a tensor")
    if kind == _DICT and isinstance(content, dict):
        entries = _entries(content, value, name)
    elif kind == _PAIRS:
        entries = _entries(_pairs(content, where), value, name)
    elif kind in (_LIST, _TUPLE) and isinstance(content, list):
        if not isinstance(value, tuple | list) or len(value) != len(content):
            raise BatchesError(f"{name}: give a {kind} of {len(content)}")
        entries = [(f"{name}.{i}", item, value[i]) for i, item in enumerate(content)]
    elif kind in (_VALUE, None):
        check_recorded(outline, value, name)
        return {}
    else:
        raise _unreadable(where)
    found: dict[int, Tensor] = {}
    for path, item, part in entries:
        found |= tensors_of(item, part, path, where)
    return found


def check_outline(outline: Json, n_tensors: int, where: str) -> None:
    """Refuses a structure that cannot be filled.

    Raises:
        FileError: it is no structure, or names a tensor that is none of ``n_tensors``.
    """
    kind, content = _read(outline, where)
    if kind == _TENSOR:
        if type(content) is not int or not 0 <= content < n_tensors:
            raise FileError(
                f"{where}: the outputs name tensor {content!r} of {n_tensors}; restore a copy, or save again"
            )
        return
    items: Sequence[Json] = ()
    if kind == _DICT and isinstance(content, dict):
        items = list(content.values())
    elif kind == _PAIRS:
        items = list(_pairs(content, where).values())
    elif kind in (_LIST, _TUPLE) and isinstance(content, list):
        items = content
    elif kind not in (_VALUE, None):
        raise _unreadable(where)
    for item in items:
        check_outline(item, n_tensors, where)


def numbers_in(outline: Json) -> list[int]:
    """The numbers of the tensors in an outline."""
    if isinstance(outline, list):
        return [number for item in outline for number in numbers_in(item)]
    if not isinstance(outline, dict):
        return []
    if set(outline) == {_TENSOR} and isinstance(number := outline[_TENSOR], int):
        return [number]
    return numbers_in(list(outline.values()))


def check_recorded(outline: Json, value: object, name: str) -> None:
    """Refuses another value of an argument without tensors than the one that was recorded.

    Raises:
        BatchesError: it differs, or is of a kind that no file keeps.
    """
    kept = outline.get(_VALUE) if isinstance(outline, dict) else None
    # Of one type first: a tensor would compare value by value.
    if type(value) is type(kept) and value == kept:
        return
    raise BatchesError(
        f"{name}={value!r}: the architecture was recorded with {name}={kept!r}, and computes nothing else; "
        "leave it out, or load by slimrank.load(directory, model=build())"
    )


def _entries(
    content: Mapping[str, Json] | Mapping[_Key, Json], value: object, name: str
) -> list[tuple[str, Json, object]]:
    """Path, structure and value of what stands in a dict."""
    if not isinstance(value, Mapping) or set(value) != set(content):
        raise BatchesError(f"{name}: give a dict with the keys {', '.join(map(str, content))}")
    return [(f"{name}.{key}", item, value[key]) for key, item in content.items()]


def _is_key(key: object) -> bool:
    return key is None or isinstance(key, str | int)


def _pairs(content: Json, where: str) -> dict[_Key, Json]:
    """The dict that was written as pairs."""
    if not isinstance(content, list):
        raise _unreadable(where)
    found: dict[_Key, Json] = {}
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2 or not _is_key(pair[0]):
            raise _unreadable(where)
        found[pair[0]] = pair[1]
    return found


def _read(outline: Json, where: str) -> tuple[str | None, Json]:
    if outline is None:
        return None, None
    if not isinstance(outline, dict) or len(outline) != 1:
        raise _unreadable(where)
    return next(iter(outline.items()))


def _unreadable(where: str) -> FileError:
    return FileError(f"{where}: a structure of tensors that this version does not read; save again")
