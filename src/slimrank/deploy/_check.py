# SPDX-License-Identifier: Apache-2.0
"""An exported file against the model it was made of, on real samples."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank._errors import ExportError
from slimrank.calibrate import Likelihood, measure_agreement, read_likelihood
from slimrank.deploy._difference import (
    largest_difference,
    largest_of,
    relative_difference,
    relative_to,
)
from slimrank.deploy._program import Program
from slimrank.deploy._runtime import Runtime
from slimrank.deploy._samples import Samples
from slimrank.forward import (
    Batch,
    OutputChoice,
    Picked,
    fixed_seed,
    map_tensors,
    named_tensors,
    pick_outputs,
    run,
)
from slimrank.records import LikelihoodChoice

# Largest relative error of a float32 file; runtimes add in other orders, which costs some 1e-6.
_BOUND = 1e-3
# Of dtypes with fewer digits, in the model or its outputs: so many times the distance from 1 to the next
# number. Runtimes round elsewhere than torch: some of them compute in float32 all the same.
_ULPS = 4
# Samples in the batches that are run: one, the size of the example, another; then some at a time.
_SIZES, _NEXT_SIZE = (1, 2, 5), 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """How outputs are read, to tell classes.

    Attributes:
        outputs: which outputs matter.
        likelihood: how they are read, or what the caller asked for.
    """

    outputs: OutputChoice = None
    likelihood: Likelihood | LikelihoodChoice = "auto"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checked:
    """How far a file agrees with the model.

    Attributes:
        max_error: largest difference over the largest value of an output, of the worst output; inf where a
            shape differs.
        bound: that it shall not exceed.
        worst: the worst output, and how it differs; for messages.
        batch: the batch in which it differs most.
        agreement: share of equal classes; None where outputs are no classes.
    """

    max_error: float
    bound: float
    worst: str
    batch: Batch
    agreement: float | None


def check_file(
    program: Program, runtime: Runtime, model: nn.Module, samples: Samples, reading: Reading
) -> Checked:
    """Runs a file and the model that was exported on the same samples.

    Args:
        program: that was written.
        runtime: with the file.
        model: that was exported, in eval mode on the CPU.
        samples: real ones.
        reading: how outputs are read.

    Returns:
        How far they agree.

    Raises:
        ExportError: the runtime fails, outputs are missing, or the model answers otherwise every time.
        BatchesError: the model refuses a batch.
    """
    results: list[object] = []
    replaced: list[object] = []
    batches: list[Batch] = []
    errors = {name: 0.0 for name in program.outputs}
    largest = dict(errors)
    is_finite = dict.fromkeys(errors, False)
    worst: tuple[float, str, Batch] | None = None
    bound = _bound_for(model.state_dict().values())
    for batch in _batches(program, samples):
        result = _reference(model, batch)
        if not results:
            _check_repeats(program, result, _reference(model, batch), bound)
        expected = program.model.output_tensors(result)
        found = dict(zip(program.outputs, runtime(batch)(), strict=True))
        new: dict[int, Tensor] = {}
        for name, tensor in found.items():
            if name not in expected:
                raise ExportError(
                    f"output {name} of the file is not one of the model's, {', '.join(expected)}"
                )
            reference = expected[name]
            if tensor.shape != reference.shape:
                told = f"is {list(tensor.shape)} where the model's is {list(reference.shape)}"
                return Checked(
                    max_error=math.inf, bound=bound, worst=f"{name} {told}", batch=batch, agreement=None
                )
            new[id(reference)] = tensor.to(reference.dtype)
            bound = max(bound, _bound_for([reference]))
            difference = largest_difference(reference, tensor)
            if worst is None or difference > worst[0]:
                worst = (difference, name, batch)
            errors[name] = max(errors[name], difference)
            largest[name] = max(largest[name], largest_of(reference))
            is_finite[name] |= not reference.numel() or bool(reference.isfinite().any())
        results.append(result)
        replaced.append(map_tensors(result, exchange(new)))
        batches.append(batch)
    _check_finite(program, is_finite)
    relative = {name: relative_to(errors[name], largest[name]) for name in errors}
    name = max(relative, key=lambda key: relative[key])
    if worst is None:
        raise ExportError("no batch was run")
    return Checked(
        max_error=relative[name],
        bound=bound,
        worst=f"{name} differs by {relative[name]:.2g} of its largest value",
        batch=worst[2],
        agreement=_agreement(results, replaced, batches, reading),
    )


def _bound_for(tensors: Iterable[object]) -> float:
    """Largest relative error that may be where these are the values."""
    kinds = {value.dtype for value in tensors if isinstance(value, Tensor) and value.is_floating_point()}
    return max([_BOUND, *(_ULPS * torch.finfo(kind).eps for kind in kinds)])


def exchange(new: Mapping[int, Tensor]) -> Callable[[Tensor], Tensor]:
    """What gives for a tensor the one that takes its place, by identity; else the tensor."""
    return lambda tensor: new.get(id(tensor), tensor)


def _batches(program: Program, samples: Samples) -> Iterator[Batch]:
    """Batches of the sizes that a file is checked with, over all samples."""
    n_samples = samples.batch.n_samples
    start, largest = 0, program.largest_batch or _NEXT_SIZE
    if not program.is_dynamic:
        size = program.batch.n_samples
        while start < n_samples:
            yield samples.take(start, size)
            start += size
        return
    for size in _SIZES:
        yield samples.take(start, min(size, largest))
        start += size
    while start < n_samples:
        size = min(_NEXT_SIZE, largest, n_samples - start)
        yield samples.take(start, size)
        start += size


def _reference(model: nn.Module, batch: Batch) -> object:
    # A seed, so that a model that draws random numbers differs from its file every time, not now and then.
    with torch.no_grad(), fixed_seed(model):
        return run(model, batch)


def _check_repeats(program: Program, first: object, second: object, bound: float) -> None:
    """Refuses a model that answers otherwise when it is called again: a file may agree by chance only."""
    again = program.model.output_tensors(second)
    for name, tensor in program.model.output_tensors(first).items():
        difference = relative_difference(tensor, again[name])
        if difference > max(bound, _bound_for([tensor])):
            raise ExportError(
                f"{program.model.title} keeps state: called twice with the same samples and the same seed, "
                f"{name} differs by {difference:.2g} of its largest value; make what it keeps an input and "
                "an output, or switch it off"
            )


def _check_finite(program: Program, is_finite: Mapping[str, bool]) -> None:
    """Refuses a model that gives nothing to compare."""
    for name, has_values in is_finite.items():
        if not has_values:
            raise ExportError(
                f"output {name} of {program.model.title} holds nothing but nan and inf on the samples, so "
                "the file cannot be checked; check weights and data"
            )


def _agreement(
    results: list[object], replaced: list[object], batches: list[Batch], reading: Reading
) -> float | None:
    """Share of equal classes, mean over the outputs that are classes."""
    if reading.outputs is None and not any(
        tensor.is_floating_point() and tensor.ndim for _, tensor in named_tensors(results[0])
    ):
        return None
    picked = [pick_outputs(result, reading.outputs) for result in results]
    # Outputs whose length depends on values may be empty.
    kept = [index for index, values in enumerate(picked) if all(tensor.numel() for tensor in values.values())]
    if not kept:
        return None
    references = [picked[index] for index in kept]
    replaced = [replaced[index] for index in kept]
    batches = [batches[index] for index in kept]
    likelihood = reading.likelihood
    if not isinstance(likelihood, Likelihood):
        likelihood = read_likelihood(references, batches, likelihood)
    # Classes are told by the families; a loss of the caller's tells nothing of them.
    likelihood = replace(likelihood, loss=None)
    plain: list[Picked] = [Picked(None, dict(reference)) for reference in references]
    measured = measure_agreement(replaced, plain, batches, likelihood, reading.outputs)
    shares = [output.top1 for output in measured.values() if output.top1 is not None]
    return sum(shares) / len(shares) if shares else None
