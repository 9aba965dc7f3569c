# SPDX-License-Identifier: Apache-2.0
"""A model that PyTorch runs itself, and what each of its operations takes."""

import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from slimrank._errors import LatencyError
from slimrank.deploy import NodeTime, TimedFile, profile_time, read_samples, torch_threads
from slimrank.forward import Batch, call, map_tensors, named_tensors, run, watch_modules
from slimrank.surgery import quiet_copy

# Runs that are left out, and runs that count.
_WARM_UP, _RUNS = 3, 30
# Dimensions of maps: samples, channels, rows, columns.
_MAP_DIMS = 4
# Operations that multiply by a weight where one of their inputs is one.
_PRODUCTS = frozenset(
    {"convolution", "_convolution", "linear", "addmm", "mm", "bmm", "baddbmm", "_addmm_activation"}
)
_Mark = TypeVar("_Mark")


def open_model(
    model: nn.Module,
    batches: Iterable[Batch],
    folder: Path,
    *,
    batch: int,
    threads: int,
    channels_last: bool = False,
) -> TimedFile:
    """Opens a model as it is: no norm is folded, nothing is fused.

    Args:
        model: to run; it is not changed.
        batches: real inputs, checked.
        folder: not used.
        batch: samples in the batch.
        threads: of torch while a batch runs.
        channels_last: weights and inputs of 4 dimensions lie in memory with their channels last.

    Returns:
        The open model. ``batch`` differs where samples cannot be taken apart.

    Raises:
        BatchesError: the model refuses the batch.
    """
    del folder
    private = quiet_copy(model).cpu().eval()
    given = read_samples(batches).take(0, batch)
    if channels_last:
        for parameter in private.parameters():
            parameter.data = _channels_last(parameter.data)
        args = tuple(map_tensors(value, _channels_last) for value in given.args)
        kwargs = {key: map_tensors(value, _channels_last) for key, value in given.kwargs.items()}
        given = replace(given, args=args, kwargs=kwargs)
    with torch.no_grad():
        run(private, given)

    def once() -> object:
        with torch_threads(threads), torch.no_grad():
            return call(private, given)

    # With one thread by its own clock, which other work on the machine does not stretch.
    clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds(marks: Sequence[tuple[float, float]]) -> list[float]:
        return [end - start for start, end in marks]

    return TimedFile(run=once, batch=given.n_samples, nodes=lambda: node_times(private, once, clock, seconds))


def _channels_last(tensor: Tensor) -> Tensor:
    is_map = tensor.ndim == _MAP_DIMS and tensor.is_floating_point()
    return tensor.contiguous(memory_format=torch.channels_last) if is_map else tensor


def node_times(
    model: nn.Module,
    once: Callable[[], object],
    mark: Callable[[], _Mark],
    seconds_of: Callable[[Sequence[tuple[_Mark, _Mark]]], Sequence[float]],
) -> tuple[NodeTime, ...]:
    """What each operation of a run takes, in the order that they come.

    Args:
        model: that is run.
        once: runs it.
        mark: marks the time before and after an operation.
        seconds_of: s between the two marks of each operation of a run that is over.

    Returns:
        Of each operation the time that a fifth of its runs stay below.

    Raises:
        LatencyError: the operations are not the same in each run.
    """
    stack = [""]
    watched = watch_modules(
        model.named_modules(),
        enter=lambda name, _args, _kwargs: stack.append(name),
        leave=lambda *_: _left(stack),
        always_leave=True,
    )
    with watched:
        for _ in range(_WARM_UP):
            once()
        seen = _Operations(stack, list(model.parameters()))
        with seen:
            once()
        seconds: list[list[float]] = [[] for _ in seen.found]
        for _ in range(_RUNS):
            with _Marks(mark) as marks:
                once()
            if len(marks.found) != len(seconds):
                raise LatencyError(
                    f"{type(model).__name__} does not run the same operations each time: "
                    f"{len(seconds)}, then {len(marks.found)}; take a backend that exports it"
                )
            for entries, entry in zip(seconds, seconds_of(marks.found), strict=True):
                entries.append(entry)
    return tuple(
        NodeTime(
            name=f"{number} {operation.name}",
            kind=operation.name,
            module=operation.module,
            sources=operation.sources,
            nanoseconds=1e9 * profile_time(entries),
        )
        for number, (operation, entries) in enumerate(zip(seen.found, seconds, strict=True))
    )


def _left(stack: list[str]) -> None:
    stack.pop()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """An operation of a run.

    Attributes:
        name: of it in torch.
        module: innermost module that ran it.
        sources: modules of the nearest products with weights that its inputs come from.
    """

    name: str
    module: str
    sources: tuple[str, ...]


class _Operations(TorchDispatchMode):
    """Notes the operations of a run while it lasts.

    Attributes:
        found: in order.
    """

    def __init__(self, stack: Sequence[str], weights: Iterable[Tensor]) -> None:
        """Starts with none.

        Args:
            stack: modules that run, the innermost last.
            weights: of the model.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[_Operation] = []
        self._stack = stack
        # Of each tensor that there is: the products that it comes from; None where weights alone made it.
        self._sources: MutableMapping[Tensor, frozenset[str] | None] = WeakTensorKeyDictionary()
        for weight in weights:
            self._sources[weight] = None

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation and notes it."""
        inputs = [tensor for _, tensor in named_tensors([args, dict(kwargs or {})])]
        sources = [self._sources.get(tensor, frozenset[str]()) for tensor in inputs]
        known = frozenset[str]().union(*(source for source in sources if source is not None))
        name, module = func.overloadpacket.__name__, self._stack[-1]
        self.found.append(_Operation(name=name, module=module, sources=tuple(sorted(known))))
        result: object = func(*args, **(kwargs or {}))
        made: frozenset[str] | None = known
        if inputs and all(source is None for source in sources):
            made = None
        elif name in _PRODUCTS and None in sources:
            made = frozenset((module,))
        for _, tensor in named_tensors(result):
            self._sources[tensor] = made
        return result


class _Marks(TorchDispatchMode, Generic[_Mark]):
    """Marks the time before and after each operation of a run while it lasts.

    Attributes:
        found: in order.
    """

    def __init__(self, mark: Callable[[], _Mark]) -> None:
        """Starts with none.

        Args:
            mark: of this time.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[_Mark, _Mark]] = []
        self._mark = mark

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation and marks the time."""
        start = self._mark()
        result: object = func(*args, **(kwargs or {}))
        self.found.append((start, self._mark()))
        return result
