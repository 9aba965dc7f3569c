# SPDX-License-Identifier: Apache-2.0
"""One batch of inputs: what it is made of, how to cut samples out of it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slimrank._errors import BatchesTypeError, DeviceError, NonFiniteError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Arguments of one forward.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        where: its name in messages ("batch 2").
        is_whole: it cannot be cut, and counts as one sample.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    where: str = "the first batch"
    is_whole: bool = False

    @property
    def n_samples(self) -> int:
        """Samples in the batch: length of the first tensor, or of the first list of tensors."""
        if self.is_whole:
            return 1
        for value in (*self.args, *self.kwargs.values()):
            length = _length(value)
            if length is not None:
                return length
        return 1


def as_batch(raw: object) -> Batch:
    """Reads what a loader yields, after ``inputs=`` was applied; tensors of other libraries become plain.

    Args:
        raw: a tensor (first argument), a tuple or list (positional) or a mapping (keywords).

    Returns:
        The arguments of one forward.

    Raises:
        BatchesTypeError: ``raw`` is something else.
    """
    if any(_is_dressed(tensor) for _, tensor in named_tensors(raw)):
        raw = map_tensors(raw, _plain)
    if isinstance(raw, Tensor):
        return Batch(args=(raw,), kwargs={})
    if isinstance(raw, Mapping):
        return Batch(args=(), kwargs=dict(raw))
    if isinstance(raw, tuple | list):
        return Batch(args=tuple(raw), kwargs={})
    raise BatchesTypeError(
        f"a batch is a {type(raw).__name__}; give a tensor, a tuple (positional) or a dict (keywords), "
        "or pass inputs=lambda b: ... that makes one of it"
    )


def _is_dressed(tensor: Tensor) -> bool:
    """Whether a tensor is of a class that adds to plain numbers, such as MONAI's ``MetaTensor``.

    Such a class runs code of its own in every operation. Wrappers, which hold their numbers elsewhere, are
    none.
    """
    is_plain = type(tensor) in (Tensor, nn.Parameter)
    return not (is_plain or isinstance(tensor, FakeTensor) or is_traceable_wrapper_subclass(tensor))


def _plain(tensor: Tensor) -> Tensor:
    plain: Tensor = tensor.as_subclass(Tensor) if _is_dressed(tensor) else tensor
    return plain


def map_tensors(value: object, change: Callable[[Tensor], object]) -> object:
    """A copy of nested containers with every tensor changed; the rest as it is.

    Containers are tuples, lists, mappings and dataclasses.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named: Callable[..., object] = type(value)
        return named(*(map_tensors(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, Mapping):
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        return changed if type(value) is dict else _like(value, changed)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: map_tensors(getattr(value, f.name), change) for f in dataclasses.fields(value) if f.init
        }
        return dataclasses.replace(value, **fields)
    return value


def _like(value: Mapping[object, object], items: dict[object, object]) -> object:
    maker: Callable[..., object] = type(value)
    keywords = {key: item for key, item in items.items() if isinstance(key, str)}
    return maker(**keywords) if len(keywords) == len(items) else maker(items)


def on_cpu(batch: Batch) -> Batch:
    """A batch whose tensors are on the CPU, without history; each argument has a tensor object of its own."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu()

    return changed_tensors(batch, move)


def changed_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with every tensor changed."""
    return dataclasses.replace(
        batch,
        args=tuple(map_tensors(value, change) for value in batch.args),
        kwargs={key: map_tensors(value, change) for key, value in batch.kwargs.items()},
    )


def named_tensors(value: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested containers, with a dotted path ("" for a bare tensor)."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{prefix}.{key}" if prefix else str(key))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from named_tensors(
                getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name
            )
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from named_tensors(item, f"{prefix}.{index}" if prefix else str(index))


def tensor_storages(value: object) -> Iterator[torch.UntypedStorage]:
    """The memory of every tensor of nested containers; sparse ones and the like have none to speak of."""
    for _, tensor in named_tensors(value):
        if tensor.layout is torch.strided:
            yield tensor.untyped_storage()


def batch_tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch, named by argument."""
    for index, value in enumerate(batch.args):
        yield from named_tensors(value, f"argument {index}")
    for key, value in batch.kwargs.items():
        yield from named_tensors(value, key)


def take_samples(batch: Batch, index: Sequence[int]) -> Batch:
    """The samples of a batch at these positions.

    Tensors whose first dimension is the number of samples are indexed along it, lists of as many tensors are
    picked from; everything else stays.

    Args:
        batch: the batch.
        index: positions, ascending.

    Returns:
        A batch of ``len(index)`` samples.
    """
    n_samples = batch.n_samples
    if len(index) == n_samples:
        return batch
    picks = list(index)

    # What has as many entries as there are samples is taken for one entry per sample: no other sign exists.
    def take(value: object) -> object:
        if isinstance(value, list) and len(value) == n_samples and all(isinstance(v, Tensor) for v in value):
            return [value[i] for i in picks]
        if isinstance(value, Tensor):
            return take_tensor(value)
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(take(item) for item in value)
        if type(value) is dict:
            return {key: take(item) for key, item in value.items()}
        return map_tensors(value, take_tensor)

    def take_tensor(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] == n_samples:
            return tensor[torch.tensor(picks, device=tensor.device)]
        return tensor

    return Batch(
        args=tuple(take(value) for value in batch.args),
        kwargs={key: take(value) for key, value in batch.kwargs.items()},
        where=batch.where,
    )


def join_samples(first: Batch, second: Batch) -> Batch | None:
    """Two batches as one, the samples of the first before those of the second.

    Args:
        first: cut from the data.
        second: what comes after.

    Returns:
        The joined batch; None where anything but the number of samples differs.
    """
    if len(first.args) != len(second.args) or list(first.kwargs) != list(second.kwargs):
        return None
    args = [
        _joined(a, b, first.n_samples, second.n_samples) for a, b in zip(first.args, second.args, strict=True)
    ]
    kwargs = {
        key: _joined(value, second.kwargs[key], first.n_samples, second.n_samples)
        for key, value in first.kwargs.items()
    }
    if any(value is _APART for value in (*args, *kwargs.values())):
        return None
    return Batch(args=tuple(args), kwargs=kwargs, where=first.where)


# Stands for "these two values cannot be joined"; None is a value that batches hold.
_APART = object()


def _joined(first: object, second: object, n_first: int, n_second: int) -> object:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        fits = first.ndim and first.shape[1:] == second.shape[1:] and first.dtype == second.dtype
        is_cut = (first.shape[:1], second.shape[:1]) == ((n_first,), (n_second,))
        return torch.cat([first, second]) if fits and is_cut else _APART
    plain = (bool, int, float, str, type(None))
    return first if isinstance(first, plain) and type(first) is type(second) and first == second else _APART


def copied(batch: Batch) -> Batch:
    """The batch with every tensor cloned (an inference tensor becomes an ordinary one)."""
    with torch.inference_mode(mode=False):
        return Batch(
            args=tuple(map_tensors(value, Tensor.clone) for value in batch.args),
            kwargs={key: map_tensors(value, Tensor.clone) for key, value in batch.kwargs.items()},
            where=batch.where,
            is_whole=batch.is_whole,
        )


def check_batch(batch: Batch, model: nn.Module, where: str) -> None:
    """Refuses batches that lie on another device than the model, are empty, or hold nan or inf.

    Args:
        batch: the batch.
        model: the model it goes to.
        where: name of the batch for the message.

    Raises:
        DeviceError: model and batch share no device.
        NonFiniteError: a floating tensor holds nan or inf.
    """
    devices = {str(tensor.device) for tensor in model.parameters()}
    for name, tensor in batch_tensors(batch):
        if devices and str(tensor.device) not in devices and tensor.ndim:
            raise DeviceError(
                f"{where}, {name}: the tensor is on {tensor.device}, the model on "
                f"{', '.join(sorted(devices))}; "
                f"move the batches with inputs=lambda b: b.to({sorted(devices)[0]!r}), or move the model"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise NonFiniteError(
                f"{where}, {name}: {bad} of {tensor.numel()} values are nan or inf; clean the data first"
            )


def digest_batch(batch: Batch) -> str:
    """Fingerprint of everything in a batch: tensors by value, the rest by ``repr``."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in batch_tensors(batch):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous()
        # As bytes, so that nan and the sign of zero count; numbers without dimension cannot be viewed so.
        digest.update(data.view(torch.uint8).numpy().data if data.ndim else repr(data.item()).encode())
    structure = [
        map_tensors(value, lambda _tensor: "tensor") for value in (*batch.args, *batch.kwargs.values())
    ]
    digest.update(repr([*batch.kwargs, structure]).encode())
    return digest.hexdigest()


def _length(value: object) -> int | None:
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else None
    if isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
        return len(value)
    if isinstance(value, tuple | list):
        return next((n for item in value if (n := _length(item)) is not None), None)
    if isinstance(value, Mapping):
        return next((n for item in value.values() if (n := _length(item)) is not None), None)
    return None
