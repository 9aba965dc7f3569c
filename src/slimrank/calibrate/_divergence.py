# SPDX-License-Identifier: Apache-2.0
"""Divergence from the original's outputs, and the label-free loss whose curvature it has."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimrank._errors import NonFiniteError, OutputError
from slimrank.calibrate._output_model import Likelihood, OutputModel
from slimrank.calibrate._rows import is_mask_of, token_mask
from slimrank.calibrate._spread import matched_spread
from slimrank.forward import Batch, OutputChoice, Picked, pick_outputs, run

# Below the smallest probability that float16 holds, so that a logarithm is never infinite.
_LEAST_PROBABILITY = 1e-12
# Probabilities this close to 0 or 1 count as that far away, so that their logits are finite.
_LOGIT_MARGIN = 1e-6


def reference_outputs(
    model: nn.Module, batches: Iterable[Batch], outputs: OutputChoice, *, whole: bool = False
) -> list[Picked]:
    """Outputs of the original over batches.

    Args:
        model: in eval mode.
        batches: what to run.
        outputs: which tensors matter.
        whole: keep the structures they stand in, as a loss of the caller's needs; it may hold more tensors.

    Returns:
        Tensors by path, per batch.
    """
    references = []
    with torch.no_grad():
        for batch in batches:
            picked = pick_outputs(run(model, batch), outputs)
            copies = picked.changed(Tensor.clone)
            references.append(copies if whole else Picked(None, dict(copies)))
    return references


def sampled_loss(
    likelihood: Likelihood,
    picked: Picked,
    generator: torch.Generator,
    mask: Tensor | None,
    n_samples: int | None = None,
) -> Tensor:
    """A random loss of which the second moment of the gradient is the Fisher information of the outputs.

    In place of a drawn label each class takes part with the root of its probability and a random sign: the
    mean is the same, and one draw tells of every class.

    Args:
        likelihood: how outputs are read; where it has a loss of the caller's, the curvature of that is drawn.
        picked: outputs by path, with gradient.
        generator: on the CPU.
        mask: (N, T) bool, True for tokens that count; None for all.
        n_samples: N; None for the first dimension of the first output.

    Returns:
        Scalar float32: the loss summed (not averaged) over samples and positions.
    """
    if not likelihood.outputs:
        raise OutputError("there is no output to draw a loss from; pass outputs=")
    for path, tensor in picked.items():
        if not tensor.isfinite().all():
            raise NonFiniteError(
                f"output {path or 'of the model'} holds nan or inf on calibration samples; "
                "pass outputs= that picks finite tensors, or check weights and data"
            )
    if likelihood.loss is not None:
        return likelihood.loss.sampled(picked, generator, n_samples or len(next(iter(picked.values()))))
    losses = [
        # The second moment of gradients grows with the square of the loss.
        math.sqrt(output.weight) * _sampled(output, picked[path].float(), generator, mask)
        for path, output in likelihood.outputs.items()
    ]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def _sampled(output: OutputModel, values: Tensor, generator: torch.Generator, mask: Tensor | None) -> Tensor:
    token_weights = _token_weights(mask, values)
    if output.family == "categorical":
        log_p = _log_probabilities(values, output)
        # Not drawn labels: where one class is likely, these hardly ever tell of the others.
        root = (log_p.detach() / 2).exp() * _signs_like(log_p, generator)
        terms = (root * log_p).sum(output.dim)
        return (terms * token_weights).sum() if token_weights is not None else terms.sum()
    if output.family == "bernoulli":
        logits = values.logit(_LOGIT_MARGIN) if output.is_probability else values
        p = logits.detach().sigmoid()
        terms = (p * (1 - p)).sqrt() * _signs_like(p, generator) * logits
        return (terms * _over_elements(token_weights, terms)).sum()
    noise = _signs_like(values, generator)
    scale = matched_scale(output, values)
    # Divided by the number of elements, so that the quadratic form is in the unit of the divergence.
    count = max(1, values[0].numel())
    return (values / scale * noise * _over_elements(token_weights, values)).sum() * math.sqrt(2 / count)


def _signs_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """-1 and 1 with equal chances; drawn on the CPU, so that devices agree."""
    signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8)
    return signs.to(values.device, values.dtype) * 2 - 1


def divergence(
    likelihood: Likelihood,
    reference: Picked,
    picked: Picked,
    mask: Tensor | None,
    n_samples: int | None = None,
) -> Tensor:
    """Divergence from the original's outputs, per sample.

    Args:
        likelihood: how outputs are read.
        reference: outputs of the original, by path.
        picked: outputs of the compressed model.
        mask: (N, T) bool, True for tokens that count; None for all.
        n_samples: N; None for the first dimension of the first output. An output with another first dimension
            (layers first, one row for all) counts in equal parts for every sample.

    Returns:
        (N,) float32, the sum over outputs times their weights. Categorical and bernoulli: KL divergence in
        nats, summed over positions. Gaussian: squared error relative to the spread over the data, averaged
        over the elements. With a loss of the caller's: that.
    """
    if not likelihood.outputs:
        raise OutputError("there is no output to compare; pass outputs=")
    n_samples = n_samples or len(next(iter(reference.values())))
    if likelihood.loss is not None:
        return likelihood.loss.per_sample(picked, reference, n_samples)
    parts = {
        path: output_divergence(output, reference[path], picked[path], mask, n_samples)
        for path, output in likelihood.outputs.items()
    }
    return weighed_sum(likelihood, parts)


def weighed_sum(likelihood: Likelihood, parts: Mapping[str, Tensor]) -> Tensor:
    """The divergence of all outputs.

    Args:
        likelihood: without a loss of the caller's.
        parts: (N,) of each output, without its weight.

    Returns:
        (N,).
    """
    weighed = [output.weight * parts[path] for path, output in likelihood.outputs.items()]
    return torch.stack(weighed).sum(0) if len(weighed) > 1 else weighed[0]


def output_divergence(
    output: OutputModel, before: Tensor, after: Tensor, mask: Tensor | None, n_samples: int
) -> Tensor:
    """Divergence of one output, per sample, without its weight.

    Args:
        output: how it is read.
        before: of the original.
        after: of the compressed model.
        mask: (N, T) bool, True for tokens that count; None for all.
        n_samples: N.

    Returns:
        (N,) float32.
    """
    before, after = before.float(), after.float()
    if not before.numel():
        # The mean of no elements would be nan.
        return before.new_zeros(n_samples)
    token_weights = _token_weights(mask, before)
    if output.family == "categorical":
        log_p, log_q = _log_probabilities(before, output), _log_probabilities(after, output)
        terms = (log_p.exp() * (log_p - log_q)).sum(output.dim)
        if token_weights is not None:
            terms = terms * token_weights
        # Rounding can bring a divergence of next to nothing below zero.
        per_sample = terms.reshape(len(before), -1).sum(1).clamp_min(0)
    elif output.family == "bernoulli":
        log_p, log_q = (v.logit(_LOGIT_MARGIN) if output.is_probability else v for v in (before, after))
        p = log_p.sigmoid()
        # Both classes: p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with logits kept as logits.
        terms = p * (functional.logsigmoid(log_p) - functional.logsigmoid(log_q)) + (1 - p) * (
            functional.logsigmoid(-log_p) - functional.logsigmoid(-log_q)
        )
        weighted = terms * _over_elements(token_weights, terms)
        per_sample = weighted.reshape(len(before), -1).sum(1).clamp_min(0)
    else:
        scale = matched_scale(output, before)
        terms = ((after - before) / scale).square() * _over_elements(token_weights, before)
        per_sample = terms.reshape(len(before), -1).mean(1)
    if len(per_sample) != n_samples:
        share = per_sample.mean() if output.family == "gaussian" else per_sample.sum() / n_samples
        per_sample = share.expand(n_samples)
    return per_sample


def matched_scale(output: OutputModel, values: Tensor) -> Tensor:
    """The spread to divide an output by; one number where samples differ in channels, too.

    Args:
        output: gaussian or bernoulli.
        values: (N, ...).

    Returns:
        In a shape that divides ``values``.
    """
    if output.scale is None:
        raise OutputError(f"a {output.family} output without spread")
    return matched_spread(output.scale, values)


def _log_probabilities(values: Tensor, output: OutputModel) -> Tensor:
    if output.is_probability:
        return values.clamp_min(_LEAST_PROBABILITY).log()
    return values.log_softmax(output.dim)


def _token_weights(mask: Tensor | None, values: Tensor) -> Tensor | None:
    """The mask as (N, T) floats where an output has one row per token; else None."""
    return mask.to(values.dtype) if is_mask_of(mask, values) else None


def _over_elements(token_weights: Tensor | None, values: Tensor) -> Tensor:
    """Weights of tokens in a shape that multiplies the values of all their elements."""
    if token_weights is None:
        return values.new_ones(())
    return token_weights.reshape(*token_weights.shape, *[1] * (values.ndim - token_weights.ndim))


def measure_divergence(
    results: Iterable[object],
    references: Iterable[Picked],
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
