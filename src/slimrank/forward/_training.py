# SPDX-License-Identifier: Apache-2.0
"""Whether a model can be trained: one forward in training mode, and the backward pass."""

import torch
from torch import nn

from slimrank.forward._batch import Batch, named_tensors
from slimrank.forward._run import call
from slimrank.forward._seed import fixed_seed_without_warnings
from slimrank.forward._source_line import error_with_source_line


def training_error(model: nn.Module, sample: Batch) -> str | None:
    """The error that a forward in training mode, or its backward pass, raises.

    Args:
        model: a private copy; it is left in training mode, and gradients are left on its parameters.
        sample: one sample.

    Returns:
        The error in one line, with the line of the user's code; None where there is no error.
    """
    model.train()
    try:
        with torch.enable_grad(), fixed_seed_without_warnings(model):
            result = call(model, sample)
            sums = [tensor.float().sum() for _, tensor in named_tensors(result) if tensor.requires_grad]
            if sums:
                torch.stack(sums).sum().backward()
    except Exception as error:
        return error_with_source_line(error)
    return None
