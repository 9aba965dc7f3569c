# SPDX-License-Identifier: Apache-2.0
"""Peak of the activations of a forward pass, by liveness over the operations that it runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.forward import Batch, named_tensors, run


def peak_activation_bytes(model: nn.Module, sample: Batch) -> int:
    """Bytes of all activations that are alive at the worst moment of a forward pass.

    An activation is alive from the operation that makes it to the last one that reads it, the inputs from the
    start, the outputs to the end. Operations are those that torch runs, unfused; views and operations in
    place share the memory of what they work on; weights, and what kernels need for themselves, do not count.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        The bytes.
    """
    # The pass works on copies of the inputs, which are made in its first operations.
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        outputs = run(model, sample)
    recorder.read(outputs)
    return recorder.peak()


@dataclass(slots=True)
class _Life:
    """Of one piece of memory: its bytes, and the operations that it was made and last read in."""

    bytes: int
    first: int
    last: int


class _Recorder(TorchDispatchMode):
    """Notes which memory each operation reads and makes."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps = 0
        self._lives: dict[int, _Life] = {}
        # While these are held, an address is not given to other memory.
        self._held: list[StorageWeakRef] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation."""
        self._steps += 1
        given = (*args, kwargs or {})
        known = {storage._cdata for storage in _storages(given)}
        self.read(given)
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            # A view of a weight is none of it, and what was made before is the same still.
            if storage._cdata not in known and storage._cdata not in self._lives:
                self._held.append(StorageWeakRef(storage))
                self._lives[storage._cdata] = _Life(storage.nbytes(), self._steps, self._steps)
        return made

    def read(self, value: object) -> None:
        """Notes that memory is needed up to now; what no operation made is a weight or a constant."""
        for storage in _storages(value):
            if storage._cdata in self._lives:
                self._lives[storage._cdata].last = self._steps

    def peak(self) -> int:
        """The most bytes that are alive in one operation."""
        change = [0] * (self._steps + 2)
        for life in self._lives.values():
            change[life.first] += life.bytes
            change[life.last + 1] -= life.bytes
        now = most = 0
        for step in change:
            now += step
            most = max(most, now)
        return most


def _storages(value: object) -> Iterator[torch.UntypedStorage]:
    """The memory of every tensor of nested containers; sparse ones and the like have none to speak of."""
    for _, tensor in named_tensors(value):
        if tensor.layout is torch.strided:
            yield tensor.untyped_storage()
