# SPDX-License-Identifier: Apache-2.0
"""An ONNX file, read as a module."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesTypeError, FileError, ModelError, OptionError
from slimrank._names import listed
from slimrank._numbers import whole_number
from slimrank.deploy import import_package, relative_difference, session_options
from slimrank.forward import eval_mode, named_tensors, outside_inference_mode

_EXTRA = "onnx2torch"
_WHAT = "slimrank.from_onnx"
# Operations of rounded weights and values, beside those whose names begin with QLinear.
_QUANTISED = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("MatMulNBits", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QMoE"),
}
# Sizes that the file leaves free: of the first dimension, and of others, which may be times or pixels.
_FREE_BATCH, _FREE_SIZE = 2, 64
# Largest relative difference between file and module: they add in other orders, which costs some 1e-6.
_BOUND = 1e-3


@outside_inference_mode
def from_onnx(
    path: str | os.PathLike[str], *, example: Sequence[Tensor] | None = None, seed: int = 0
) -> nn.Module:
    """A module of an ONNX file, that can be compressed; it answers as the file does in onnxruntime.

    The package onnx2torch makes the module (``pip install 'slimrank[onnx2torch]'``); names of layers are not
    those of the model that the file was made from.

    Args:
        path: of the file, in float.
        example: inputs that both are run with, one tensor for each input of the file in its order; None for
            random numbers, of the shapes in the file.
        seed: of the random numbers.

    Returns:
        The module, in eval mode. It takes its inputs in the order of the file.

    Raises:
        FileError: there is no such file, or it is no ONNX file.
        MissingPackageError: a package is not installed; the message has the line for pip.
        ModelError: the file is quantised, holds an operation that cannot be converted, cannot be run, or the
            module answers otherwise than it.
        BatchesTypeError: ``example`` is not one tensor for each input.
    """
    file = Path(path)
    onnx = import_package("onnx", extra=_EXTRA, what=_WHAT)
    ort = import_package("onnxruntime", extra=_EXTRA, what=_WHAT)
    if not file.is_file():
        raise FileError(f"{file} is not there; give the path of an ONNX file")
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:
        raise FileError(f"{file} is no ONNX file, or its weights are not beside it ({error})") from error
    _check_float(graph, file)
    onnx2torch = import_package("onnx2torch", extra=_EXTRA, what=_WHAT)
    try:
        session = ort.InferenceSession(str(file), session_options(ort, 1), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"{file}: onnxruntime cannot open it ({error}); export the file anew") from error
    number = whole_number(seed)
    if number is None:
        raise OptionError(f"seed={seed!r}; give a whole number")
    inputs = _random_inputs(session.get_inputs(), file, number) if example is None else list(example)
    _check_inputs(inputs, session.get_inputs(), file)
    try:
        model: nn.Module = onnx2torch.convert(str(file)).eval()
    except Exception as error:
        raise ModelError(
            f"{file} cannot be converted: {_refusal(graph, error)}; export the model without it, or give the "
            "nn.Module that the file was made from"
        ) from error
    _compare(model, session, inputs, file)
    return model


def _check_float(graph: Any, file: Path) -> None:  # noqa: ANN401 - onnx has no types
    """Refuses files of rounded weights or values."""
    kinds = sorted({node.op_type for node in graph.node})
    found = [kind for kind in kinds if kind in _QUANTISED or kind.startswith("QLinear")]
    if found:
        raise ModelError(
            f"{file} is quantised (it holds {', '.join(found)}), and what is rounded cannot be decomposed; "
            "give the float file, and quantise the result: result.export('m.onnx', quantize='int8')"
        )


def _random_inputs(declared: Iterable[Any], file: Path, seed: int) -> list[Tensor]:
    """Numbers for each input that a file declares."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for value in declared:
        shape = [
            size if isinstance(size, int) and size > 0 else (_FREE_SIZE if index else _FREE_BATCH)
            for index, size in enumerate(value.shape)
        ]
        dtype = _DTYPES.get(value.type)
        if dtype is None:
            raise ModelError(
                f"{file}: input {value.name!r} is a {value.type}; give a file that takes tensors of numbers"
            )
        if dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            # Numbers of words, masks: zero and one are both, whatever there is.
            made.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return made


_DTYPES: Mapping[str, torch.dtype] = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def _check_inputs(inputs: Sequence[object], declared: Sequence[Any], file: Path) -> None:
    names = [value.name for value in declared]
    if len(inputs) != len(names) or not all(isinstance(tensor, Tensor) for tensor in inputs):
        kinds = ", ".join(type(tensor).__name__ for tensor in inputs)
        raise BatchesTypeError(
            f"example holds {len(inputs)} ({kinds}), and {file} takes {len(names)}: {listed(names)}; give "
            "one tensor for each, in this order"
        )


def _refusal(graph: Any, error: Exception) -> str:  # noqa: ANN401 - onnx has no types
    """Which operation was refused, and where it stands."""
    text = str(error) or type(error).__name__
    counts = Counter(node.op_type for node in graph.node)
    named = re.search(r"operation_type='(\w+)'", text)
    kind = named[1] if named else next((kind for kind in counts if re.search(rf"\b{kind}\b", text)), None)
    node = next((node for node in graph.node if node.op_type == kind), None)
    if node is None:
        return text
    others = f" and {counts[node.op_type] - 1} more" if counts[node.op_type] > 1 else ""
    place = node.name or f"which makes {node.output[0]!r}"
    return f"onnx2torch cannot convert the operation {node.op_type} ({place}{others}): {text}"


def _compare(model: nn.Module, session: Any, inputs: Sequence[Tensor], file: Path) -> None:  # noqa: ANN401
    """Refuses a module that answers otherwise than the file."""
    cure = "pass example=[...], inputs of the sizes that the model takes"
    feeds = {
        value.name: tensor.detach().cpu().numpy()
        for value, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    names = [value.name for value in session.get_outputs()]
    try:
        expected = [torch.as_tensor(output) for output in session.run(names, feeds)]
    except Exception as error:
        raise ModelError(f"{file}: onnxruntime fails on {_told(inputs)} ({error}); {cure}") from error
    try:
        with torch.no_grad(), eval_mode(model):
            found = [tensor for _, tensor in named_tensors(model(*inputs))]
    except Exception as error:
        raise ModelError(
            f"{file}: the converted module fails on {_told(inputs)} ({error}); {cure}"
        ) from error
    if len(found) != len(expected):
        raise ModelError(
            f"{file}: the converted module gives {len(found)} outputs, the file {len(expected)}; give the "
            "nn.Module that it was made from"
        )
    for name, before, after in zip(names, expected, found, strict=True):
        difference = relative_difference(before, after)
        # Written so that nan fails.
        if not difference <= _BOUND:
            raise ModelError(
                f"{file}: output {name!r} of the converted module differs by {difference:.1e} of its largest "
                f"value from the file in onnxruntime, more than {_BOUND:.0e}: onnx2torch converted an "
                "operation wrongly; give the nn.Module that the file was made from"
            )


def _told(inputs: Sequence[Tensor]) -> str:
    return "inputs " + ", ".join(
        f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in inputs
    )
