# SPDX-License-Identifier: Apache-2.0
"""Arguments of a recorded graph as JSON and back; which operations such a graph may call."""

import math
import operator
import re
from collections.abc import Callable, Mapping

import torch
from torch._ops import OpOverload

from slimrank._errors import FileError
from slimrank.files import Json

# Calls that are no operation of torch: arithmetic of sizes, and parts of what an operation returned.
_FUNCTIONS: Mapping[str, Callable[..., object]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_max", "sym_min", "sym_not", "sym_int", "sym_float", "sym_ite")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
# The only namespace of operations.
_NAMESPACE = "aten"
# Names that begin with _ are inner parts of torch, many of which check none of their arguments. These are in
# graphs of torch.export, and check theirs.
_PRIVATE = frozenset(
    {
        *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"),
        *("__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"),
        *("_softmax", "_log_softmax", "_safe_softmax", "_to_copy", "_unsafe_view", "_unique2"),
        *("_local_scalar_dense", "_shape_as_tensor", "_conj", "_conj_physical", "_neg_view"),
        *("_assert_async", "_assert_scalar", "_assert_tensor_metadata"),
        *("_functional_assert_async", "_functional_assert_scalar"),
        *("_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_weight_norm"),
        *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    }
)
# Parts of the names of operations that change where a tensor lies or how long it is, read or write files,
# take addresses packed as tensors, or serve one device or training. as_strided itself stays: torch refuses
# sizes and strides that leave the memory of its tensor.
_REFUSED_PARTS = re.compile(
    "unsafe|set_$|^set$|set_data|resize|as_strided_|sparse|backward|jvp|nested|padded|file|save|print|warn"
    "|record_stream|pin_memory|pinned|^quantize|quantized|^q_|qparams|moving_avg|fbgemm|mkldnn|mps|cudnn"
    "|miopen|vulkan|xla|overrideable|^native_|batch_norm_|dense_tensors|grad"
)
# Parts of names that the expression above finds, of operations that check what they are given.
_CHECKED = frozenset({"unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"})
# These use numbers in their tensors as positions without a check: pivots, lengths, samples.
_UNCHECKED = frozenset(
    {
        *("lu_solve", "linalg_lu_solve", "linalg_ldl_solve", "lu_unpack"),
        *("segment_reduce", "fractional_max_pool2d", "fractional_max_pool3d"),
    }
)
# Kinds of torch that stand in arguments by their name.
_NAMED_KINDS: Mapping[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
# An argument that is the device of the model, wherever that is.
DEVICE = "device"


def function_name(function: object) -> str | None:
    """The name of what a graph calls; None where a recorded graph may not call it."""
    if isinstance(function, OpOverload):
        name = f"{function.namespace}.{function._opname}.{function._overloadname}"
        return name if _why_refused(function) is None else None
    try:
        return _FUNCTION_NAMES.get(function)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # a callable without a hash
        return None


def function_named(name: str, where: str) -> Callable[..., object]:
    """The function of a name that ``function_name`` gave.

    Args:
        name: in a file.
        where: the file, for errors.

    Returns:
        An operation of torch, or one of a few functions of Python on numbers. Nothing is imported, and no
        name is evaluated.

    Raises:
        FileError: no such function, in this version of torch at least.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != _NAMESPACE:
        raise FileError(
            f"{where}: {name!r} is no operation that a recorded program may call; restore a copy, or save "
            "again"
        )
    packet = getattr(torch.ops.aten, parts[1], None)
    found = getattr(packet, parts[2], None)
    if not isinstance(found, OpOverload):
        raise FileError(f"{where}: there is no operation {name!r} in torch {torch.__version__}")
    reason = _why_refused(found)
    if reason is not None:
        raise FileError(f"{where}: {name!r} {reason}; restore a copy, or save again")
    return found


def _why_refused(operation: OpOverload) -> str | None:
    """Why a recorded graph may not call an operation of torch; None where it may."""
    if operation.namespace != _NAMESPACE:
        return f"is not one of torch's own ({_NAMESPACE})"
    # What the dispatcher does not know works on texts and lists of Python, as torch.jit needs it.
    if not torch._C._dispatch_has_kernel(operation.name()):
        return "computes no tensors"
    if any(argument.is_out for argument in operation._schema.arguments):
        return "writes into tensors that it is given (out=)"
    name = operation._opname
    is_plain = name in _PRIVATE if name.startswith("_") else not _REFUSED_PARTS.search(name)
    if name in _UNCHECKED or not (is_plain or name in _CHECKED):
        return "may do more than compute tensors from arguments that it checks"
    return None


def check_arguments(function: Callable[..., object], n_args: int, keywords: Mapping[str, Json]) -> str | None:
    """How a call does not fit an operation as this version of torch has it; None where it fits."""
    if not isinstance(function, OpOverload):
        return None if not keywords else "takes no keywords"
    known = [argument.name for argument in function._schema.arguments]
    if n_args > len(known):
        return f"takes at most {len(known)} arguments, not {n_args}"
    unknown = [name for name in keywords if name not in known[n_args:]]
    return f"takes no argument {unknown[0]!r}" if unknown else None


def value_to_json(value: object) -> Json:
    """An argument that is no result of the graph, as JSON.

    Raises:
        TypeError: for what no file can keep.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.device):
        return {DEVICE: True}
    for kind, type_ in _NAMED_KINDS.items():
        if isinstance(value, type_):
            return {kind: str(value).removeprefix("torch.")}
    raise TypeError(f"a {type(value).__name__}")


def value_from_json(value: Mapping[str, Json], where: str) -> object:
    """An argument that ``value_to_json`` wrote as an object, but for devices.

    Raises:
        FileError: it is of no kind that is known.
    """
    kind, name = next(iter(value.items())) if len(value) == 1 else ("", None)
    if kind == "float" and name in ("inf", "-inf", "nan"):
        return float(str(name))
    found = getattr(torch, str(name), None) if kind in _NAMED_KINDS else None
    if found is None or not isinstance(found, _NAMED_KINDS[kind]):
        raise FileError(
            f"{where}: no argument of a graph that this version reads; restore a copy, or save again"
        )
    return found
