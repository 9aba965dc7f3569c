# SPDX-License-Identifier: Apache-2.0
"""Many forwards that pause together at a layer, so that it can be fitted before any of them goes on.

A forward is the user's own Python; it cannot be cut in two. So each batch runs in a thread of its own, one
at a time, and waits inside the call of the layer. All layers together then cost one forward over the data,
and what is held is what is alive at one depth of the network.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from slimrank.forward._batch import Batch, take_samples
from slimrank.forward._run import call, plain_attention
from slimrank.forward._trim import give_back
from slimrank.forward._watch import first_input, watch_modules

Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A tensor that is there before a layer runs, by where it can be read.

    Attributes:
        source: a module that is called once.
        side: its input or its output.
    """

    source: str
    side: Side


# Samples of each batch in the trial of ``can_interleave``: as few as still make a batch.
_TRIAL_SAMPLES = 2


class _Abandoned(BaseException):
    """Ends a paused forward; a BaseException so that user code does not swallow it."""


class _PausableForward:
    """One paused or running forward, in a thread of its own.

    Two semaphores pass the turn: the caller releases ``may_run`` and waits for ``has_stopped``; the thread
    runs to its next stop, releases ``has_stopped``, and waits for ``may_run``. So only one of them runs.

    Attributes:
        batch: the arguments.
        last: number of the stop that it is run to, not further.
        paused_at: the layer that it waits in; None before the first one.
        x: input of that layer, where it is a tensor.
        y: its output, where it is a tensor and is kept.
        shortcuts: by layer, what will be added to its output; kept until it is handed out.
        passed: layers that it has stopped at; further calls of these do not stop.
        error: what ended it, where that was an error.
        finished: it will not run any more.
        abandoned: it shall end at its next stop.
    """

    def __init__(self, batch: Batch, last: int) -> None:
        self.batch = batch
        self.last = last
        self.paused_at: str | None = None
        self.x: Tensor | None = None
        self.y: Tensor | None = None
        self.shortcuts: dict[str, Tensor] = {}
        self.passed: set[str] = set()
        self.error: BaseException | None = None
        self.finished = False
        self.abandoned = False
        self.may_run = threading.Semaphore(0)
        self.has_stopped = threading.Semaphore(0)
        self.thread: threading.Thread | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """One forward at a layer.

    Attributes:
        x: input of the layer; None where the forward does not call it.
        y: its output; None where outputs are not kept.
        shortcut: what is added to its output; None where nothing is known.
    """

    x: Tensor | None
    y: Tensor | None
    shortcut: Tensor | None


class OneByOne:
    """The same as ``Lockstep``, one forward after the other and from the start for every layer.

    For models that keep state on themselves during a forward, which paused forwards would mix up.

    Args:
        model: in eval mode.
        batches: one forward each, for every layer that it is run to.
        stops: layers to stop at.
        shortcuts: by layer, what to read on the way; see ``shortcut``.
        ends, keep_outputs: as for ``Lockstep``.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        stops: Sequence[str],
        shortcuts: Mapping[str, Shortcut] | None = None,
        *,
        ends: Sequence[str] | None = None,
        keep_outputs: bool = False,
    ) -> None:
        self._model = model
        self._order = {name: index for index, name in enumerate(stops)}
        self._batches = list(zip(batches, _last_stops(self._order, batches, ends), strict=True))
        self._shortcuts = shortcuts or {}
        self._keep_outputs = keep_outputs
        self._taken: list[Tensor | None] = []
        self._outputs: list[Tensor | None] = []

    def __enter__(self) -> "OneByOne":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, name: str) -> list[Tensor | None]:
        """Runs every forward up to the first call of a layer; see ``Lockstep.advance``."""
        inputs: list[Tensor | None] = []
        self._taken, self._outputs = [], []
        for reached in self.each(name):
            inputs.append(reached.x)
            self._taken.append(reached.shortcut)
            self._outputs.append(reached.y)
        return inputs

    def each(self, name: str) -> Iterator[Reached]:
        """The same one batch at a time, each forward run when it is asked for: only one is alive."""
        target = self._order[name]
        self._batches = [(batch, last) for batch, last in self._batches if last >= target]
        for batch, _ in self._batches:
            with Lockstep(
                self._model, [batch], [name], self._shortcuts, keep_outputs=self._keep_outputs
            ) as alone:
                (x,), (shortcut,), (y,) = alone.advance(name), alone.shortcut(name), alone.outputs()
            yield Reached(x, y, shortcut)

    def start(self, name: str) -> None:
        """Nothing: these forwards begin anew for every layer; see ``Lockstep.start``."""

    def shortcut(self, name: str) -> list[Tensor | None]:
        """What is added to the output of the layer reached last; see ``Lockstep.shortcut``."""
        return self._taken

    def outputs(self) -> list[Tensor | None]:
        """Outputs of the layer reached last, handed out once; see ``Lockstep.outputs``."""
        outputs, self._outputs = self._outputs, []
        return outputs


def can_interleave(
    model: nn.Module, batches: Sequence[Batch], stops: Sequence[str], *, gives_up: bool = False
) -> bool:
    """Whether paused forwards see what they see alone.

    Args:
        model: in eval mode.
        batches: two or more are worth the question.
        stops: layers, in execution order.
        gives_up: whether some forwards end before others do.

    Returns:
        False where a forward leaves something on the model that another one, running in between, changes; one
        that is given up may do so, too, where the model tidies up behind it (``finally``).
    """
    if len(batches) < 2 or not stops:
        return True
    # A few samples show it: what paused forwards mix up is state, whatever its size.
    pair = [
        batch if batch.is_whole else take_samples(batch, range(min(_TRIAL_SAMPLES, batch.n_samples)))
        for batch in (batches[0], batches[-1])
    ]
    last = stops[-1]
    ends = [last] * len(pair)
    # One more that is given up at once.
    running, until = ([pair[0], *pair], [stops[0], *ends]) if gives_up and len(stops) > 1 else (pair, ends)
    try:
        with Lockstep(model, running, stops, ends=until) as together:
            for name in stops:
                seen = together.advance(name)
    except Exception:
        # Alone they ran when the layers were captured; what fails is their company.
        return False
    with OneByOne(model, pair, stops) as apart:
        alone = apart.advance(last)
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(seen, alone, strict=True)
    )


class Lockstep:
    """Forwards over several batches that stop at the first call of each named layer.

    Use as a context manager; ``advance`` to each layer in execution order.

    Args:
        model: in eval mode; layers may be changed in place while all forwards are paused at them.
        batches: one forward each.
        stops: layers to stop at, in execution order.
        shortcuts: by layer, what to read on the way; see ``shortcut``.
        ends: for each batch, the stop that it is run to: further ones are reached without it, and what it
            holds is freed. None runs all batches to the last stop.
        keep_outputs: stop behind the layers instead of before them, so that their outputs are known; for a
            model whose layers nobody changes meanwhile.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        stops: Sequence[str],
        shortcuts: Mapping[str, Shortcut] | None = None,
        *,
        ends: Sequence[str] | None = None,
        keep_outputs: bool = False,
    ) -> None:
        self._model = model
        self._keep_outputs = keep_outputs
        self._shortcuts = {name: found for name, found in (shortcuts or {}).items() if name in stops}
        self._order = {name: index for index, name in enumerate(stops)}
        self._forwards = [
            _PausableForward(batch, last)
            for batch, last in zip(batches, _last_stops(self._order, batches, ends), strict=True)
        ]
        self._by_thread: dict[int, _PausableForward] = {}
        self._ahead: threading.Thread | None = None
        self._context = contextlib.ExitStack()
        self._device = torch.get_default_device()
        self._cuda_device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._autocast = {
            kind: torch.get_autocast_dtype(kind)
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        }

    def __enter__(self) -> "Lockstep":
        try:
            self._begin()
        except BaseException:
            # Ctrl-C, say: a context that was not entered is not left, so what has begun is ended here.
            self.__exit__(None, None, None)
            raise
        return self

    def _begin(self) -> None:
        # Entered once here, not in the threads: the switch is global and they would restore it out of order.
        self._context.enter_context(plain_attention())
        layers = ((name, self._model.get_submodule(name)) for name in self._order)
        if self._keep_outputs:
            self._context.enter_context(watch_modules(layers, leave=self._pause_behind))
        else:
            self._context.enter_context(watch_modules(layers, enter=self._pause))
        for name, found in self._shortcuts.items():
            self._context.enter_context(self._reading(name, found))
        for forward in self._forwards:
            forward.thread = threading.Thread(target=self._work, args=(forward,), daemon=True)
            forward.thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        # A thread that waits forever would keep its batch and the model alive.
        _abandon(self._forwards)
        self._context.close()

    def advance(self, name: str) -> list[Tensor | None]:
        """Runs every forward up to the first call of a layer.

        Args:
            name: one of the stops, not before the one of the last call.

        Returns:
            Input of the layer, per batch that is run so far; None where a forward does not call it.
        """
        self._wait()
        self._run_to(name)
        inputs: list[Tensor | None] = []
        for forward in self._forwards:
            if forward.error is not None:
                raise forward.error
            inputs.append(forward.x if forward.paused_at == name and not forward.finished else None)
        return inputs

    def start(self, name: str) -> None:
        """Begins to run every forward up to a layer, while the caller does something else.

        Args:
            name: of the next ``advance``, which waits for it. What the last one gave must be read by now.
        """
        self._wait()
        self._ahead = threading.Thread(target=self._run_to, args=(name,), daemon=True)
        self._ahead.start()

    def _wait(self) -> None:
        _join(self._ahead)
        self._ahead = None

    def _run_to(self, name: str) -> None:
        """Runs one forward after the other up to a layer; ends at the first that fails."""
        target = self._order[name]
        ended = [forward for forward in self._forwards if forward.last < target]
        if ended:
            # First, so that what they held is there for the others: it was freed in threads of their own.
            _abandon(ended)
            self._forwards = [forward for forward in self._forwards if forward.last >= target]
            del ended
            give_back()
        for forward in self._forwards:
            while not forward.finished and (
                forward.paused_at is None or self._order[forward.paused_at] < target
            ):
                forward.may_run.release()
                forward.has_stopped.acquire()
            if forward.error is not None:
                return

    def shortcut(self, name: str) -> list[Tensor | None]:
        """What is added to the output of the layer that the forwards are paused at.

        Args:
            name: the layer of the last ``advance``.

        Returns:
            The tensor, per batch, handed out once; None where nothing is known to be added.
        """
        return [forward.shortcuts.pop(name, None) for forward in self._forwards]

    def outputs(self) -> list[Tensor | None]:
        """Outputs of the layer of the last ``advance``, per batch, handed out once.

        None where a forward does not call it, and where outputs are not kept.
        """
        outputs = [forward.y for forward in self._forwards]
        for forward in self._forwards:
            forward.y = None
        return outputs

    def _reading(self, layer: str, found: Shortcut) -> AbstractContextManager[None]:
        """Keeps what will be added to a layer's output, while the context lasts."""
        modules = [(found.source, self._model.get_submodule(found.source))]

        def keep(value: object) -> None:
            forward = self._by_thread.get(threading.get_ident())
            if forward is not None and isinstance(value, Tensor):
                forward.shortcuts[layer] = value

        if found.side == "output":
            return watch_modules(modules, leave=lambda _name, _args, _kwargs, output: keep(output))
        return watch_modules(modules, enter=lambda _name, args, kwargs: keep(first_input(args, kwargs)))

    def _work(self, forward: _PausableForward) -> None:
        self._by_thread[threading.get_ident()] = forward
        forward.may_run.acquire()
        try:
            if not forward.abandoned:
                with torch.no_grad(), self._surroundings():
                    call(self._model, forward.batch)
        except _Abandoned:
            pass
        except BaseException as error:
            forward.error = error
        finally:
            forward.finished = True
            forward.x = forward.y = None
            forward.shortcuts.clear()
            # Numbers of threads that have ended are given to others, such as the model's own.
            del self._by_thread[threading.get_ident()]
            forward.has_stopped.release()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What torch keeps per thread, as it is in the caller's."""
        with contextlib.ExitStack() as stack:
            if self._device.type != "cpu":
                stack.enter_context(self._device)
            if self._cuda_device is not None:
                stack.enter_context(torch.cuda.device(self._cuda_device))
            for kind, dtype in self._autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    def _pause_behind(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object
    ) -> None:
        self._pause(name, args, kwargs, output)

    def _pause(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object = None
    ) -> None:
        x = args[0] if args else kwargs.get("input")
        forward = self._by_thread.get(threading.get_ident())
        if forward is None:
            return
        if forward.abandoned:
            raise _Abandoned
        if name in forward.passed:
            return
        # Only the first call stops: a layer that is called twice is fitted once.
        forward.passed.add(name)
        forward.paused_at = name
        forward.x = x if isinstance(x, Tensor) else None
        forward.y = output if isinstance(output, Tensor) else None
        forward.has_stopped.release()
        forward.may_run.acquire()
        forward.x = forward.y = None
        if forward.abandoned:
            raise _Abandoned


def _last_stops(order: Mapping[str, int], batches: Sequence[Batch], ends: Sequence[str] | None) -> list[int]:
    """Number of the stop that each batch is run to."""
    return [len(order)] * len(batches) if ends is None else [order[name] for name in ends]


def _abandon(forwards: Sequence[_PausableForward]) -> None:
    """Ends forwards where they wait."""
    for forward in forwards:
        if not forward.finished:
            forward.abandoned = True
            forward.may_run.release()
    for forward in forwards:
        _join(forward.thread)


def _join(thread: threading.Thread | None) -> None:
    """Waits for a thread to end; one that was never started cannot be waited for."""
    if thread is not None and thread.ident is not None:
        thread.join()
