# SPDX-License-Identifier: Apache-2.0
"""What the outputs mean: as the caller says, or as their values tell."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from slimrank._errors import BatchesError, OptionError, OutputError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank.calibrate._output_model import Likelihood, OutputModel
from slimrank.calibrate._own_loss import OwnLossFn, open_loss
from slimrank.calibrate._recognise import Reading, is_between, recognise, sums_to_one
from slimrank.calibrate._rows import is_mask_of, token_mask
from slimrank.calibrate._signs import values_rows
from slimrank.calibrate._spread import spread_of
from slimrank.forward import Batch, Picked
from slimrank.records import (
    FAMILIES,
    Family,
    LikelihoodChoice,
    LikelihoodName,
    Weights,
    likelihood_of,
    weights_of,
)

_Value = TypeVar("_Value")
# Share of the largest possible divergence that "nothing is left" is at least: outputs that never change over
# the data would else make any change look like a loss of everything.
_LEAST_LOST = 1e-3
# Of at least so many samples this share with one class is told: inputs may be noise, or not normalised.
_SAMPLES_TO_TELL, _SAME_CLASS = 16, 0.95
# Outputs up to which every combination of families is tried: some thousands.
_MAX_COMBINED = 8


def choose_likelihood(
    tensors: Mapping[str, Tensor],
    choice: LikelihoodChoice,
    weights: Weights = None,
    masks: Mapping[str, Tensor] | None = None,
    n_samples: Mapping[str, int] | None = None,
) -> Likelihood:
    """Chooses the family of each output from its values over the data.

    Args:
        tensors: outputs by path, (N, ...), over a few hundred samples.
        choice: what the caller asked for.
        weights: of the divergence of each output; None for 1.
        masks: (N, T) bool by path, True for tokens that count; outputs without padding have none.
        n_samples: N by path, for outputs with another first dimension (time first); None for that dimension.

    Returns:
        The likelihood, with the spread of every gaussian output.

    Raises:
        OptionError: unknown choice, or a list of another length.
        UnknownNameError: an output that does not exist.
        OutputError: the outputs cannot be of the family asked for.
    """
    paths = list(tensors)
    named = likelihood_of(choice)
    asked = dict.fromkeys(paths, named) if isinstance(named, str) else _by_path(named, paths, "likelihood")
    factors = _by_path(weights_of(weights) or {}, paths, "weights")
    values = {path: tensor.float() for path, tensor in tensors.items()}
    rows_masks = masks or {}
    readings: dict[str, Reading] = {}
    unread = {path: value for path, value in values.items() if asked.get(path, "auto") == "auto"}
    if unread:
        readings.update(recognise(unread, rows_masks))
    for path, family in asked.items():
        if family != "auto":
            readings[path] = _as_asked(path, values[path], family, rows_masks.get(path))
    outputs = {
        path: replace(
            _model_of(
                values[path],
                readings[path],
                rows_masks.get(path),
                (n_samples or {}).get(path, len(values[path])),
            ),
            weight=factors.get(path, 1.0),
        )
        for path in paths
    }
    return Likelihood(outputs=outputs, reasons=_reasons(values, readings, asked))


def _by_path(
    choice: Mapping[str, _Value] | Sequence[_Value], paths: Sequence[str], keyword: str
) -> dict[str, _Value]:
    """What was asked for every output; outputs that nothing was asked for are left out."""
    if not choice:
        return {}
    if paths == [""]:
        raise OptionError(
            f"{keyword}={choice!r} is for several outputs, and there is one tensor without a name; "
            + ("give one family" if keyword == "likelihood" else "leave it out")
        )
    tops = list(dict.fromkeys(path.split(".")[0] for path in paths))
    if not isinstance(choice, Mapping):
        entries = paths if len(choice) == len(paths) else tops
        if len(choice) != len(entries):
            raise OptionError(
                f"{keyword} has {len(choice)} entries for {len(entries)} outputs ({listed(entries)}); "
                "give one for each, or a dict"
            )
        choice = dict(zip(entries, choice, strict=True))
    found: dict[str, _Value] = {}
    for key, value in choice.items():
        # An entry for a list or dict of tensors counts for each of them.
        matching = [path for path in paths if path == key or path.startswith(f"{key}.")]
        if not matching:
            raise UnknownNameError(
                f"{keyword}: there is no output {key!r}; {nearest(key, dict.fromkeys((*tops, *paths)))}"
            )
        found.update(dict.fromkeys(matching, value))
    return found


def _as_asked(path: str, values: Tensor, family: Family, mask: Tensor | None) -> Reading:
    if family != "categorical":
        is_probability = family == "bernoulli" and is_between(values, 0, 1)
        return Reading(family=family, is_probability=is_probability, reason="as asked")
    dim = _class_dim(path, values, mask)
    if values.ndim < 2 or values.shape[dim] < 2:
        raise OutputError(
            f"output {path or 'of the model'} is {list(values.shape)}: categorical needs at least two "
            "classes in its last (or, for maps, second) dimension; use likelihood='bernoulli' or 'gaussian'"
        )
    is_probability = sums_to_one(values_rows(values, dim, mask))
    return Reading(family=family, dim=dim, is_probability=is_probability, reason="as asked")


def _class_dim(path: str, values: Tensor, mask: Tensor | None) -> int:
    """Dimension of the classes of an output that has some."""
    if values.ndim < 3:
        return -1
    told = recognise({path: values}, {} if mask is None else {path: mask})[path]
    return told.dim if told.family == "categorical" else 1 if values.ndim >= 4 else -1


def _model_of(values: Tensor, reading: Reading, mask: Tensor | None, n_samples: int) -> OutputModel:
    terms = 0 if reading.family == "gaussian" else values.numel()
    if reading.family == "categorical":
        terms //= values.shape[reading.dim]
    model = OutputModel(
        family=reading.family,
        dim=reading.dim,
        is_probability=reading.is_probability,
        scale=None if reading.family == "categorical" else spread_of(values),
        shape=tuple(values.shape[1:]),
        positions=max(1, terms // n_samples),
    )
    # The gaussian divergence is relative to the spread, which is what is lost with the average.
    return model if model.family == "gaussian" else replace(model, all_lost=_all_lost(values, model, mask))


def _all_lost(values: Tensor, model: OutputModel, mask: Tensor | None) -> float:
    """Divergence of the average answer: the mutual information of sample and answer, in nats per sample."""
    if model.family == "categorical":
        p = values_rows(values, model.dim, mask)
        p = p if model.is_probability else p.softmax(-1)
        most = torch.tensor(float(p.shape[-1])).log()
        mean = p.mean(0)
        per_position = _entropy(mean) - _entropy(p).mean()
        return float(per_position.clamp_min(float(most) * _LEAST_LOST)) * model.positions
    if is_mask_of(mask, values):
        values = values[mask]
    p = values if model.is_probability else values.sigmoid()
    # Of each element, both answers: (...)
    lost = sum(_entr(answer.mean(0)) - _entr(answer).mean(0) for answer in (p, 1 - p))
    return float(torch.as_tensor(lost).mean().clamp_min(math.log(2) * _LEAST_LOST)) * model.positions


def _entr(p: Tensor) -> Tensor:
    """``-p log p``, 0 at 0."""
    terms: Tensor = torch.special.entr(p.clamp_min(0))
    return terms


def _entropy(p: Tensor) -> Tensor:
    return _entr(p).sum(-1)


def _reasons(
    values: Mapping[str, Tensor], readings: Mapping[str, Reading], asked: Mapping[str, LikelihoodName]
) -> tuple[str, ...]:
    """What was taken, why, and what changes it: one text for all outputs that are read alike."""
    alike: dict[tuple[str, str, bool], list[str]] = {}
    for path, reading in readings.items():
        is_asked = asked.get(path, "auto") != "auto"
        alike.setdefault((reading.described, reading.reason, is_asked), []).append(path)
    texts = []
    for (described, reason, is_asked), paths in alike.items():
        shapes = dict.fromkeys(str(list(values[path].shape[1:])) for path in paths)
        names = listed(paths, 4) if paths != [""] else "output"
        text = f"{names} {' and '.join(list(shapes)[:3])}: {described}, {reason}"
        if not is_asked:
            other = "gaussian" if not described.startswith("gaussian") else _other_family(values[paths[0]])
            example = repr(other) if paths == [""] else f"{{{paths[0]!r}: {other!r}}}"
            text += f"; if that is wrong, pass e.g. likelihood={example}"
        texts.append(text)
    return tuple(texts)


def readings_tried(paths: Sequence[str]) -> Iterator[Mapping[str, Family]]:
    """Families that outputs may have been read as, for a run on disk that "auto" reads otherwise by now.

    Args:
        paths: of the outputs.

    Yields:
        Every combination for a few outputs; for many, one family for all.
    """
    if len(paths) <= _MAX_COMBINED:
        combined = product(FAMILIES, repeat=len(paths))
    else:
        combined = ((family,) * len(paths) for family in FAMILIES)  # type: ignore[assignment]
    for families in combined:
        yield dict(zip(paths, families, strict=True))


def read_likelihood(
    references: Sequence[Picked],
    batches: Sequence[Batch],
    choice: LikelihoodChoice,
    *,
    weights: Weights = None,
    loss: OwnLossFn | None = None,
) -> Likelihood:
    """Chooses how outputs are read, from outputs over some data.

    Args:
        references: outputs of the original, per batch; the first with its structure where there is a loss.
        batches: the inputs, as many, for their token masks.
        choice: what the caller asked for.
        weights: of the divergence of each output; None for 1.
        loss: the caller's, in place of divergences.

    Returns:
        The likelihood.

    Raises:
        BatchesError: masks that leave no token of an output.
        SlimrankError: as in ``choose_likelihood`` and ``open_loss``.
    """
    joined: dict[str, Tensor] = {}
    joined_masks: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    masks = [token_mask(batch) for batch in batches]
    for path, first in references[0].items():
        tensors = [reference[path] for reference in references]
        joint = range(len(tensors))
        if any(tensor.shape[1:] != first.shape[1:] for tensor in tensors):
            # They cannot be joined: the first batch that holds anything speaks for all.
            index = next((index for index in joint if tensors[index].numel()), 0)
            joint = range(index, index + 1)
        joined[path] = torch.cat([tensors[index] for index in joint])
        fitting = [mask for index in joint if is_mask_of(mask := masks[index], tensors[index])]
        if len(fitting) == len(joint):
            joined_masks[path] = torch.cat(fitting)
            if not joined_masks[path].any():
                raise BatchesError(
                    f"output {path or 'of the model'}: the masks leave no token that counts; an "
                    "attention_mask has 1 for tokens, a padding mask True for padding"
                )
        counts[path] = sum(batches[index].n_samples for index in joint)
    likelihood = choose_likelihood(joined, choice, weights, joined_masks, counts)
    same = tuple(_one_class_reasons(joined, likelihood.outputs))
    likelihood = replace(likelihood, reasons=(*likelihood.reasons, *same))
    if loss is None:
        return likelihood
    spreads = {path: spread_of(values.float()) for path, values in joined.items()}
    own = open_loss(loss, references[0], spreads, batches[0].n_samples)
    reasons = ("loss= tells damage and divergence; how outputs are read only tells result.agreement",)
    return replace(likelihood, loss=own, reasons=(*reasons, *likelihood.reasons))


def _one_class_reasons(values: Mapping[str, Tensor], outputs: Mapping[str, OutputModel]) -> Iterator[str]:
    """A text on each output that is sure of one and the same class for nearly all samples."""
    for path, output in outputs.items():
        scores = values[path].float()
        # Of maps and of tokens one class may well be most of them.
        if output.family == "bernoulli" or scores.ndim != 2 or len(scores) < _SAMPLES_TO_TELL:
            continue
        chances = scores if output.is_probability else scores.softmax(1)
        n_classes = chances.shape[1]
        counts = torch.bincount(chances.argmax(1), minlength=n_classes)
        top = int(counts.argmax())
        is_sure = float(chances[:, top].mean()) >= (1 + 1 / n_classes) / 2
        if n_classes < 2 or not is_sure or int(counts[top]) < _SAME_CLASS * len(scores):
            continue
        # Numbers may have one that is always the largest: what is told from that is no more than a guess.
        guess = "" if output.family == "categorical" else "if its elements are classes: "
        yield (
            f"{guess}{path or 'the output'} is sure of class {top} for {int(counts[top])} of {len(scores)} "
            "samples, as trained networks are of noise: what is lost on other inputs does not show then; "
            "give samples of the kind it was trained on, prepared in the same way"
        )


def _other_family(values: Tensor) -> Family:
    """What numbers may be instead."""
    if is_between(values, 0, 1) or values.ndim < 2:
        return "bernoulli"
    return "categorical" if values.shape[1 if values.ndim >= 4 else -1] > 1 else "bernoulli"
