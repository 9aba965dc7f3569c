# SPDX-License-Identifier: Apache-2.0
"""What the outputs mean.

A label-free loss to draw gradients from, and a divergence to measure damage with.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from slimrank._errors import NonFiniteError, OptionError, OutputError

Family = Literal["categorical", "bernoulli", "gaussian"]
LikelihoodChoice = Literal["auto", "categorical", "bernoulli", "gaussian"]
# Largest entropy of a softmax, as a share of the largest possible one, at which outputs count as logits of
# classes. More would take arbitrary numbers for logits, less would miss the logits of unsure models.
_MAX_ENTROPY = 0.8
# How far from 1 the sum of probabilities may be; float16 comes no closer.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputModel:
    """How one output tensor is read.

    Attributes:
        family: its distribution.
        dim: dimension of the classes (categorical).
        is_probability: values are probabilities, not logits.
        scale: spread (standard deviation) over the data, without the sample dimension: of every element, of
            maps of every channel, (C, 1, 1); None for other families than gaussian.
        shape: of one sample.
    """

    family: Family
    dim: int
    is_probability: bool
    scale: Tensor | None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likelihood:
    """How the outputs of a model are read.

    Attributes:
        outputs: how each tensor is read, by its path in the outputs.
        reason: which family was taken for each and why, a text for people.
    """

    outputs: Mapping[str, OutputModel]
    reason: str

    @property
    def unit(self) -> str:
        """Unit of the divergence."""
        families = {output.family for output in self.outputs.values()}
        return "relative squared error" if families == {"gaussian"} else "nats per sample"


def choose_likelihood(tensors: Mapping[str, Tensor], choice: LikelihoodChoice) -> Likelihood:
    """Chooses the family of each output from its values over the data.

    Args:
        tensors: outputs by path, (N, ...), over a few hundred samples.
        choice: what the caller asked for.

    Returns:
        The likelihood, with the spread of every gaussian output.

    Raises:
        OptionError: unknown choice.
        OutputError: the outputs cannot be of the family asked for.
    """
    if choice not in ("auto", "categorical", "bernoulli", "gaussian"):
        raise OptionError(
            f"likelihood={choice!r}; it is one of 'auto', 'categorical', 'bernoulli', 'gaussian'"
        )
    outputs: dict[str, OutputModel] = {}
    reasons = []
    for name, tensor in tensors.items():
        output, reason = _choose_family(name, tensor.float(), choice)
        outputs[name] = replace(output, shape=tuple(tensor.shape[1:]))
        reasons.append(f"{name or 'output'} {list(tensor.shape[1:])}: {output.family}, {reason}")
    return Likelihood(outputs=outputs, reason="; ".join(reasons))


def _choose_family(name: str, values: Tensor, choice: LikelihoodChoice) -> tuple[OutputModel, str]:
    dim = _class_dim(values)
    if choice == "auto":
        return _recognise(name, values, dim)
    if choice == "gaussian":
        return _gaussian(values), "as asked"
    if choice == "bernoulli":
        probability = bool((values >= 0).all() and (values <= 1).all())
        return OutputModel(family="bernoulli", dim=-1, is_probability=probability, scale=None), "as asked"
    if not _has_classes(values, dim):
        raise OutputError(
            f"output {name or 'of the model'} is {list(values.shape)}: categorical needs at least two "
            "classes in its last (or, for maps, second) dimension; use likelihood='bernoulli' or 'gaussian'"
        )
    return _categorical(dim, is_probability=_sums_to_one(values, dim)), "as asked"


def _recognise(name: str, values: Tensor, dim: int) -> tuple[OutputModel, str]:
    """The likelihood that the values themselves suggest, and why."""
    if not _has_classes(values, dim):
        return _gaussian(values), "it has no dimension of classes"
    if _sums_to_one(values, dim):
        return _categorical(dim, is_probability=True), "its values are probabilities that sum to one"
    if name.rpartition(".")[2] == "logits":
        return _categorical(dim, is_probability=False), "it is called logits"
    log_p = values.log_softmax(dim)
    entropy = float(-(log_p.exp() * log_p).sum(dim).mean() / math.log(values.shape[dim]))
    if entropy < _MAX_ENTROPY:
        reason = f"its softmax is confident (entropy {entropy:.2f} of the maximum)"
        return _categorical(dim, is_probability=False), reason
    return _gaussian(values), f"its softmax is near uniform (entropy {entropy:.2f} of the maximum)"


def _has_classes(values: Tensor, dim: int) -> bool:
    return values.ndim >= 2 and values.shape[dim] >= 2


def _categorical(dim: int, *, is_probability: bool) -> OutputModel:
    return OutputModel(family="categorical", dim=dim, is_probability=is_probability, scale=None)


def _class_dim(values: Tensor) -> int:
    """Last for (N, C) and (N, T, C); second for maps (N, C, H, W)."""
    return 1 if values.ndim >= 4 else -1


def _sums_to_one(values: Tensor, dim: int) -> bool:
    if not bool((values >= 0).all()):
        return False
    sums = values.sum(dim)
    return bool((sums - 1).abs().max() < _SUM_TOLERANCE)


def _gaussian(values: Tensor) -> OutputModel:
    # One sample has no spread; the size of the values then stands in.
    spread = values.std(0, correction=0) if len(values) > 1 else values.abs()[0]
    if values.ndim >= 4:
        # Of every channel of a map: a position that hardly varies, such as a border, would outweigh the rest.
        spread = spread.square().mean(tuple(range(1, spread.ndim)), keepdim=True).sqrt()
    typical = spread.square().mean().sqrt()
    # Not below rounding noise: outputs that never vary would else make any change look huge.
    size = values.square().mean().sqrt()
    floor = torch.maximum(typical * 1e-2, size * 1e-4)
    floor = torch.where(floor > 0, floor, torch.ones_like(floor))
    return OutputModel(family="gaussian", dim=-1, is_probability=False, scale=spread.clamp_min(floor))


def _matched_scale(scale: Tensor, values: Tensor) -> Tensor:
    """The spread to divide by; one number where samples differ in channels, too."""
    sizes = values.shape[1:]
    if len(sizes) == scale.ndim and all(
        scale_size in (1, size) for scale_size, size in zip(scale.shape, sizes, strict=True)
    ):
        return scale
    return scale.square().mean().sqrt()


def sampled_loss(
    likelihood: Likelihood, tensors: Mapping[str, Tensor], generator: torch.Generator, mask: Tensor | None
) -> Tensor:
    """The loss of labels drawn from the outputs: the second moment of its gradient is the Fisher information.

    Args:
        likelihood: how outputs are read.
        tensors: outputs by path, with gradient.
        generator: on the CPU.
        mask: (N, T) bool, True for tokens that count; None for all.

    Returns:
        Scalar float32: the loss summed (not averaged) over samples and positions.
    """
    total: Tensor | None = None
    for name, output in likelihood.outputs.items():
        values = tensors[name].float()
        if not values.isfinite().all():
            raise NonFiniteError(
                f"output {name or 'of the model'} holds nan or inf on calibration samples; "
                "pass outputs= that picks finite tensors, or check weights and data"
            )
        token_weights = _token_weights(mask, values)
        if output.family == "categorical":
            log_p = _log_probabilities(values, output)
            flat = log_p.movedim(output.dim, -1).reshape(-1, log_p.shape[output.dim])
            drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
            terms = -flat.gather(1, drawn).reshape(log_p.movedim(output.dim, -1).shape[:-1])
            loss = (terms * token_weights).sum() if token_weights is not None else terms.sum()
        elif output.family == "bernoulli":
            logits = values.logit(1e-6) if output.is_probability else values
            uniform = torch.rand(logits.shape, generator=generator, device="cpu").to(logits.device)
            target = (uniform < logits.detach().sigmoid()).to(logits.dtype)
            terms = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            loss = (terms * _over_elements(token_weights, terms)).sum()
        else:
            noise = torch.randn(values.shape, generator=generator, device="cpu").to(values.device)
            scale = _matched_scale(_scale_of(output), values)
            # Divided by the number of elements, so that the quadratic form is in the unit of the divergence.
            count = max(1, values[0].numel())
            loss = (values / scale * noise * _over_elements(token_weights, values)).sum() * math.sqrt(
                2 / count
            )
        total = loss if total is None else total + loss
    if total is None:
        raise OutputError("there is no output to draw a loss from; pass outputs=")
    return total


def divergence(
    likelihood: Likelihood,
    reference: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    mask: Tensor | None,
    n_samples: int | None = None,
) -> Tensor:
    """Divergence from the original's outputs, per sample.

    Args:
        likelihood: how outputs are read.
        reference: outputs of the original, by path.
        tensors: outputs of the compressed model.
        mask: (N, T) bool, True for tokens that count; None for all.
        n_samples: N; None for the first dimension of the first output. An output with another first dimension
            (layers first, one row for all) counts in equal parts for every sample.

    Returns:
        (N,) float32. Categorical and bernoulli: KL divergence in nats, summed over positions. Gaussian:
        squared error relative to the spread over the data, averaged over the elements.
    """
    total: Tensor | None = None
    for name, output in likelihood.outputs.items():
        before, after = reference[name].float(), tensors[name].float()
        token_weights = _token_weights(mask, before)
        if output.family == "categorical":
            log_p, log_q = _log_probabilities(before, output), _log_probabilities(after, output)
            terms = (log_p.exp() * (log_p - log_q)).sum(output.dim)
            if token_weights is not None:
                terms = terms * token_weights
            # Rounding can bring a divergence of next to nothing below zero.
            per_sample = terms.reshape(len(before), -1).sum(1).clamp_min(0)
        elif output.family == "bernoulli":
            log_p, log_q = (v.logit(1e-6) if output.is_probability else v for v in (before, after))
            p = log_p.sigmoid()
            # Both classes: p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with logits kept as logits.
            terms = p * (functional.logsigmoid(log_p) - functional.logsigmoid(log_q)) + (1 - p) * (
                functional.logsigmoid(-log_p) - functional.logsigmoid(-log_q)
            )
            per_sample = (
                (terms * _over_elements(token_weights, terms)).reshape(len(before), -1).sum(1).clamp_min(0)
            )
        else:
            scale = _matched_scale(_scale_of(output), before)
            terms = ((after - before) / scale).square() * _over_elements(token_weights, before)
            per_sample = terms.reshape(len(before), -1).mean(1)
        n_samples = n_samples or len(per_sample)
        if len(per_sample) != n_samples:
            share = per_sample.mean() if output.family == "gaussian" else per_sample.sum() / n_samples
            per_sample = share.expand(n_samples)
        total = per_sample if total is None else total + per_sample
    if total is None:
        raise OutputError("there is no output to compare; pass outputs=")
    return total


def _scale_of(output: OutputModel) -> Tensor:
    if output.scale is None:
        raise OutputError("a gaussian output without spread")
    return output.scale


def _log_probabilities(values: Tensor, output: OutputModel) -> Tensor:
    return values.clamp_min(1e-12).log() if output.is_probability else values.log_softmax(output.dim)


def _token_weights(mask: Tensor | None, values: Tensor) -> Tensor | None:
    """The mask as (N, T) floats where an output has one row per token; else None."""
    if mask is None or values.ndim < 3 or values.shape[:2] != mask.shape:
        return None
    return mask.to(values.dtype)


def _over_elements(token_weights: Tensor | None, values: Tensor) -> Tensor:
    """Weights of tokens in a shape that multiplies the values of all their elements."""
    if token_weights is None:
        return values.new_ones(())
    return token_weights.reshape(*token_weights.shape, *[1] * (values.ndim - token_weights.ndim))
