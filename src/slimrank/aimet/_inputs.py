# SPDX-License-Identifier: Apache-2.0
"""Inputs of the model: seen while the callback runs, taken from a data loader, or made up from shapes."""

import inspect
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, OptionError
from slimrank._numbers import whole_number
from slimrank.aimet._parameters import ChannelPruningParameters
from slimrank.forward import Batch, as_batch, batch_tensors, join_samples, map_tensors, take_samples

# Samples that are kept of all that the callback runs: a study gains little from more.
MAX_SAMPLES = 512
# Bytes of inputs that are kept at most; one sample is kept whatever it takes.
MAX_BYTES = 512 * 2**20
# Inputs that channel pruning takes at least, where the loader has them: AIMET's smaller numbers count pixels.
MIN_IMAGES = 128
# AIMET draws so many pixels of each input for a reconstruction.
_PIXELS_PER_IMAGE = 10
# Samples a batch.
_BATCH = 32

# What sr.study takes: positional arguments, or keywords.
Raw = tuple[object, ...] | dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample, or a call that cannot be cut.

    Attributes:
        key: random; those with the smallest keys stay.
        number: in the order in which samples came.
        batch: the arguments.
        n_bytes: of their tensors.
    """

    key: float
    number: int
    batch: Batch
    n_bytes: int


class InputSampler:
    """Keeps a uniform choice of the samples that a model is called with.

    Args:
        device: where samples are kept.
        max_samples: that are kept.
        max_bytes: of them; one sample is kept whatever it takes.
    """

    def __init__(
        self, device: torch.device, *, max_samples: int = MAX_SAMPLES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._device = device
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._kept: list[Sample] = []
        # The choice is one of the seed and the order alone, so that a second run sees the same.
        self._random = random.Random(0)
        self._limit = inf
        self._n_bytes = 0
        self.n_seen = 0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Every call of the model is seen while the context lasts."""

        def see(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self.add(_arguments(module, args, kwargs))

        handle = model.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def add(self, batch: Batch) -> None:
        """Offers the samples of one call."""
        tensors = [tensor for _, tensor in batch_tensors(batch)]
        if not tensors:
            return
        sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
        n_samples = batch.n_samples
        if sizes == {n_samples}:
            parts = [(index, n_samples) for index in range(n_samples)]
        else:
            # Which samples belong together is not known: the call counts as one.
            parts = [(0, 1)]
            batch = Batch(args=batch.args, kwargs=batch.kwargs, is_whole=True)
        for index, count in parts:
            key = self._random.random()
            number, self.n_seen = self.n_seen, self.n_seen + 1
            if key >= self._limit:
                continue
            part = batch if count == 1 else take_samples(batch, [index])
            self._keep(key, number, part)

    def _keep(self, key: float, number: int, part: Batch) -> None:
        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().to(self._device, copy=True)

        with torch.inference_mode(mode=False):
            own = Batch(
                args=tuple(map_tensors(value, copied) for value in part.args),
                kwargs={name: map_tensors(value, copied) for name, value in part.kwargs.items()},
                is_whole=part.is_whole,
            )
        n_bytes = sum(tensor.numel() * tensor.element_size() for _, tensor in batch_tensors(own))
        self._kept.append(Sample(key=key, number=number, batch=own, n_bytes=n_bytes))
        self._n_bytes += n_bytes
        while len(self._kept) > 1 and (
            len(self._kept) > self._max_samples or self._n_bytes > self._max_bytes
        ):
            largest = max(self._kept, key=lambda sample: sample.key)
            self._kept.remove(largest)
            self._limit = largest.key
            self._n_bytes -= largest.n_bytes

    @property
    def n_kept(self) -> int:
        """Samples that are kept."""
        return len(self._kept)

    def batches(self) -> list[Raw]:
        """The samples in the order in which they came, joined where they have one shape."""
        joined: list[Batch] = []
        for sample in sorted(self._kept, key=lambda kept: kept.number):
            last = joined[-1] if joined else None
            can_grow = last is not None and not (last.is_whole or sample.batch.is_whole)
            together = (
                join_samples(last, sample.batch)
                if last is not None and can_grow and last.n_samples < _BATCH
                else None
            )
            if together is None:
                joined.append(sample.batch)
            else:
                joined[-1] = together
        return [batch.args if batch.args else dict(batch.kwargs) for batch in joined]


def _arguments(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Batch:
    """The arguments of a call, all positional or all by name."""
    if not args or not kwargs:
        return Batch(args=args, kwargs=dict(kwargs))
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    if len(bound.args) == len(bound.arguments):
        return Batch(args=bound.args, kwargs={})
    names = dict(zip(bound.arguments, bound.args, strict=False))
    return Batch(args=(), kwargs={**names, **bound.kwargs})


def read_input_shape(input_shape: object) -> tuple[tuple[int, ...], ...]:
    """The shapes of the inputs.

    Args:
        input_shape: a shape with the batch dimension, or a list of shapes.

    Returns:
        One shape an input.

    Raises:
        OptionError: something else.
    """
    if isinstance(input_shape, tuple | list) and input_shape:
        shapes = input_shape if isinstance(input_shape[0], tuple | list) else [input_shape]
        read = [
            tuple(whole_number(size) or 0 for size in shape) if isinstance(shape, tuple | list) else ()
            for shape in shapes
        ]
        if all(shape and min(shape) > 0 for shape in read):
            return tuple(read)
    raise OptionError(
        f"input_shape is {input_shape!r}; give a shape with the batch dimension, e.g. (1, 3, 224, 224), or "
        "one shape for each input: [(1, 3, 224, 224), (1, 10)]"
    )


def made_up(shapes: Sequence[tuple[int, ...]], model: nn.Module) -> list[Raw]:
    """One batch of random numbers, which tells shapes and no more."""
    floating = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(torch.rand(shape, generator=generator).to(floating.device, floating.dtype) for shape in shapes)
    ]


def from_loader(
    parameters: ChannelPruningParameters, n_inputs: int, device: torch.device
) -> tuple[list[Raw], int, int]:
    """Inputs from the loader of channel pruning, read once.

    Args:
        parameters: with the loader.
        n_inputs: tensors that the model takes.
        device: of the model.

    Returns:
        Batches; the number of samples in them; the number that was asked for.

    Raises:
        OptionError: no loader, or no number of samples.
        BatchesError: the loader yields nothing, or something else than inputs with or without a label.
    """
    asked = whole_number(parameters.num_reconstruction_samples)
    if asked is None or asked < 1:
        raise OptionError(
            f"num_reconstruction_samples={parameters.num_reconstruction_samples!r}; give a whole number of "
            "at least 1, e.g. 5000"
        )
    loader = parameters.data_loader
    if isinstance(loader, Tensor | nn.Module | str | Mapping) or not isinstance(loader, Iterable):
        raise OptionError(f"data_loader is a {type(loader).__name__}; give a DataLoader or a list of batches")
    wanted = max(-(-asked // _PIXELS_PER_IMAGE), MIN_IMAGES)
    sampler = InputSampler(device, max_samples=wanted)
    for number, item in enumerate(loader):
        batch = as_batch(_inputs_of(item, n_inputs, f"data_loader, batch {number}"))
        size = batch.n_samples
        room = wanted - sampler.n_seen
        sampler.add(take_samples(batch, range(room)) if size > room else batch)
        if sampler.n_seen >= wanted:
            break
    if not sampler.n_kept:
        raise BatchesError("data_loader yields no tensors; give a loader with at least one batch")
    return sampler.batches(), sampler.n_kept, wanted


def _inputs_of(item: object, n_inputs: int, where: str) -> object:
    """The inputs in what a loader yields, without labels."""
    if isinstance(item, Tensor | Mapping):
        return item
    if isinstance(item, tuple | list) and item:
        first = item[0]
        if len(item) == 2 and isinstance(first, tuple | list | Mapping):
            return first if isinstance(first, Mapping) else tuple(first)
        if len(item) == n_inputs:
            return tuple(item)
        if n_inputs > 1 and len(item) == n_inputs + 1:
            return tuple(item[:-1])
        if len(item) == 2:
            return first
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise BatchesError(
        f"{where} is a {type(item).__name__}{size}, and input_shape has {n_inputs} input"
        f"{'s' * (n_inputs > 1)}; yield inputs, or (inputs, labels) pairs"
    )


def shapes_of(batches: Sequence[Raw]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors in the first batch, without the batch dimension."""
    return tuple(tuple(tensor.shape[1:]) for _, tensor in batch_tensors(as_batch(batches[0])))
