# SPDX-License-Identifier: Apache-2.0
"""int8 in ``.pte`` files: what XNNPACK has integer kernels for."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from slimrank.deploy._executorch import executorch_package, write_executorch
from slimrank.deploy._program import Program
from slimrank.deploy._pt2e import Int8Program, quantize_program
from slimrank.deploy._quantizer import Quantized
from slimrank.forward import Batch

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer as GraphQuantizer

_QUANTIZER = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"


def write_executorch_int8(
    program: Program,
    float_path: Path,
    path: Path,
    batches: Sequence[Batch],
    kept: Collection[str],
    *,
    is_dynamic: bool = False,
) -> Quantized:
    """Writes a program in int8.

    Args:
        program: that the float file was made of.
        float_path: of the float file.
        path: of the file to write.
        batches: to calibrate with.
        kept: layers that stay in float.
        is_dynamic: weights of Linear layers alone are quantised; their inputs are measured when it runs, so
            batches are not used.

    Returns:
        What became of the layers.

    Raises:
        ExportError: not of this model, or ExecuTorch cannot write it.
        MissingPackageError: a package is not installed.
    """
    del float_path
    made = quantize_program(
        program, _make_quantizer(is_dynamic=is_dynamic), [] if is_dynamic else batches, kept
    )
    where = "in float where values are measured as it runs" if is_dynamic else "in float"
    return _written(made, path, where)


def _make_quantizer(*, is_dynamic: bool) -> Callable[[Callable[[Node], bool]], "GraphQuantizer"]:
    """What makes XNNPACK's quantizer, weights per output channel."""
    module = executorch_package(_QUANTIZER)
    config = module.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)

    def make(may_be_quantised: Callable[[Node], bool]) -> "GraphQuantizer":
        quantizer: GraphQuantizer = module.XNNPACKQuantizer()
        if is_dynamic:
            quantizer.set_operator_type(torch.ops.aten.linear.default, config)
        else:
            quantizer.set_global(config)
        return quantizer.set_filter_function(may_be_quantised)

    return make


def _written(made: Int8Program, path: Path, where: str) -> Quantized:
    write_executorch(made.program, path)
    left = tuple((name, f"XNNPACK's quantizer leaves {operation} {where}") for name, operation in made.left)
    return Quantized(layers=made.layers, left=left)
