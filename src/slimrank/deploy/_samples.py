# SPDX-License-Identifier: Apache-2.0
"""Calibration samples to check and to time an export with."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from slimrank._errors import BatchesError
from slimrank.forward import Batch, batch_tensors, join_samples, map_tensors, named_tensors, take_samples

# Samples that an export is checked with at most: more tell no more of a float file.
_MAX_SAMPLES = 32


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


def read_samples(batches: Iterable[Batch]) -> Samples:
    """The first samples that have the shapes of the first batch.

    Args:
        batches: checked.

    Returns:
        At most 32 samples.

    Raises:
        BatchesError: there is none.
    """
    found: Batch | None = None
    has_others, n_first = False, 0
    for raw in batches:
        batch = _on_cpu(raw)
        if found is None:
            found, n_first = batch, batch.n_samples
        elif found.is_whole:
            break
        else:
            joined = join_samples(found, batch)
            # Tensors in containers are not joined: then those of the first batch are enough.
            has_others = has_others or (joined is None and _kind(found) != _kind(batch))
            found = joined or found
        if found.n_samples >= _MAX_SAMPLES:
            break
    if found is None:
        raise BatchesError("batches is empty; give at least one batch")
    if found.n_samples > _MAX_SAMPLES:
        found = take_samples(found, range(_MAX_SAMPLES))
    return Samples(batch=found, n_first=n_first, has_others=has_others)


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


def _on_cpu(batch: Batch) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        # A new tensor each time: torch.export has one input where two arguments are the same object.
        return tensor.detach().cpu()

    return replace(
        batch,
        args=tuple(map_tensors(value, move) for value in batch.args),
        kwargs={key: map_tensors(value, move) for key, value in batch.kwargs.items()},
    )
