# SPDX-License-Identifier: Apache-2.0
"""int8 in ``.pt2`` files: quantize and dequantize operations, which ``torch.compile`` makes int8 kernels of."""

import platform
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import Node

from slimrank.deploy._pt2e import quantize_program, torchao_package
from slimrank.deploy._program import Program
from slimrank.deploy._quantizer import Quantized
from slimrank.forward import Batch
from slimrank.records import Note

_X86 = ("x86_64", "amd64", "i386", "i686")
