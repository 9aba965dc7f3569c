# SPDX-License-Identifier: Apache-2.0
"""Peak of the activations of a forward pass, by liveness over the operations that it runs."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.forward import Batch, run, tensor_storages, watch_modules


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stretch of a forward pass: within one call of a module, or from the end of one to the next call.

    Attributes:
        module: dotted name; "" before the first call.
        call: which of its calls, from 0.
        is_inside: within the call, else behind it.
    """

    module: str
    call: int
    is_inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """What is alive in the worst operation of a place.

    Attributes:
        bytes: of all activations.
        made: place -> bytes of those that were made there.
    """

    bytes: int
    made: Mapping[Place, int]


_START = Place(module="", call=0, is_inside=False)


def alive_by_place(model: nn.Module, sample: Batch, modules: Iterable[str]) -> dict[Place, Alive]:
    """What is alive at each place of a forward pass, as ``peak_activation_bytes`` counts it.

    Args:
        model: in eval mode. Its modules are watched, so that torch may run other operations than unwatched.
        sample: one sample.
        modules: names of those whose calls divide the pass; none is inside another one.

    Returns:
        Place -> its worst operation; the places where anything ran, in order.
    """
    recorder, calls = _Recorder(), Counter[str]()

    def enter(name: str, _args: object, _kwargs: object) -> None:
        recorder.mark(Place(module=name, call=calls[name], is_inside=True))

    def leave(name: str, _args: object, _kwargs: object, _output: object) -> None:
        recorder.mark(Place(module=name, call=calls[name], is_inside=False))
        calls[name] += 1

    watched = [(name, model.get_submodule(name)) for name in modules]
    with watch_modules(watched, enter=enter, leave=leave), torch.no_grad(), recorder:
        outputs = run(model, sample)
    recorder.read(outputs)
    return recorder.alive()


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
        # The place of each operation; there is none before the first.
        self._now = _START
        self._places = [_START]

    def mark(self, place: Place) -> None:
        """Notes where the operations from now on are."""
        self._now = place

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation."""
        self._steps += 1
        self._places.append(self._now)
        given = (*args, kwargs or {})
        known = {storage._cdata for storage in tensor_storages(given)}
        self.read(given)
        made = func(*args, **(kwargs or {}))
        for storage in tensor_storages(made):
            # A view of a weight is none of it, and what was made before is the same still.
            if storage._cdata not in known and storage._cdata not in self._lives:
                self._held.append(StorageWeakRef(storage))
                self._lives[storage._cdata] = _Life(storage.nbytes(), self._steps, self._steps)
        return made

    def read(self, value: object) -> None:
        """Notes that memory is needed up to now; what no operation made is a weight or a constant."""
        for storage in tensor_storages(value):
            if storage._cdata in self._lives:
                self._lives[storage._cdata].last = self._steps

    def peak(self) -> int:
        """The most bytes that are alive in one operation."""
        return max(self._alive_by_step())

    def alive(self) -> dict[Place, Alive]:
        """What is alive in the worst operation of each place."""
        worst: dict[Place, int] = {}
        now = self._alive_by_step()
        for step, place in enumerate(self._places[1:], start=1):
            if place not in worst or now[step] > now[worst[place]]:
                worst[place] = step
        found = {}
        for place, step in worst.items():
            made = Counter[Place]()
            for life in self._lives.values():
                if life.first <= step <= life.last:
                    made[self._places[life.first]] += life.bytes
            found[place] = Alive(bytes=now[step], made=made)
        return found

    def _alive_by_step(self) -> list[int]:
        """Bytes alive in each operation, from 1 on."""
        change = [0] * (self._steps + 2)
        for life in self._lives.values():
            change[life.first] += life.bytes
            change[life.last + 1] -= life.bytes
        return list(accumulate(change))
