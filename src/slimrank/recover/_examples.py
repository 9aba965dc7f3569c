# SPDX-License-Identifier: Apache-2.0
"""Batches with targets: which are trained on, which judge, read again in every epoch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, BatchesTypeError, OptionError
from slimrank._numbers import real_number
from slimrank.calibrate import first_batch
from slimrank.forward import Batch, as_batch, check_batch, digest_batch, map_tensors, named_tensors

Inputs = Callable[[object], object] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One batch, on the device of the model.

    Attributes:
        batch: arguments of one forward.
        targets: what ``loss_fn`` compares the outputs with; None where nothing is labelled.
    """

    batch: Batch
    targets: object


Read = Callable[[object, str], Example]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """The batches of one training run.

    Attributes:
        batches: re-iterable, as the caller gave it.
        read: makes an ``Example`` of what it yields.
        n_batches: how many it yields.
        held_out: indices of the batches that judge, ascending; empty where the caller gave others for that.
        holdout_batches: other batches that judge; None takes those of ``held_out``.
        digests: fingerprint of every batch that judges, in order.
        fingerprint: of the data, as far as they must be the same in every pass.
    """

    batches: Iterable[object]
    read: Read
    n_batches: int
    held_out: tuple[int, ...]
    holdout_batches: Iterable[object] | None
    digests: tuple[str, ...]
    fingerprint: str

    @property
    def fit(self) -> tuple[int, ...]:
        """Indices of the batches that are trained on; a single batch serves both."""
        held_out = set(self.held_out)
        return tuple(i for i in range(self.n_batches) if i not in held_out) or self.held_out

    @property
    def is_shared(self) -> bool:
        """Whether one batch serves both."""
        return self.holdout_batches is None and self.n_batches == 1

    def stream_fit(self, seed: int | None) -> Iterator[Example]:
        """Batches to train on.

        Args:
            seed: of their order, where ``batches`` is a sequence; None for the order of the data.

        Yields:
            Every batch once.

        Raises:
            BatchesError: there are more or fewer batches than in the first pass.
        """
        fit = self.fit
        if isinstance(self.batches, Sequence):
            if seed is not None:
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(len(fit), generator=generator, device="cpu").tolist()
                fit = tuple(fit[i] for i in order)
            yield from (self.read(self.batches[i], f"batch {i}") for i in fit)
            return
        wanted, count = set(fit), 0
        for index, raw in enumerate(self.batches):
            count += 1
            if index in wanted:
                yield self.read(raw, f"batch {index}")
        if count != self.n_batches:
            raise BatchesError(
                f"the batches ended after {count}, the first pass gave {self.n_batches}; "
                "give a re-iterable such as a list or a DataLoader"
            )

    def stream_held_out(self) -> Iterator[Example]:
        """Batches that judge, in the order of the data.

        Yields:
            Every batch once.

        Raises:
            BatchesError: they differ from those of the first pass.
        """
        count = 0
        for where, raw in _held_out_of(self.batches, self.held_out, self.holdout_batches):
            example = self.read(raw, where)
            if count >= len(self.digests) or _digest(example) != self.digests[count]:
                raise BatchesError(
                    f"{where} differs from what the first pass gave, so no held-out loss can be compared; "
                    "use shuffle=False and no random augmentation, or pass holdout= batches of their own"
                )
            count += 1
            yield example
        if count < len(self.digests):
            raise BatchesError(
                f"{count} of {len(self.digests)} held-out batches came again; "
                "give a re-iterable such as a list or a DataLoader"
            )


def open_training_data(
    batches: Iterable[object],
    read: Read,
    model: nn.Module,
    *,
    holdout: float | Iterable[object],
    seed: int,
) -> TrainingData:
    """Reads all batches once: counts, fingerprints and checks them, and fixes those that judge.

    Args:
        batches: re-iterable.
        read: makes an ``Example`` of what it yields.
        model: where the batches go.
        holdout: share of batches that judge, in (0, 1); or other batches, which leaves ``batches`` free to
            differ from pass to pass.
        seed: of the choice.

    Returns:
        The data.

    Raises:
        OptionError: ``holdout`` out of range.
        BatchesTypeError: batches that cannot be read several times.
        BatchesError: no batch, or an empty one.
        NonFiniteError: inputs hold nan or inf.
    """
    share = real_number(holdout)
    holdout_batches = holdout if share is None and not isinstance(holdout, int | float) else None
    is_share = share is not None and 0 < share < 1
    if holdout_batches is None and not is_share:
        raise OptionError(
            f"holdout={holdout!r} is outside (0, 1); give a share of the batches, e.g. 0.2, or other batches"
        )
    _check_kind(batches, model)
    if holdout_batches is not None:
        try:
            _check_kind(holdout_batches, model)
        except BatchesError as error:
            raise type(error)(f"holdout=: {error}") from error
    # A loader may shuffle where other batches judge, so its batches are no part of the fingerprint.
    is_fixed = holdout_batches is None or isinstance(batches, Sequence)
    digests: list[str] = []
    n_batches = 0
    for index, raw in enumerate(batches):
        example = _checked_example(read(raw, f"batch {index}"), model)
        digests += [_digest(example)] if is_fixed else []
        n_batches += 1
    held_out = () if share is None else _spaced_indices(n_batches, share, seed)
    judging = [digests[i] for i in held_out]
    if holdout_batches is not None:
        judging = [
            _digest(_checked_example(read(raw, where), model))
            for where, raw in _held_out_of(batches, (), holdout_batches)
        ]
    facts = repr((n_batches, digests, held_out, judging))
    return TrainingData(
        batches=batches,
        read=read,
        n_batches=n_batches,
        held_out=held_out,
        holdout_batches=holdout_batches,
        digests=tuple(judging),
        fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
    )


def read_with(inputs: Inputs, targets: Inputs, model: nn.Module, *, labelled: bool) -> Read:
    """How raw batches become examples.

    Args:
        inputs: of the caller; None takes the first of a pair where batches are labelled, else all.
        targets: of the caller; None takes the second of a pair.
        model: its device is where tensors go.
        labelled: whether there are targets.

    Returns:
        The reader.

    Raises:
        BatchesTypeError: a keyword that is no function.
    """
    for keyword, function in (("inputs", inputs), ("targets", targets)):
        if function is not None and not callable(function):
            raise BatchesTypeError(
                f"{keyword}={function!r} is no function; give one of a batch, e.g. {keyword}=lambda b: b[0]"
            )
    devices = {parameter.device for parameter in model.parameters()}
    device = devices.pop() if len(devices) == 1 else None

    def moved(value: object) -> object:
        # Where a model on several devices wants its inputs is for the caller to know.
        return value if device is None else map_tensors(value, lambda tensor: tensor.to(device))

    def read(raw: object, where: str) -> Example:
        if inputs is not None:
            given = _call_on(inputs, raw, "inputs", where)
        else:
            given = _half(raw, 0, where) if labelled else raw
        wanted: object = None
        if labelled:
            wanted = _half(raw, 1, where) if targets is None else _call_on(targets, raw, "targets", where)
        batch = as_batch(given)
        kwargs: Mapping[str, object] = {key: moved(value) for key, value in batch.kwargs.items()}
        args = tuple(moved(value) for value in batch.args)
        return Example(batch=replace(batch, args=args, kwargs=kwargs, where=where), targets=moved(wanted))

    return read


def _call_on(function: Callable[[object], object], raw: object, keyword: str, where: str) -> object:
    try:
        return function(raw)
    except Exception as error:
        raise BatchesError(
            f"{keyword}= failed on {where}, a {type(raw).__name__}: {type(error).__name__}: {error}; "
            "make it fit what the loader yields"
        ) from error


def _half(raw: object, index: int, where: str) -> object:
    """Inputs (0) or targets (1) of a pair."""
    if isinstance(raw, tuple | list) and len(raw) == 2:
        return raw[index]
    length = f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
    raise BatchesTypeError(
        f"{where} is a {type(raw).__name__}{length}, not a pair (inputs, targets); "
        "pass inputs=lambda b: ... and targets=lambda b: ... that pick both out of it"
    )


def _check_kind(batches: object, model: nn.Module) -> None:
    """The checks of ``study`` on batches as a whole; what is in them is checked by ``_checked_example``."""
    first_batch(batches, lambda _raw: torch.zeros(()), model)


def _checked_example(example: Example, model: nn.Module) -> Example:
    """The example; refused where it is empty, not finite, or on another device than the model."""
    if example.batch.n_samples == 0:
        raise BatchesError(f"{example.batch.where} holds no sample; leave empty batches out")
    check_batch(example.batch, model, example.batch.where)
    return example


def _spaced_indices(count: int, share: float, seed: int) -> tuple[int, ...]:
    """A share of the indices, evenly spaced from a start that the seed gives: data are often sorted."""
    wanted = min(max(1, round(share * count)), max(1, count - 1))
    start = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return tuple(int((index + start) * count / wanted) for index in range(wanted))


def _held_out_of(
    batches: Iterable[object], held_out: Sequence[int], holdout_batches: Iterable[object] | None
) -> Iterator[tuple[str, object]]:
    """Raw batches that judge, each with its name for messages."""
    if holdout_batches is not None:
        yield from ((f"holdout batch {index}", raw) for index, raw in enumerate(holdout_batches))
    elif isinstance(batches, Sequence):
        yield from ((f"batch {index}", batches[index]) for index in held_out)
    else:
        wanted = set(held_out)
        for index, raw in enumerate(batches):
            if index in wanted:
                yield f"batch {index}", raw
            if index >= held_out[-1]:
                return


def _digest(example: Example) -> str:
    """Of inputs and targets."""
    targets = tuple(tensor for _, tensor in named_tensors(example.targets) if isinstance(tensor, Tensor))
    return digest_batch(example.batch) + digest_batch(Batch(args=targets, kwargs={}))
