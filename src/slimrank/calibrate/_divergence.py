# SPDX-License-Identifier: Apache-2.0
"""Divergence of a model from the original, measured."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.calibrate._likelihood import Likelihood, LikelihoodChoice, choose_likelihood, divergence
from slimrank.calibrate._rows import token_mask
from slimrank.forward import Batch, OutputChoice, pick_outputs, run


def reference_outputs(
    model: nn.Module, batches: Sequence[Batch], outputs: OutputChoice
) -> list[Mapping[str, Tensor]]:
    """Outputs of the original over batches.

    Args:
        model: in eval mode.
        batches: what to run.
        outputs: which tensors matter.

    Returns:
        Tensors by path, per batch.
    """
    with torch.no_grad():
        return [
            {name: tensor.clone() for name, tensor in pick_outputs(run(model, batch), outputs).items()}
            for batch in batches
        ]


def read_likelihood(references: Sequence[Mapping[str, Tensor]], choice: LikelihoodChoice) -> Likelihood:
    """Chooses how outputs are read, from outputs over some data.

    Args:
        references: from ``reference_outputs``.
        choice: what the caller asked for.

    Returns:
        The likelihood.
    """
    joined: dict[str, Tensor] = {}
    for name, first in references[0].items():
        tensors = [reference[name] for reference in references]
        has_same_shapes = all(tensor.shape[1:] == first.shape[1:] for tensor in tensors)
        # Outputs whose shape changes from batch to batch cannot be joined: the first batch speaks for all.
        joined[name] = torch.cat(tensors) if has_same_shapes and first.ndim else first
    return choose_likelihood(joined, choice)


def measure_divergence(
    results: Iterable[object],
    references: Iterable[Mapping[str, Tensor]],
    batches: Iterable[Batch],
    likelihood: Likelihood,
    outputs: OutputChoice,
) -> float:
    """Mean divergence per sample, one batch at a time.

    Args:
        results: what a model returned, per batch.
        references: outputs of the original, per batch.
        batches: the inputs, for their token masks.
        likelihood: how outputs are read.
        outputs: which tensors matter.

    Returns:
        The divergence, 0 for identical outputs; inf where an output is not finite.
    """
    total, n_samples = 0.0, 0
    for result, reference, batch in zip(results, references, batches, strict=True):
        picked = pick_outputs(result, outputs)
        per_sample = divergence(likelihood, reference, picked, token_mask(batch), batch.n_samples)
        total += float(per_sample.double().sum())
        n_samples += batch.n_samples
    mean = total / max(n_samples, 1)
    # A comparison with nan is always false; inf counts as the worst.
    return float("inf") if math.isnan(mean) else mean
