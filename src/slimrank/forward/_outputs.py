# SPDX-License-Identifier: Apache-2.0
"""The tensors that matter among what a model returns."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard, cast

import torch
from torch import Tensor

from slimrank._errors import OptionError, OutputError, SlimrankError
from slimrank._names import listed, nearest
from slimrank.forward._batch import map_tensors, named_tensors

OutputKey = str | int
OutputChoice = Callable[[object], object] | OutputKey | Sequence[OutputKey] | None


class Picked(Mapping[str, Tensor]):
    """Floating tensors by path ("" for a bare tensor), and the structure that they stand in.

    Args:
        structure: what was picked, as the model returned it.
        tensors: those of its tensors that a divergence is measured on, by path.
    """

    def __init__(self, structure: object, tensors: Mapping[str, Tensor]) -> None:
        self.structure = structure
        self._tensors = tensors

    def __getitem__(self, path: str) -> Tensor:
        return self._tensors[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Picked":
        """The same structure with every tensor that is measured changed; the others stay."""
        new = {id(tensor): change(tensor) for tensor in self._tensors.values()}
        structure = map_tensors(self.structure, lambda tensor: new.get(id(tensor), tensor))
        return Picked(structure, {path: new[id(tensor)] for path, tensor in self._tensors.items()})


def check_outputs(choice: object) -> None:
    """Refuses what is neither a function, nor a key, nor an index, nor a list of keys and indices.

    Raises:
        OptionError: with what is allowed.
    """
    if choice is None or callable(choice) or _is_key(choice):
        return
    is_no_list = not isinstance(choice, Sequence) or isinstance(choice, bytes)
    if is_no_list or not all(_is_key(key) for key in cast(Sequence[object], choice)):
        raise OptionError(
            f"outputs={choice!r}; give a key, an index, a list of them, or a function of what the model "
            "returns"
        )
    keys = cast(Sequence[OutputKey], choice)
    if not keys:
        raise OptionError("outputs is empty; name at least one output, or leave it out for all of them")
    _check_once(choice, keys)


def _check_once(choice: object, names: Sequence[object]) -> None:
    if len(set(names)) < len(names):
        raise OptionError(f"outputs={choice!r} names an output twice; name each once")


def pick_outputs(result: object, choice: OutputChoice) -> Picked:
    """The floating tensors that a divergence is measured on.

    Args:
        result: what the model returned.
        choice: a function of it, a key, an index, a list of keys and indices, or None: ``logits`` where there
            is one, else all floating tensors. A key with dots leads into containers, as paths do.

    Returns:
        Tensors by their path in what the model returned; in what a function returned where the choice is one.

    Raises:
        OutputError: nothing floating is left, or the choice does not fit the result.
        OptionError: a list that names an output twice.
    """
    structure, named = _chosen(result, choice)
    tensors = {name: tensor for name, tensor in named if _is_measured(tensor)}
    if choice is None:
        logits = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "logits"}
        tensors = logits or tensors
    if not tensors:
        what = f"the model returned {_described(result)}"
        if choice is not None:
            how = "function" if callable(choice) else repr(choice)
            what += f", and outputs={how} picks {_described(structure)}"
        raise OutputError(
            f"{what} without a floating tensor that can be compared; pass outputs=lambda out: ... that picks "
            "the tensors that matter, or wrap the model so that it returns what it has before an argmax"
        )
    return Picked(structure, tensors)


def path_within(path: str, choice: OutputChoice) -> str:
    """The path of a picked tensor in what one key or index picks; as it is for any other choice.

    Args:
        path: as ``pick_outputs`` tells it, in what the model returned.
        choice: as given to it.
    """
    if isinstance(choice, int):
        # An index from the end, or into a mapping, does not stand in the path as it was typed.
        return path.partition(".")[2]
    return path.removeprefix(choice).removeprefix(".") if isinstance(choice, str) else path


def _chosen(result: object, choice: OutputChoice) -> tuple[object, list[tuple[str, Tensor]]]:
    """What was chosen, as a loss of the caller's sees it, and its tensors by path."""
    if choice is None:
        return result, list(named_tensors(result))
    if _is_key(choice):
        path, entry = _entry_at(result, choice, choice)
        return entry, list(named_tensors(entry, path))
    if isinstance(choice, Sequence):
        entries = [_entry_at(result, key, choice) for key in choice]
        named = [pair for path, entry in entries for pair in named_tensors(entry, path)]
        # An index from the end, or a part of what stands in the list as a whole.
        _check_once(choice, [path for path, _ in entries])
        _check_once(choice, [path for path, _ in named])
        for path, entry in entries:
            if not any(_is_measured(tensor) for _, tensor in named_tensors(entry)):
                raise OutputError(
                    f"outputs={choice!r}: {path!r} is {_described(entry)} without a floating tensor of "
                    "samples; leave it out, or pass a function where a loss of your own needs it"
                )
        if any(isinstance(key, str) for key in choice):
            return {key: entry for key, (_, entry) in zip(choice, entries, strict=True)}, named
        return tuple(entry for _, entry in entries), named
    try:
        picked = cast(Callable[[object], object], choice)(result)
    except (SlimrankError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise OutputError(
            f"outputs= failed on what the model returned, {_described(result)} "
            f"({type(error).__name__}: {error}); give a function of it, a key, an index or a list of them"
        ) from error
    return picked, list(named_tensors(picked))


def _is_measured(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0


def _is_key(value: object) -> TypeGuard[OutputKey]:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _entry_at(result: object, key: OutputKey, choice: object) -> tuple[str, object]:
    """An entry of what the model returned and its path; a key with dots leads into containers."""
    found = _entry_of(result, key)
    if found is not None:
        return found
    if isinstance(key, str) and "." in key:
        path, entry = [], result
        for part in key.split("."):
            step = _entry_of(entry, part)
            if step is None and part.isdecimal():
                step = _entry_of(entry, int(part))
            if step is None:
                break
            path.append(step[0])
            entry = step[1]
        else:
            return ".".join(path), entry
    raise OutputError(f"outputs={choice!r}: {_why_not(result, key)}")


class _Indexed(Protocol):
    def __getitem__(self, key: OutputKey) -> object: ...

    def __len__(self) -> int: ...


def _entry_of(value: object, key: OutputKey) -> tuple[str, object] | None:
    """An entry of a container and its name; None where it has no such entry."""
    if isinstance(value, Mapping) and key in value:
        return str(key), value[key]
    if isinstance(key, str):
        has_key = not isinstance(value, Mapping) and key in _keys_of(value)
        return (key, getattr(value, key)) if has_key else None
    # Mappings that can be indexed as well are those of transformers.
    names = list(value) if isinstance(value, Mapping) and hasattr(value, "to_tuple") else None
    if names is None and not isinstance(value, tuple | list):
        return None
    indexed = cast(_Indexed, value)
    if not -len(indexed) <= key < len(indexed):
        return None
    return str(key % len(indexed) if names is None else names[key]), indexed[key]


def _keys_of(value: object) -> list[str]:
    """Names under which something holds outputs."""
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [str(name) for name in value._fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list | Tensor | str):
        return []
    return list(vars(value)) if hasattr(value, "__dict__") else []


def _described(result: object) -> str:
    """What a model returned, for errors: its type, and its keys or length."""
    if isinstance(result, Tensor):
        kind = "" if result.is_floating_point() else f" of {result.dtype}"
        return f"one tensor {list(result.shape)}{kind}"
    keys = _keys_of(result)
    if keys:
        return f"{_type_text(result)} with {listed(keys)}"
    if isinstance(result, tuple | list):
        return f"{_type_text(result)} of {len(result)}"
    return _type_text(result)


def _type_text(result: object) -> str:
    name = type(result).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _why_not(result: object, key: OutputKey) -> str:
    if isinstance(result, Tensor):
        return (
            f"the model returns {_described(result)}, so {key!r} names none of several outputs; leave "
            "outputs= out, or give a function such as outputs=lambda out: out[:, :10]"
        )
    keys = _keys_of(result)
    if isinstance(key, str) and keys:
        known = [*keys, *(path for path, _ in named_tensors(result))]
        return f"the model returns {_type_text(result)}, and {key!r} is not in it; {nearest(key, known)}"
    if isinstance(result, tuple | list) or hasattr(result, "to_tuple"):
        length = len(cast(_Indexed, result))
        allowed = f"indices from 0 to {length - 1}"
        if isinstance(key, str):
            return f"the model returns {_described(result)}, without keys; give {allowed}"
        return f"{key} is out of range, the model returns {_described(result)}; give {allowed}"
    advice = "; give a key" if keys else "; give a function such as outputs=lambda out: ..."
    return f"the model returns {_described(result)}, which has no entry {key!r}{advice}"
