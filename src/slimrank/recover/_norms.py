# SPDX-License-Identifier: Apache-2.0
"""Running statistics of normalising layers: left alone, or estimated again."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from slimrank.forward import Batch, eval_mode, run


def running_norms(model: nn.Module) -> tuple[_NormBase, ...]:
    """Batch and instance norms that keep statistics of what passes them.

    Args:
        model: any module.

    Returns:
        The norms, each once.
    """
    return tuple(
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    )


def reestimate_(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Sets running statistics to their average over batches; modes and momenta are put back.

    Args:
        model: changed in place; all but its norms runs in eval mode.
        batches: on the device of the model; every batch counts the same, as in torch's ``update_bn``.

    Raises:
        BatchesError: the model refuses a batch.
    """
    norms = running_norms(model)
    if not norms:
        return
    momenta = {norm: norm.momentum for norm in norms}
    try:
        with eval_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            for count, batch in enumerate(batches, 1):
                for norm in norms:
                    # The cumulative average as a number: with None, instance norms would update nothing.
                    norm.momentum = 1 / count
                run(model, batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
