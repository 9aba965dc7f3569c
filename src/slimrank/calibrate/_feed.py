# SPDX-License-Identifier: Apache-2.0
"""Calibration batches: read again and again, cut into micro-batches, split once into fit and hold-out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, BatchesTypeError
from slimrank.cost import SAMPLING
from slimrank.forward import Batch, as_batch, check_batch, digest_batch, join_samples, take_samples

# How many float32 numbers a backward pass keeps per number of a layer's output, about. More makes
# micro-batches smaller; rows are drawn for each micro-batch, so both constants change numbers.
_COPIES_IN_GRAPH = 3
# Samples per forward at most, however small they are. More means fewer, larger forwards.
_MAX_MICRO_SIZE = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """The samples of a study.

    Attributes:
        batches: what the caller gave; it can be read several times.
        read: turns what ``batches`` yields into a ``Batch``.
        digests: fingerprint of every batch, from the first pass.
        sizes: samples per batch; 1 each where batches cannot be cut.
        held_out: indices of the samples kept out of every fit, ascending.
        micro_size: samples per forward at most; 0 where batches cannot be cut.
    """

    batches: Iterable[object]
    read: Callable[[object], Batch]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    held_out: tuple[int, ...]
    micro_size: int

    @property
    def n_samples(self) -> int:
        """Number of all samples."""
        return sum(self.sizes)

    @property
    def fit(self) -> tuple[int, ...]:
        """Indices of the samples that fits use; of a single sample both sides have it."""
        held_out = set(self.held_out)
        fit = tuple(index for index in range(self.n_samples) if index not in held_out)
        return fit or self.held_out

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all inputs, by value."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def stream(self, indices: Iterable[int]) -> Iterator[Batch]:
        """Micro-batches of these samples, in the order of the data.

        Args:
            indices: sample indices.

        Yields:
            Batches of at most ``micro_size`` samples.

        Raises:
            BatchesError: the batches differ from those of the first pass.
        """
        for _, batch in self.stream_parts([indices]):
            yield batch

    def stream_parts(self, parts: Iterable[Iterable[int]]) -> Iterator[tuple[int, Batch]]:
        """Micro-batches of several sets of samples, in one pass over the data.

        Args:
            parts: sample indices of each set.

        Yields:
            The number of a set, and a batch of at most ``micro_size`` of its samples; those of each set in
            the order of the data.

        Raises:
            BatchesError: the batches differ from those of the first pass.
        """
        cutters = [_Cutter(indices, self.micro_size) for indices in parts]
        start = 0
        for number, batch in enumerate(self._read_again()):
            size = self.sizes[number]
            for part, cutter in enumerate(cutters):
                for micro in cutter.cut(batch, start, size):
                    yield part, micro
            start += size
        for part, cutter in enumerate(cutters):
            if cutter.pending is not None:
                yield part, cutter.pending

    def _read_again(self) -> Iterator[Batch]:
        """All batches, each compared with what the first pass gave."""
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


class _Cutter:
    """Cuts micro-batches of some samples out of the batches of a pass.

    Args:
        indices: of the samples.
        micro_size: samples per micro-batch at most; 0 where batches cannot be cut.

    Attributes:
        pending: the last one, while samples may still come to it.
    """

    def __init__(self, indices: Iterable[int], micro_size: int) -> None:
        self._wanted = sorted(set(indices))
        self._micro_size = micro_size
        self._n_found = 0
        self.pending: Batch | None = None

    def cut(self, batch: Batch, start: int, size: int) -> Iterator[Batch]:
        """Micro-batches that are complete.

        Args:
            batch: the next one of the pass.
            start: index of its first sample.
            size: its samples.
        """
        rows = []
        while self._n_found < len(self._wanted) and self._wanted[self._n_found] < start + size:
            rows.append(self._wanted[self._n_found] - start)
            self._n_found += 1
        if not rows:
            return
        if self._micro_size == 0:
            yield replace(batch, is_whole=True)
            return
        for first in range(0, len(rows), self._micro_size):
            cut = take_samples(batch, rows[first : first + self._micro_size])
            joined = None
            if self.pending is not None and self.pending.n_samples + cut.n_samples <= self._micro_size:
                # Loaders with small batches: fewer, larger forwards.
                joined = join_samples(self.pending, cut)
            if joined is None and self.pending is not None:
                yield self.pending
            self.pending = joined or cut


def evenly_spaced(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """At most ``count`` of the indices, evenly spaced, since data are often sorted by class.

    Args:
        indices: sample indices, ascending.
        count: how many indices at most.

    Returns:
        The chosen indices, ascending.
    """
    if count >= len(indices):
        return tuple(indices)
    return tuple(indices[number * len(indices) // count] for number in range(count))


def part_of(feed: Feed, n_fit: int) -> Feed:
    """A few samples of a feed, held in memory: read once, however often they are used.

    Args:
        feed: all samples.
        n_fit: fit samples at most; of the held-out ones stays as large a share.

    Returns:
        A feed of these.
    """
    share = min(1.0, n_fit / len(feed.fit))
    held_out = evenly_spaced(feed.held_out, max(1, round(share * len(feed.held_out))))
    chosen = sorted({*evenly_spaced(feed.fit, n_fit), *held_out})
    batches = tuple(feed.stream(chosen))
    return replace(
        feed,
        batches=batches,
        read=lambda batch: cast(Batch, batch),
        digests=tuple(digest_batch(batch) for batch in batches),
        sizes=tuple(batch.n_samples for batch in batches),
        held_out=tuple(index for index, chosen_index in enumerate(chosen) if chosen_index in held_out),
    )


def first_batch(batches: object, inputs: Callable[[object], object] | None, model: nn.Module) -> Batch:
    """The first batch, checked.

    Args:
        batches: what the caller gave.
        inputs: turns what the loader yields into inputs of the model; None where it needs no change.
        model: the model that reads the batches; they must lie on its device.

    Returns:
        The batch.

    Raises:
        BatchesTypeError: ``batches`` cannot be read several times.
        BatchesError: there is no batch.
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
    # An iterator would be empty when it is read a second time.
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


def checked_batches(
    batches: Iterable[object], inputs: Callable[[object], object] | None, model: nn.Module
) -> Iterator[Batch]:
    """The batches one after the other, each checked when it is asked for.

    Args:
        batches: what the caller gave.
        inputs: turns what the loader yields into inputs of the model; None where it needs no change.
        model: the model that reads the batches; they must lie on its device.

    Yields:
        Batches.

    Raises:
        BatchesError, DeviceError, NonFiniteError: as in ``first_batch``.
    """
    first_batch(batches, inputs, model)
    read = _reader(inputs)
    for number, raw in enumerate(batches):
        batch = replace(read(raw), where=f"batch {number}")
        _check_samples(batch, number)
        check_batch(batch, model, batch.where)
        yield batch


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
        batches: can be read several times.
        inputs: turns what the loader yields into inputs of the model.
        model: the model that reads the batches; they must lie on its device.
        can_split: whether batches can be cut into samples.
        output_elements: numbers that the layer outputs of one sample hold, to size micro-batches.
        holdout: share of samples to keep out of fits, in (0, 1).
        seed: of the choice of held-out samples.

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
    # At least one sample on either side.
    n_held_out = min(max(1, round(holdout * total)), max(1, total - 1))
    held_out = torch.randperm(total, generator=generator, device="cpu")[:n_held_out].sort().values.tolist()
    fitting = SAMPLING.graph // bytes_in_graph(output_elements)
    micro_size = max(1, min(_MAX_MICRO_SIZE, fitting)) if can_split else 0
    return Feed(
        batches=batches,
        read=read,
        digests=tuple(digests),
        sizes=tuple(sizes),
        held_out=tuple(held_out),
        micro_size=micro_size,
    )


def bytes_in_graph(output_elements: int) -> int:
    """Memory that a backward pass keeps of one sample, about; at least 1.

    Args:
        output_elements: numbers that the layer outputs of the sample hold.
    """
    return max(1, _COPIES_IN_GRAPH * 4 * output_elements)


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
            converted = inputs(raw)
        except Exception as error:
            raise BatchesError(
                f"inputs= failed on a batch, a {type(raw).__name__}: {type(error).__name__}: {error}; "
                "make it fit what the loader yields"
            ) from error
        return as_batch(converted)

    return read


def _check_samples(batch: Batch, number: int) -> None:
    if batch.n_samples == 0:
        raise BatchesError(f"batch {number} holds no sample; leave empty batches out")
