# SPDX-License-Identifier: Apache-2.0
"""The fewest samples of a batch that a model runs on, where it does not take every number of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError
from slimrank.forward._batch import Batch, named_tensors, take_samples
from slimrank.forward._run import run


def few_samples(model: nn.Module, batch: Batch) -> Batch:
    """Twice the fewest samples that a model runs on, such as the frames of two clips.

    Code may ask for a multiple of some number of samples (frames or views that are folded into the batch).
    Twice, since code that works for one clip only must fail.

    Args:
        model: in eval mode; it runs on the whole batch.
        batch: that is cut.

    Returns:
        The first samples of the batch; the whole batch where the model runs on nothing less.
    """
    n_samples = batch.n_samples
    if n_samples <= 2:
        return batch
    expected = _outputs(model, batch)
    # Whatever number it asks for multiples of, the whole batch is one.
    for count in (count for count in range(1, n_samples // 2 + 1) if n_samples % count == 0):
        if _runs(model, take_samples(batch, range(count)), expected):
            twice = take_samples(batch, range(2 * count))
            return twice if _runs(model, twice, expected) else batch
    return batch


def _runs(model: nn.Module, batch: Batch, expected: Mapping[str, Tensor]) -> bool:
    """Whether the outputs hold numbers, as those of the whole batch do: half of a pair may give none."""
    try:
        outputs = _outputs(model, batch)
    except BatchesError:
        return False
    return list(outputs) == list(expected) and all(
        (outputs[name].numel() > 0 or not tensor.numel())
        and bool(outputs[name].isfinite().all() or not tensor.isfinite().all())
        for name, tensor in expected.items()
    )


def _outputs(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return dict(named_tensors(run(model, batch)))
