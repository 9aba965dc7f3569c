# SPDX-License-Identifier: Apache-2.0
"""Calibration batches: read again and again, cut into micro-batches, split once into fit and hold-out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, BatchesTypeError
from slimrank.cost import MEMORY
from slimrank.forward import Batch, as_batch, check_batch, digest_batch, join_samples, take_samples

_COPIES_IN_GRAPH = 3
_MAX_MICRO = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """The samples of a study.

    Attributes:
        batches: re-iterable, as the caller gave it.
        read: makes a ``Batch`` of what it yields.
        digests: fingerprint of every batch, from the first pass.
        sizes: samples per batch; 1 each where batches cannot be cut.
        held_out: indices of the samples kept out of every fit, ascending.
        micro: samples per forward at most; 0 where batches cannot be cut.
    """

    batches: Iterable[object]
    read: Callable[[object], Batch]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    held_out: tuple[int, ...]
    micro: int

    @property
    def n_samples(self) -> int:
        """All samples."""
        return sum(self.sizes)

    @property
    def fit(self) -> tuple[int, ...]:
        """Indices of the samples that fits see; all of them where there is but one."""
        held_out = set(self.held_out)
        fit = tuple(index for index in range(self.n_samples) if index not in held_out)
        return fit or self.held_out

    @property
    def fingerprint(self) -> str:
        """Of all inputs, by value."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def stream(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Micro-batches of these samples, in the order of the data.

        Args:
            indices: sample indices.

        Yields:
            Batches of at most ``micro`` samples.

        Raises:
            BatchesError: the batches differ from those of the first pass.
        """
        wanted = sorted(set(indices))
        waiting: Batch | None = None
        start = 0
        position = 0
        for number, batch in enumerate(self._again()):
            size = self.sizes[number]
            local = []
            while position < len(wanted) and wanted[position] < start + size:
                local.append(wanted[position] - start)
                position += 1
            start += size
            if not local:
                continue
            if self.micro == 0:
                yield replace(batch, is_whole=True)
                continue
            for first in range(0, len(local), self.micro):
                piece = take_samples(batch, local[first : first + self.micro])
                joined = None
                if waiting is not None and waiting.n_samples + piece.n_samples <= self.micro:
                    # Loaders with small batches: fewer, larger forwards.
                    joined = join_samples(waiting, piece)
                if joined is None and waiting is not None:
                    yield waiting
                waiting = joined or piece
        if waiting is not None:
            yield waiting

    def _again(self) -> Iterator[Batch]:
        count = 0
        for number, raw in enumerate(self.batches):
            batch = replace(self.read(raw), where=f"batch {number}")
            if number >= len(self.digests) or digest_batch(batch) != self.digests[number]:
                raise BatchesError(
                    f"batch {number} differs from what the first pass gave; the study needs the same data "
                    "every time: use shuffle=False and no random augmentation, or pass list(loader)"
                )
            count += 1
            yield batch
        if count < len(self.digests):
            raise BatchesError(
                f"the batches ended after {count} of {len(self.digests)}; give a re-iterable such as a list"
            )


def spread(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """At most so many of the indices, evenly spaced: data are often sorted by class.

    Args:
        indices: sample indices, ascending.
        count: how many at most.

    Returns:
        The chosen ones, ascending.
    """
    if count >= len(indices):
        return tuple(indices)
    return tuple(indices[number * len(indices) // count] for number in range(count))


def first_batch(batches: object, inputs: Callable[[object], object] | None, model: nn.Module) -> Batch:
    """The first batch, checked.

    Args:
        batches: what the caller gave.
        inputs: turns what the loader yields into inputs of the model; None for as it is.
        model: where the batches go.

    Returns:
        The batch.

    Raises:
        BatchesTypeError: ``batches`` cannot be read several times.
        BatchesError: there is none.
        DeviceError: batches and model lie on different devices.
        NonFiniteError: data hold nan or inf.
    """
    if isinstance(batches, Tensor):
        raise BatchesTypeError(
            f"batches is a bare tensor {list(batches.shape)}; give a list of batches, e.g. [tensor] or "
            "list(tensor.split(64))"
        )
    if isinstance(batches, nn.Module | str | bytes | Mapping):
        raise BatchesTypeError(
            f"batches is a {type(batches).__name__}; give a re-iterable of batches, "
            "e.g. a list or a DataLoader"
        )
    if not isinstance(batches, Iterable):
        raise BatchesTypeError(
            f"batches is a {type(batches).__name__}, which cannot be iterated; give a list or a DataLoader"
        )
    if iter(batches) is batches:
        raise BatchesTypeError(
            f"batches is a {type(batches).__name__} that can be read only once; "
            "pass list(batches) or a DataLoader"
        )
    raw = next(iter(batches), None)
    if raw is None:
        raise BatchesError(
            "batches is empty; give at least one batch (a few hundred samples are a good number)"
        )
    batch = _reader(inputs)(raw)
    _check_samples(batch, 0)
    check_batch(batch, model, "batch 0")
    return batch


def open_feed(
    batches: Iterable[object],
    inputs: Callable[[object], object] | None,
    model: nn.Module,
    *,
    can_split: bool,
    output_elements: int,
    holdout: float,
    seed: int,
) -> Feed:
    """Reads all batches once: counts, fingerprints and checks them, and fixes the held-out samples.

    Args:
        batches: re-iterable.
        inputs: turns what the loader yields into inputs of the model.
        model: where the batches go.
        can_split: whether batches can be cut into samples.
        output_elements: numbers that the layer outputs of one sample hold, to size micro-batches.
        holdout: share of samples to keep out of fits, in (0, 1).
        seed: of the choice.

    Returns:
        The feed.

    Raises:
        BatchesError: empty batches.
        DeviceError, NonFiniteError: as in ``first_batch``.
    """
    read = _reader(inputs)
    digests: list[str] = []
    sizes: list[int] = []
    for number, raw in enumerate(batches):
        batch = read(raw)
        _check_samples(batch, number)
        check_batch(batch, model, f"batch {number}")
        digests.append(digest_batch(batch))
        sizes.append(batch.n_samples if can_split else 1)
    total = sum(sizes)
    generator = torch.Generator().manual_seed(seed)
    count = min(max(1, round(holdout * total)), max(1, total - 1))
    held_out = torch.randperm(total, generator=generator, device="cpu")[:count].sort().values.tolist()
    per_sample = max(1, _COPIES_IN_GRAPH * 4 * output_elements)
    micro = max(1, min(_MAX_MICRO, MEMORY.graph // per_sample)) if can_split else 0
    return Feed(
        batches=batches,
        read=read,
        digests=tuple(digests),
        sizes=tuple(sizes),
        held_out=tuple(held_out),
        micro=micro,
    )


def _reader(inputs: Callable[[object], object] | None) -> Callable[[object], Batch]:
    if inputs is not None and not callable(inputs):
        raise BatchesTypeError(
            f"inputs={inputs!r} is no function; give one that makes inputs of a batch, "
            "e.g. inputs=lambda b: b[0]"
        )

    def read(raw: object) -> Batch:
        if inputs is None:
            return as_batch(raw)
        try:
            made = inputs(raw)
        except Exception as error:
            raise BatchesError(
                f"inputs= failed on a batch, a {type(raw).__name__}: {type(error).__name__}: {error}; "
                "make it fit what the loader yields"
            ) from error
        return as_batch(made)

    return read


def _check_samples(batch: Batch, number: int) -> None:
    if batch.n_samples == 0:
        raise BatchesError(f"batch {number} holds no sample; leave empty batches out")
