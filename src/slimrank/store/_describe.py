# SPDX-License-Identifier: Apache-2.0
"""What a function does, as text: ties what was measured with it to it, in every process."""

from collections.abc import Mapping, Sequence, Set
from functools import partial, singledispatch
from types import CodeType, FunctionType, MethodType

from torch import Tensor, nn

from slimrank.store._store import digest_tensors

_DEPTH = 8


def describe(value: object) -> str:
    """A function, a module or a plain value, as far as code, options and what it holds tell.

    Args:
        value: anything; of functions their code, defaults and what they enclose is read, of modules their
            options and tensors, of other objects the type alone.

    Returns:
        A text without addresses, the same in every process.
    """
    return _told(value, _DEPTH)


def _told(value: object, depth: int) -> str:
    return _described(value, depth) if depth > 0 else _name(value)


@singledispatch
def _described(value: object, _depth: int) -> str:
    return _name(value)


def _name(value: object) -> str:
    named = value if isinstance(value, type | FunctionType) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


@_described.register
def _plain(value: bool | int | float | str | bytes | None, _depth: int) -> str:
    return repr(value)


@_described.register
def _tensor(value: Tensor, _depth: int) -> str:
    return f"tensor {digest_tensors({'': value})}"


@_described.register(Mapping)
def _mapping(value: Mapping[object, object], depth: int) -> str:
    return f"{{{', '.join(f'{_told(k, depth - 1)}: {_told(v, depth - 1)}' for k, v in value.items())}}}"


@_described.register(Set)
def _set(value: Set[object], depth: int) -> str:
    return f"{{{', '.join(sorted(_told(item, depth - 1) for item in value))}}}"


@_described.register(Sequence)
def _sequence(value: Sequence[object], depth: int) -> str:
    return f"[{', '.join(_told(item, depth - 1) for item in value)}]"


@_described.register
def _method(value: MethodType, depth: int) -> str:
    return f"{_told(value.__func__, depth - 1)} of {_told(value.__self__, depth - 1)}"


@_described.register(partial)
def _partial(value: "partial[object]", depth: int) -> str:
    return _told((value.func, value.args, value.keywords), depth - 1)


@_described.register
def _function(function: FunctionType, depth: int) -> str:
    enclosed: list[object] = []
    for cell in function.__closure__ or ():
        try:
            enclosed.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            enclosed.append(None)
    held = (function.__defaults__, function.__kwdefaults__, enclosed)
    return f"{_code(function.__code__, depth)} {_told(held, depth - 1)}"


@_described.register
def _code(code: CodeType, depth: int) -> str:
    # Doc strings and names of places say nothing; the repr of code holds an address, that of a set no order.
    constants = [_told(constant, depth - 1) for constant in code.co_consts]
    return repr((code.co_code, constants, code.co_names))


@_described.register
def _module(module: nn.Module, _depth: int) -> str:
    # A loss shows neither its options nor its weights.
    options = [
        sorted((key, value) for key, value in vars(part).items() if isinstance(value, str | float | int))
        for part in module.modules()
    ]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return f"{module!r} {options} {digest_tensors(tensors)}"
