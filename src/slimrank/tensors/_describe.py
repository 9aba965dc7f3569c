# SPDX-License-Identifier: Apache-2.0
"""What a function does, as text: what was measured with a function is tied to it by this text."""

from collections.abc import Mapping, Sequence, Set
from functools import partial, singledispatch
from types import CodeType, FunctionType, MethodType

from torch import Tensor, nn

from slimrank.tensors._tensors import digest_tensors

# How deep objects inside objects are read: enough for functions that hold functions, and an end where objects
# hold themselves.
_MAX_DEPTH = 8


def describe(value: object) -> str:
    """A function, a module or a plain value, described by its code, its options and what it holds.

    Args:
        value: anything; read are of functions their code, defaults and closure, of modules their options and
            tensors, of other objects the type alone.

    Returns:
        A text without addresses, the same in every process.
    """
    return _text_of(value, _MAX_DEPTH)


def _text_of(value: object, depth: int) -> str:
    return _text_by_type(value, depth) if depth > 0 else _type_name(value)


@singledispatch
def _text_by_type(value: object, _depth: int) -> str:
    return _type_name(value)


def _type_name(value: object) -> str:
    named = value if isinstance(value, type | FunctionType) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


@_text_by_type.register
def _plain_text(value: bool | int | float | str | bytes | None, _depth: int) -> str:
    return repr(value)


@_text_by_type.register
def _tensor_text(value: Tensor, _depth: int) -> str:
    return f"tensor {digest_tensors({'': value})}"


@_text_by_type.register(Mapping)
def _mapping_text(value: Mapping[object, object], depth: int) -> str:
    items = (f"{_text_of(key, depth - 1)}: {_text_of(item, depth - 1)}" for key, item in value.items())
    return f"{{{', '.join(items)}}}"


@_text_by_type.register(Set)
def _set_text(value: Set[object], depth: int) -> str:
    return f"{{{', '.join(sorted(_text_of(item, depth - 1) for item in value))}}}"


@_text_by_type.register(Sequence)
def _sequence_text(value: Sequence[object], depth: int) -> str:
    return f"[{', '.join(_text_of(item, depth - 1) for item in value)}]"


@_text_by_type.register
def _method_text(value: MethodType, depth: int) -> str:
    return f"{_text_of(value.__func__, depth - 1)} of {_text_of(value.__self__, depth - 1)}"


@_text_by_type.register(partial)
def _partial_text(value: "partial[object]", depth: int) -> str:
    return _text_of((value.func, value.args, value.keywords), depth - 1)


@_text_by_type.register
def _function_text(function: FunctionType, depth: int) -> str:
    enclosed: list[object] = []
    for cell in function.__closure__ or ():
        try:
            enclosed.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            enclosed.append(None)
    held = (function.__defaults__, function.__kwdefaults__, enclosed)
    return f"{_code_text(function.__code__, depth)} {_text_of(held, depth - 1)}"


@_text_by_type.register
def _code_text(code: CodeType, depth: int) -> str:
    # Without file names and line numbers, which do not change what code does. Constants are described one by
    # one: the repr of inner code holds an address, that of a set has another order in each process.
    constants = [_text_of(constant, depth - 1) for constant in code.co_consts]
    return repr((code.co_code, constants, code.co_names))


@_text_by_type.register
def _module_text(module: nn.Module, _depth: int) -> str:
    # The repr of a module may leave out its options and tensors, as that of a loss does.
    options = [
        sorted((key, value) for key, value in vars(part).items() if isinstance(value, str | float | int))
        for part in module.modules()
    ]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return f"{module!r} {options} {digest_tensors(tensors)}"
