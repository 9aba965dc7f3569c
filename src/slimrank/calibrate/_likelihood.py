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
_CONFIDENT = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputModel:
    """How one output tensor is read.

    Attributes:
        family: its distribution.
        dim: of the classes (categorical).
        is_probability: values are probabilities, not logits.
        shape: of one sample.
        scale: spread over the data (gaussian), without the sample dimension: of every element, of maps of
            every channel, (C, 1, 1); else None.
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
        outputs: by path of the tensor.
        reason: what was taken and why, for people.
    """

    outputs: Mapping[str, OutputModel]
    reason: str

    @property
    def unit(self) -> str:
        """Of the divergence."""
        families = {output.family for output in self.outputs.values()}
        return "relative squared error" if families == {"gaussian"} else "nats per sample"


def choose_likelihood(tensors: Mapping[str, Tensor], choice: LikelihoodChoice) -> Likelihood:
    """Reads outputs over the data and says how to take them.

    Args:
        tensors: outputs by path, (N, ...), over a few hundred samples.
        choice: of the caller.

    Returns:
        The likelihood, with the spread of every gaussian output.

    Raises:
        OptionError: unknown choice.
        OutputError: a choice that the outputs cannot have.
    """
    if choice not in ("auto", "categorical", "bernoulli", "gaussian"):
        raise OptionError(
            f"likelihood={choice!r}; it is one of 'auto', 'categorical', 'bernoulli', 'gaussian'"
        )
    models: dict[str, OutputModel] = {}
    reasons = []
    for name, tensor in tensors.items():
        model, reason = _choose_one(name, tensor.float(), choice)
        models[name] = replace(model, shape=tuple(tensor.shape[1:]))
        reasons.append(f"{name or 'output'} {list(tensor.shape[1:])}: {model.family}, {reason}")
    return Likelihood(outputs=models, reason="; ".join(reasons))


def _choose_one(name: str, values: Tensor, choice: LikelihoodChoice) -> tuple[OutputModel, str]:
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
    if entropy < _CONFIDENT:
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
    return bool((sums - 1).abs().max() < 1e-3)


def _gaussian(values: Tensor) -> OutputModel:
    # One sample has no spread; the size of the values then stands in.
    spread = values.std(0, correction=0) if len(values) > 1 else values.abs()[0]
    if values.ndim >= 4:
        # Of every channel of a map: a place that hardly varies, such as a border, would outweigh all others.
        spread = spread.square().mean(tuple(range(1, spread.ndim)), keepdim=True).sqrt()
    typical = spread.square().mean().sqrt()
    # Not below rounding noise: outputs that never vary would else make any change look huge.
    size = values.square().mean().sqrt()
    floor = torch.maximum(typical * 1e-2, size * 1e-4)
    floor = torch.where(floor > 0, floor, torch.ones_like(floor))
    return OutputModel(family="gaussian", dim=-1, is_probability=False, scale=spread.clamp_min(floor))


def _matched_scale(scale: Tensor, values: Tensor) -> Tensor:
    """The spread to divide by; one number where samples differ in channels, too."""
    own = values.shape[1:]
    if len(own) == scale.ndim and all(
        size in (1, there) for size, there in zip(scale.shape, own, strict=True)
    ):
        return scale
    return scale.square().mean().sqrt()


def sampled_loss(
    likelihood: Likelihood, tensors: Mapping[str, Tensor], generator: torch.Generator, mask: Tensor | None
) -> Tensor:
    """One label-free draw: its gradient has the Fisher information as second moment.

    Args:
        likelihood: how outputs are read.
        tensors: outputs by path, with gradient.
        generator: on the CPU.
        mask: (N, T) bool, True for tokens that count; None for all.

    Returns:
        Scalar float32: the loss summed (not averaged) over samples and positions.
    """
    total: Tensor | None = None
    for name, model in likelihood.outputs.items():
        values = tensors[name].float()
        if not values.isfinite().all():
            raise NonFiniteError(
                f"output {name or 'of the model'} holds nan or inf on calibration samples; "
                "pass outputs= that picks finite tensors, or check weights and data"
            )
        keep = _keep(mask, values)
        if model.family == "categorical":
            log_p = _log_probabilities(values, model)
            flat = log_p.movedim(model.dim, -1).reshape(-1, log_p.shape[model.dim])
            drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
            terms = -flat.gather(1, drawn).reshape(log_p.movedim(model.dim, -1).shape[:-1])
            loss = (terms * keep).sum() if keep is not None else terms.sum()
        elif model.family == "bernoulli":
            logits = values.logit(1e-6) if model.is_probability else values
            uniform = torch.rand(logits.shape, generator=generator, device="cpu").to(logits.device)
            target = (uniform < logits.detach().sigmoid()).to(logits.dtype)
            terms = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            loss = (terms * _over_last(keep, terms)).sum()
        else:
            noise = torch.randn(values.shape, generator=generator, device="cpu").to(values.device)
            scale = _matched_scale(_scale_of(model), values)
            # Divided by the number of elements, so that the quadratic form is in the unit of the divergence.
            count = max(1, values[0].numel())
            loss = (values / scale * noise * _over_last(keep, values)).sum() * math.sqrt(2 / count)
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
    for name, model in likelihood.outputs.items():
        before, after = reference[name].float(), tensors[name].float()
        keep = _keep(mask, before)
        if model.family == "categorical":
            log_p, log_q = _log_probabilities(before, model), _log_probabilities(after, model)
            terms = (log_p.exp() * (log_p - log_q)).sum(model.dim)
            if keep is not None:
                terms = terms * keep
            part = terms.reshape(len(before), -1).sum(1).clamp_min(0)
        elif model.family == "bernoulli":
            log_p, log_q = (v.logit(1e-6) if model.is_probability else v for v in (before, after))
            p = log_p.sigmoid()
            terms = p * (functional.logsigmoid(log_p) - functional.logsigmoid(log_q)) + (1 - p) * (
                functional.logsigmoid(-log_p) - functional.logsigmoid(-log_q)
            )
            part = (terms * _over_last(keep, terms)).reshape(len(before), -1).sum(1).clamp_min(0)
        else:
            scale = _matched_scale(_scale_of(model), before)
            terms = ((after - before) / scale).square() * _over_last(keep, before)
            part = terms.reshape(len(before), -1).mean(1)
        n_samples = n_samples or len(part)
        if len(part) != n_samples:
            whole = part.mean() if model.family == "gaussian" else part.sum() / n_samples
            part = whole.expand(n_samples)
        total = part if total is None else total + part
    if total is None:
        raise OutputError("there is no output to compare; pass outputs=")
    return total


def _scale_of(model: OutputModel) -> Tensor:
    if model.scale is None:
        raise OutputError("a gaussian output without spread")
    return model.scale


def _log_probabilities(values: Tensor, model: OutputModel) -> Tensor:
    return values.clamp_min(1e-12).log() if model.is_probability else values.log_softmax(model.dim)


def _keep(mask: Tensor | None, values: Tensor) -> Tensor | None:
    """The mask as (N, T) floats where an output has one row per token; else None."""
    if mask is None or values.ndim < 3 or values.shape[:2] != mask.shape:
        return None
    return mask.to(values.dtype)


def _over_last(keep: Tensor | None, values: Tensor) -> Tensor:
    if keep is None:
        return values.new_ones(())
    return keep.reshape(*keep.shape, *[1] * (values.ndim - keep.ndim))
