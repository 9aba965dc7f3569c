# SPDX-License-Identifier: Apache-2.0
"""Torch's fused transformer layers, which read the tensors of their parts instead of calling them."""

from torch import nn


def unfuse(model: nn.Module, changed: nn.Module) -> None:
    """Lets torch's transformer layers around a module call their parts in every case (in place).

    In evaluation they pass the weights of all parts to one kernel; where a part is no longer what that kernel
    expects, they must not. They compute the same without it.

    Args:
        model: the tree.
        changed: a module that is going to be changed or replaced.
    """
    for module in model.modules():
        # These attributes tell nothing else than whether the kernel can be used.
        if isinstance(module, nn.TransformerEncoderLayer) and _holds(module, changed):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and _holds(module, changed):
            module.use_nested_tensor = False


def without_nesting(model: nn.Module) -> None:
    """Lets torch's encoders compute padded positions like all others (in place).

    In evaluation they may leave these out, and give zeros there; in training they never do.

    Args:
        model: the tree.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _holds(module: nn.Module, other: nn.Module) -> bool:
    return any(part is other for part in module.modules())
