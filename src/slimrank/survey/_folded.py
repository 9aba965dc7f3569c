# SPDX-License-Identifier: Apache-2.0
"""Layers that compute their kernel in every forward, folded in the copy that everything else works on."""

import contextlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError
from slimrank._names import listed
from slimrank.forward import Batch, fixed_seed_without_warnings, named_tensors, run, take_samples
from slimrank.plan import Plan
from slimrank.records import Note
from slimrank.surgery import computed_kernels, copy_model, fold_as_planned, fold_kernels

# Samples on which outputs are compared, and the share of the largest value by which they may differ.
_SAMPLES = 8
_TOLERANCE = 1e-4
_EPS_FACTOR = 256


def folded_copy(original: nn.Module, batch: Batch, skip: Sequence[str]) -> tuple[nn.Module, tuple[Note, ...]]:
    """A copy with plain layers in place of those that compute their kernel.

    Args:
        original: a private copy in eval mode; not changed.
        batch: on which outputs are compared.
        skip: layer-name globs that are left alone.

    Returns:
        The copy, or ``original`` where there is nothing to fold; and what was done, and what was not.
    """
    names = [
        name for name in computed_kernels(original) if not any(fnmatchcase(name, pattern) for pattern in skip)
    ]
    if not names:
        return original, ()
    sample, expected = _some_outputs(original, batch)
    folded = _folded(original, names)
    problem = _problem(folded, sample, expected)
    if problem is None:
        return folded, (_note(original, names),)
    # One of them cannot be: each is tried with those before it.
    accepted: list[str] = []
    notes = []
    for name in names:
        problem = _problem(_folded(original, [*accepted, name]), sample, expected)
        if problem is None:
            accepted.append(name)
        else:
            text = (
                f"its kernel is computed in the forward, and a plain layer cannot take its place: {problem}"
            )
            notes.append(Note(where=name, text=text))
    if not accepted:
        return original, tuple(notes)
    return _folded(original, accepted), (_note(original, accepted), *notes)


def as_planned(model: nn.Module, plan: Plan) -> tuple[nn.Module, tuple[Note, ...]]:
    """The model that a plan was made for, with plain layers where the plan was made on such.

    Args:
        model: the caller's; not changed.
        plan: for it, or for a copy in which kernels were folded.

    Returns:
        A copy, or ``model`` where there is nothing to fold; and what was done.
    """
    if not plan.steps:
        return model, ()
    copied = copy_model(model)
    names = fold_as_planned(copied, plan.steps[0].structure.layers)
    return (copied, (_note(model, names),)) if names else (model, ())


def _folded(original: nn.Module, names: Sequence[str]) -> nn.Module:
    copied = copy_model(original)
    fold_kernels(copied, names)
    # Plain layers are new, and the copy is one for reading.
    return copied.requires_grad_(requires_grad=False)


def _note(model: nn.Module, names: Sequence[str]) -> Note:
    kinds = dict.fromkeys(type(model.get_submodule(name)).__name__ for name in names)
    return Note(
        where="capture",
        text=f"{listed(names)} ({', '.join(kinds)}) compute their kernels in every forward; in the private "
        "copy, and so in results, plain layers hold the kernels of eval mode, and the outputs are the same",
    )


def _some_outputs(original: nn.Module, batch: Batch) -> tuple[Batch, list[Tensor]]:
    """A few samples, or the whole batch where the model takes nothing else, and what comes out."""
    if not batch.is_whole and batch.n_samples > _SAMPLES:
        few = take_samples(batch, range(_SAMPLES))
        with contextlib.suppress(BatchesError):
            return few, _outputs(original, few)
    return batch, _outputs(original, batch)


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    with torch.no_grad(), fixed_seed_without_warnings(model):
        return _floats(run(model, batch))


def _floats(result: object) -> list[Tensor]:
    return [tensor for _, tensor in named_tensors(result) if tensor.is_floating_point()]


def _problem(folded: nn.Module, sample: Batch, expected: Sequence[Tensor]) -> str | None:
    """What a folded copy does that the original does not; None where its outputs are the same."""
    try:
        got = _outputs(folded, sample)
    except Exception as error:
        # The model's code may read what the plain layer lacks.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if [tensor.shape for tensor in got] != [tensor.shape for tensor in expected]:
        return "the outputs have other shapes"
    for before, after in zip(expected, got, strict=True):
        if not before.numel():
            continue
        tolerance = max(_TOLERANCE, _EPS_FACTOR * torch.finfo(before.dtype).eps)
        scale = float(before.abs().max())
        lost = float((before.double() - after.double()).abs().max())
        if not lost <= tolerance * scale:
            return f"the outputs differ by {lost / max(scale, 1e-30):.0e} of the largest"
    return None
