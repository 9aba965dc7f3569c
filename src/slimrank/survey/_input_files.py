# SPDX-License-Identifier: Apache-2.0
"""Calibration batches on disk: tensors in safetensors, what they are made of in JSON."""

from collections.abc import Sequence

from torch import Tensor

from slimrank._errors import FileError
from slimrank.files import Json, Store
from slimrank.forward import Batch
from slimrank.tensors import read_tensors, write_tensors


def batches_to_files(store: Store, batches: Sequence[Batch]) -> str | None:
    """Keeps batches beside a study, so that it can go on in another process.

    Args:
        store: where.
        batches: what to keep.

    Returns:
        None, or why they cannot be kept (then nothing is written): an input that is neither tensor nor
        plain value.
    """
    tensors: dict[str, Tensor] = {}
    try:
        entries: list[Json] = [
            _encode(dict(batch.kwargs) if batch.kwargs else batch.args, str(index), tensors)
            for index, batch in enumerate(batches)
        ]
    except TypeError as error:
        return str(error)
    write_tensors(store.path_of("inputs.safetensors"), tensors)
    store.write_json("inputs.json", {"batches": entries})
    return None


def batches_from_files(store: Store) -> list[object]:
    """Batches that ``batches_to_files`` kept, as a loader would yield them.

    Args:
        store: where.

    Returns:
        Tuples of positional arguments, or dicts of keyword arguments.

    Raises:
        FileError: missing, truncated or altered.
    """
    tensors = read_tensors(store.root / "inputs.safetensors")
    listed = store.read_json("inputs.json").get("batches")
    if not isinstance(listed, list):
        raise FileError(f"{store.root / 'inputs.json'} holds no batches; restore a copy")
    return [_decode(entry, tensors) for entry in listed]


def _encode(value: object, path: str, tensors: dict[str, Tensor]) -> Json:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, list | tuple) and type(value) in {list, tuple}:
        items = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return {"list" if type(value) is list else "tuple": items}
    if isinstance(value, dict):
        # Pairs, since sorted JSON would lose the order, which tells the first tensor.
        return {"dict": [[str(key), _encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    raise TypeError(f"input {path} is a {type(value).__name__}")


def _decode(value: Json, tensors: dict[str, Tensor]) -> object:
    if not isinstance(value, dict) or len(value) != 1:
        raise FileError("inputs.json holds an entry of unknown kind; restore a copy")
    kind, content = next(iter(value.items()))
    if kind == "tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == "value":
        return content
    if kind in {"list", "tuple"} and isinstance(content, list):
        items = [_decode(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict" and isinstance(content, list):
        pairs = [pair for pair in content if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) == len(content):
            return {str(key): _decode(item, tensors) for key, item in pairs}
    raise FileError(f"inputs.json holds an entry of unknown kind {kind!r}; restore a copy")
