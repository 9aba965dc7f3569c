# SPDX-License-Identifier: Apache-2.0
"""How far outputs agree with the original's: what a divergence means to people."""

import math
from collections.abc import Iterable

from torch import Tensor
from torch.nn import functional

from slimrank.calibrate._divergence import divergence, matched_scale, output_divergence, weighed_sum
from slimrank.calibrate._output_model import Likelihood, OutputModel
from slimrank.calibrate._rows import is_mask_of, token_mask
from slimrank.forward import Batch, OutputChoice, Picked, pick_outputs
from slimrank.records import Agreement, OutputAgreement

# Elements that are told one by one.
_MAX_ELEMENTS = 4096
# Dimensions of a sample from which on it is a map: channels, height, width.
_MAP_DIMENSIONS = 3


def measure_agreement(
    results: Iterable[object],
    references: Iterable[Picked],
    batches: Iterable[Batch],
    likelihood: Likelihood,
    outputs: OutputChoice,
) -> Agreement:
    """Agreement with the original, one batch at a time.

    Args:
        results: what a model returned, per batch.
        references: outputs of the original, per batch.
        batches: the inputs, for their token masks.
        likelihood: how outputs are read.
        outputs: which tensors matter.

    Returns:
        The agreement; its divergence is inf where an output is not finite.
    """
    sums = {path: _Sums(output) for path, output in likelihood.outputs.items()}
    total, n_samples = 0.0, 0
    for result, reference, batch in zip(results, references, batches, strict=True):
        picked, mask = pick_outputs(result, outputs), token_mask(batch)
        parts = {
            path: output_divergence(output, reference[path], picked[path], mask, batch.n_samples)
            for path, output in likelihood.outputs.items()
        }
        if likelihood.loss is None:
            per_sample = weighed_sum(likelihood, parts)
        else:
            per_sample = divergence(likelihood, reference, picked, mask, batch.n_samples)
        total += float(per_sample.double().sum())
        n_samples += batch.n_samples
        for path, output_sums in sums.items():
            output_sums.add(reference[path].float(), picked[path].float(), mask, parts[path])
    return Agreement(
        {path: output_sums.agreement() for path, output_sums in sums.items()},
        _or_inf(total / max(n_samples, 1)),
    )


class _Sums:
    """Sums over batches for one output.

    Args:
        output: how it is read.
    """

    def __init__(self, output: OutputModel) -> None:
        self._output = output
        self._n_samples = self._rows = 0
        self._divergence = self._cosine = 0.0
        # Of the terms of each element, and of the samples or tokens behind them.
        self._terms: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, before: Tensor, after: Tensor, mask: Tensor | None, per_sample: Tensor) -> None:
        """Counts one batch, with the divergence of each of its samples."""
        output = self._output
        self._n_samples += len(per_sample)
        self._divergence += float(per_sample.double().sum())
        counts = before.new_ones(before.shape[:1])
        if is_mask_of(mask, before):
            counts = mask.to(before.dtype)
            keep = mask.reshape(*mask.shape, *[1] * (before.ndim - 2))
            before, after = before.where(keep, 0), after.where(keep, 0)
        if output.family == "categorical":
            same = before.argmax(output.dim) == after.argmax(output.dim)
            # The largest of nan is no answer.
            terms = (same & after.isfinite().all(output.dim)).to(before.dtype)
        else:
            terms = ((after - before) / matched_scale(output, before)).square()
            flat, flat_after = (values.reshape(len(values), -1).double() for values in (before, after))
            cosines = functional.cosine_similarity(flat, flat_after, dim=1).nan_to_num(0.0)
            # Zero has no direction; where both are zero, nothing was changed.
            cosines = cosines.where(flat.any(1) | flat_after.any(1), 1.0)
            self._cosine += float(cosines.sum())
            self._rows += len(before)
        counts = counts.reshape(*counts.shape, *[1] * (terms.ndim - counts.ndim)).expand_as(terms)
        self._add_terms((terms * counts).double().sum(0), counts.double().sum(0))

    def _add_terms(self, terms: Tensor, counts: Tensor) -> None:
        if self._terms is None or self._counts is None:
            self._terms, self._counts = terms, counts
        elif terms.shape == self._terms.shape:
            self._terms, self._counts = self._terms + terms, self._counts + counts
        else:
            # Samples of other shapes have no elements in common: what is left is one figure for all.
            self._terms, self._counts = self._terms.sum() + terms.sum(), self._counts.sum() + counts.sum()

    def agreement(self) -> OutputAgreement:
        """What the sums say.

        Raises:
            RuntimeError: nothing was counted.
        """
        if self._terms is None or self._counts is None:
            raise RuntimeError("no batch was counted")
        output, terms, counts = self._output, self._terms, self._counts
        value = _or_inf(self._divergence / max(self._n_samples, 1))
        total = _or_inf(float(terms.sum() / counts.sum().clamp_min(1)))
        if output.family != "categorical" and len(output.shape) >= _MAP_DIMENSIONS and terms.ndim:
            # Of maps the channels are told: those dimensions that have spreads of their own.
            scale = matched_scale(output, terms.unsqueeze(0))
            others = [dim for dim, size in enumerate(scale.shape) if size == 1] if scale.ndim else []
            if others:
                terms, counts = terms.sum(others), counts.sum(others)
        share = terms / counts.clamp_min(1)
        is_told = terms.ndim > 0 and 1 < terms.numel() <= _MAX_ELEMENTS
        figures = share if output.family == "categorical" else share.sqrt()
        is_class = output.family == "categorical"
        return OutputAgreement(
            family=output.family,
            shape=output.shape,
            positions=output.positions,
            divergence=value,
            lost=value / output.all_lost,
            weight=output.weight,
            top1=total if is_class else None,
            cosine=None if is_class else self._cosine / max(self._rows, 1),
            relative_error=None if is_class else math.sqrt(total),
            by_element=tuple(_or_inf(figure) for figure in figures.flatten().tolist()) if is_told else (),
            elements=tuple(terms.shape) if is_told else (),
        )


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value
