# SPDX-License-Identifier: Apache-2.0
"""An int8 file against the float model, on samples that it was not calibrated with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank._errors import ExportError
from slimrank.calibrate import Likelihood, measure_agreement, read_likelihood
from slimrank.deploy._check import Reading, exchange
from slimrank.deploy._difference import largest_difference, largest_of, relative_to
from slimrank.deploy._program import Program
from slimrank.deploy._runtime import Runtime
from slimrank.forward import Batch, Picked, fixed_seed, map_tensors, named_tensors, pick_outputs, run
from slimrank.records import Agreement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """How far an int8 file is from the float model.

    Attributes:
        max_error: largest difference over the largest value of an output, of the worst output.
        noise_db: signal over noise in decibels, by output.
        agreement: in the words of the study; None where outputs hold no numbers that can be compared.
        not_finite: names of outputs that hold nan or inf where the model's do not.
        equal_values: share of equal values, of the worst output, where all hold whole numbers; else None.
    """

    max_error: float
    noise_db: Mapping[str, float]
    agreement: Agreement | None
    not_finite: tuple[str, ...] = ()
    equal_values: float | None = None

    @property
    def divergence(self) -> float:
        """Per sample, from the model; of whole numbers the share that differs; inf where neither is told."""
        if self.agreement is not None:
            return math.inf if math.isnan(self.agreement.divergence) else self.agreement.divergence
        return math.inf if self.equal_values is None else 1 - self.equal_values

    @property
    def lost(self) -> float:
        """Share of what outputs tell that is lost, or of whole numbers that differ; 0 where none is told."""
        if self.agreement is not None:
            return self.agreement.lost
        return 0.0 if self.equal_values is None else 1 - self.equal_values

    @property
    def worst_db(self) -> float:
        """Of the output with most noise; inf where no output holds numbers."""
        return min(self.noise_db.values(), default=math.inf)

    @property
    def equal_classes(self) -> float | None:
        """Share of equal classes, mean over the outputs that are classes; None where none is."""
        return None if self.agreement is None else self.agreement.top1


class Judge:
    """The float model's answers on samples, for one int8 file after another.

    Args:
        program: that the files were made of.
        model: that was exported, in eval mode on the CPU.
        batches: to judge on, of sizes that the program takes.
        reading: how outputs are read.

    Attributes:
        not_finite: names of outputs in which the model itself has inf or nan; then divergence is not told.
        has_whole_numbers: outputs hold nothing but whole numbers, which are equal or not.
    """

    def __init__(
        self, program: Program, model: nn.Module, batches: Sequence[Batch], reading: Reading
    ) -> None:
        self._program = program
        self._batches = batches
        with torch.no_grad(), fixed_seed(model):
            self._results = [run(model, batch) for batch in batches]
        self._outputs = reading.outputs
        self._references: list[Picked] = []
        self._likelihood: Likelihood | None = None
        named = [program.model.output_tensors(result) for result in self._results]
        self.not_finite = tuple(
            name for name in program.outputs if not all(bool(found[name].isfinite().all()) for found in named)
        )
        self.has_whole_numbers = not any(
            tensor.is_floating_point() or tensor.is_complex() for tensor in named[0].values()
        )
        has_numbers = any(
            tensor.is_floating_point() and tensor.ndim for _, tensor in named_tensors(self._results[0])
        )
        if reading.outputs is None and not has_numbers:
            return
        self._references = [pick_outputs(result, reading.outputs) for result in self._results]
        if not all(tensor.numel() for picked in self._references for tensor in picked.values()):
            # Outputs whose length depends on values may be empty.
            return
        if not all(tensor.isfinite().all() for picked in self._references for tensor in picked.values()):
            return
        known = isinstance(reading.likelihood, Likelihood)
        self._likelihood = (
            reading.likelihood
            if isinstance(reading.likelihood, Likelihood)
            else read_likelihood(
                [Picked(None, dict(picked)) for picked in self._references], batches, reading.likelihood
            )
        )
        if not known:
            self._references = [Picked(None, dict(picked)) for picked in self._references]

    @property
    def has_divergence(self) -> bool:
        """Whether outputs hold numbers that can be compared as the study does."""
        return self._likelihood is not None

    def judge(self, runtime: Runtime) -> Judged:
        """Runs a file on the samples.

        Args:
            runtime: with the file.

        Returns:
            How far it is from the model.

        Raises:
            ExportError: the runtime fails, or an output has another shape.
        """
        answers: list[object] = []
        not_finite: set[str] = set()
        errors = dict.fromkeys(self._program.outputs, 0.0)
        largest, signal, noise = dict(errors), dict(errors), dict(errors)
        n_equal, n_values = dict.fromkeys(errors, 0), dict.fromkeys(errors, 0)
        for batch, result in zip(self._batches, self._results, strict=True):
            expected = self._program.model.output_tensors(result)
            found = dict(zip(self._program.outputs, runtime(batch)(), strict=True))
            new: dict[int, Tensor] = {}
            for name, tensor in found.items():
                reference = expected[name]
                _check_shape(name, reference, tensor)
                if bool((~tensor.isfinite() & reference.isfinite()).any()):
                    not_finite.add(name)
                new[id(reference)] = tensor.to(reference.dtype)
                errors[name] = max(errors[name], largest_difference(reference, tensor))
                largest[name] = max(largest[name], largest_of(reference))
                n_equal[name] += int((tensor == reference).sum())
                n_values[name] += reference.numel()
                if reference.is_floating_point():
                    powers = signal_and_noise(reference, tensor)
                    signal[name] += powers[0]
                    noise[name] += powers[1]
            answers.append(map_tensors(result, exchange(new)))
        numbers = [name for name in errors if signal[name] or noise[name]]
        return Judged(
            max_error=max((relative_to(errors[name], largest[name]) for name in errors), default=0.0),
            noise_db={name: decibels(signal[name], noise[name]) for name in numbers},
            agreement=self._agreement(answers),
            not_finite=tuple(sorted(not_finite)),
            equal_values=min(
                (n_equal[name] / n_values[name] for name in errors if n_values[name]), default=1.0
            )
            if self.has_whole_numbers
            else None,
        )

    def _agreement(self, answers: Sequence[object]) -> Agreement | None:
        if self._likelihood is None:
            return None
        return measure_agreement(answers, self._references, self._batches, self._likelihood, self._outputs)


def signal_and_noise(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Sums of squares: of what is expected, where it is finite, and of what differs from it.

    The noise is inf where one of the two is not finite and the other is not the same.
    """
    plain, other = expected.double(), found.double()
    is_finite = plain.isfinite()
    same = (plain == other) | (plain.isnan() & other.isnan())
    noise = (other - plain).square().nan_to_num(nan=math.inf, posinf=math.inf).where(~same, 0.0)
    return float(plain.where(is_finite, 0.0).square().sum()), float(noise.sum())


def decibels(signal: float, noise: float) -> float:
    """Signal over noise, both as sums of squares; inf without noise, -inf without signal or end."""
    if noise == 0:
        return math.inf
    if not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _check_shape(name: str, expected: Tensor, found: Tensor) -> None:
    """Refuses outputs that nothing could be said of."""
    if found.shape != expected.shape:
        raise ExportError(
            f"output {name} of the int8 file is {list(found.shape)} where the model's is "
            f"{list(expected.shape)}: its size depends on values, which int8 changes; pass quantize=None, or "
            "wrap the model so that it returns what comes before"
        )
