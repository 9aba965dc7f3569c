# SPDX-License-Identifier: Apache-2.0
"""Calibration samples to check and to time an export with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from slimrank._errors import BatchesError
from slimrank.forward import (
    Batch,
    batch_tensors,
    changed_tensors,
    digest_batch,
    join_samples,
    named_tensors,
    on_cpu,
    take_samples,
)

# Samples that an export is checked with at most: more tell no more of a float file.
CHECKED = 32
# Samples that an int8 file is calibrated and judged with at most, and what they may take: large inputs are
# fewer, but never fewer than those of a check.
CALIBRATED, _MAX_BYTES = 256, 2**30
# Of so many samples or more, the last quarter is kept for judging an int8 file.
_SPLIT_FROM, _JUDGED_SHARE = 16, 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Real inputs on the CPU.

    Attributes:
        batch: all of them.
        n_first: samples in the first batch.
        has_others: there are samples of other shapes, or with other arguments that are no tensors, too, which
            are left out.
    """

    batch: Batch
    n_first: int
    has_others: bool

    def take(self, start: int, count: int) -> Batch:
        """So many samples from a position on; from the first again where they end."""
        n_samples = self.batch.n_samples
        if self.batch.is_whole:
            return self.batch
        return take_samples(self.batch, [(start + index) % n_samples for index in range(count)])

    def part(self, start: int, stop: int) -> "Samples":
        """The samples between two positions."""
        if self.batch.is_whole:
            return self
        return replace(self, batch=take_samples(self.batch, range(start, min(stop, self.batch.n_samples))))

    def in_batches(self, at_most: int) -> list[Batch]:
        """The first samples, some at a time, for a model that runs in torch."""
        if self.batch.is_whole:
            return [self.batch]
        n_samples = min(at_most, self.batch.n_samples)
        # As many as the model was given at a time: it may take no other number.
        size = min(self.n_first, n_samples)
        return [self.take(start, size) for start in range(0, n_samples, size)]

    def split(self) -> "tuple[Samples, Samples]":
        """Those to calibrate with, and those to judge on: the same where there are few."""
        n_samples = self.batch.n_samples
        if n_samples < _SPLIT_FROM:
            return self, self
        middle = n_samples - n_samples // _JUDGED_SHARE
        return self.part(0, middle), self.part(middle, n_samples)


def read_samples(batches: Iterable[Batch], at_most: int = CHECKED) -> Samples:
    """The first samples that have the shapes of the first batch.

    Args:
        batches: checked.
        at_most: samples; fewer where inputs are large, but as many as an export is checked with.

    Returns:
        The samples.

    Raises:
        BatchesError: there is none.
    """
    found: list[Batch] = []
    has_others, n_samples = False, 0
    for raw in batches:
        batch = on_cpu(raw)
        if not found:
            found.append(batch)
        elif found[0].is_whole:
            break
        elif join_samples(found[0], batch) is not None:
            found.append(batch)
        else:
            # Tensors in containers are not joined: then those of the first batch are enough.
            has_others = has_others or _kind(found[0]) != _kind(batch)
            continue
        n_samples += batch.n_samples
        is_large = n_samples >= CHECKED and sum(map(_size, found)) >= _MAX_BYTES
        if n_samples >= at_most or is_large:
            break
    if not found:
        raise BatchesError("batches is empty; give at least one batch")
    joined = _all_joined(found)
    if n_samples > at_most:
        joined = take_samples(joined, range(at_most))
    return Samples(batch=joined, n_first=found[0].n_samples, has_others=has_others)


def _all_joined(batches: Sequence[Batch]) -> Batch:
    """Batches that can be joined as one; by halves, so that no sample is copied often."""
    if len(batches) == 1:
        return batches[0]
    middle = len(batches) // 2
    joined = join_samples(_all_joined(batches[:middle]), _all_joined(batches[middle:]))
    if joined is None:
        raise BatchesError("batches that have one shape cannot be joined; give batches of tensors")
    return joined


def _size(batch: Batch) -> int:
    """Bytes of its tensors."""
    return sum(tensor.nbytes for _, tensor in batch_tensors(batch))


def is_constant(batch: Batch) -> bool:
    """Whether all samples are the same; of a single one, whether every input holds one value only."""
    if batch.n_samples > 1:
        first = _digest_sample(batch, 0)
        return all(_digest_sample(batch, index) == first for index in range(1, batch.n_samples))
    tensors = [tensor for _, tensor in batch_tensors(batch) if tensor.numel()]
    return bool(tensors) and all(bool((tensor == tensor.flatten()[0]).all()) for tensor in tensors)


def _digest_sample(batch: Batch, index: int) -> str:
    """Fingerprint of the values of one sample, of which -0.0 and 0.0 are the same."""

    def without_sign_of_zero(tensor: Tensor) -> Tensor:
        return tensor + 0.0 if tensor.is_floating_point() else tensor

    return digest_batch(changed_tensors(take_samples(batch, [index]), without_sign_of_zero))


def count_told(count: int) -> str:
    """So many samples, in words."""
    return f"{count} {'sample' if count == 1 else 'samples'}"


def shapes_told(batch: Batch) -> str:
    """The shapes of inputs without the batch, for messages."""
    n_samples = batch.n_samples
    told = []
    for name, tensor in batch_tensors(batch):
        sizes = [str(size) for size in tensor.shape]
        if tensor.ndim and tensor.shape[0] == n_samples:
            sizes[0] = "batch"
        told.append(f"{name} ({', '.join(sizes)})")
    return ", ".join(told)


def _kind(batch: Batch) -> list[object]:
    """What samples must have in common to go into one file."""
    shapes = [(name, tensor.shape[1:], tensor.dtype) for name, tensor in batch_tensors(batch)]
    values = (*batch.args, *batch.kwargs.values())
    return [shapes, [value for value in values if not any(named_tensors(value))]]
