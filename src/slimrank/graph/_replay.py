# SPDX-License-Identifier: Apache-2.0
"""Forwards that start at a layer: modules that lie wholly before it hand out what they gave before."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, OutputError
from slimrank.graph._batch import Batch, map_tensors, named_tensors
from slimrank.graph._modules import run
from slimrank.graph._outputs import OutputChoice, pick_outputs


class _Reached(BaseException):
    """Ends a recording forward at its layer; a BaseException so that user code does not swallow it."""


@dataclass(slots=True)
class _Span:
    """When a module ran: enter of its first call, exit of its last."""

    first_enter: int
    last_exit: int = -1
    calls: int = 0


@dataclass(slots=True)
class _Record:
    """Outputs of one module: per batch, per call."""

    outputs: list[list[object]] = field(default_factory=list)


class Replay:
    """Repeated forwards of one unchanged model over the same batches, from a layer onwards.

    Only outputs of the modules just before the layer are kept: a block's parts are dropped when the block is
    done.

    Args:
        model: a private copy in eval mode; only the layer under test may differ between forwards.
        batches: what to run.
        max_bytes: outputs held at most; modules beyond it are run again instead.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], *, max_bytes: int) -> None:
        self._model = model
        self._batches = list(batches)
        self._max_bytes = max_bytes
        self._held: dict[str, _Record] = {}
        self._is_off = False
        self._spans = self._watch() if self._batches else {}

    def _watch(self) -> dict[str, _Span]:
        clock = 0
        spans: dict[str, _Span] = {}
        handles = []

        def tick() -> int:
            nonlocal clock
            clock += 1
            return clock

        for name, module in self._model.named_modules():

            def enter(_m: nn.Module, _i: object, name: str = name) -> None:
                now = tick()
                spans.setdefault(name, _Span(now)).calls += 1

            def leave(_m: nn.Module, _i: object, _o: object, name: str = name) -> None:
                spans[name].last_exit = tick()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            with torch.no_grad():
                run(self._model, self._batches[0])
        finally:
            for handle in handles:
                handle.remove()
        return spans

    def start_at(self, layer: str, references: Sequence[Mapping[str, Tensor]], outputs: OutputChoice) -> None:
        """Records what lies before a layer, so that later forwards skip it.

        A model whose modules share state (in-place work on what others read, attributes set in a forward)
        gives something else when parts of it are skipped. That is looked for at every layer, and ends it.

        Args:
            layer: dotted name; call in execution order, the model unchanged.
            references: what the whole model gives, per batch.
            outputs: which outputs are compared.
        """
        if self._is_off or layer not in self._spans:
            self._held.clear()
            return
        self._prepare(layer)
        if not self._agrees(references, outputs):
            self._is_off = True
            self._held.clear()

    def _agrees(self, references: Sequence[Mapping[str, Tensor]], outputs: OutputChoice) -> bool:
        if not self._held:
            return True
        try:
            # The first batch shows it; which modules share state does not depend on the samples.
            picked = pick_outputs(next(self.stream()), outputs)
            if any(not torch.equal(tensor, picked[name]) for name, tensor in references[0].items()):
                return False
        except (BatchesError, OutputError):
            return False
        return True

    def _prepare(self, layer: str) -> None:
        before = self._spans[layer].first_enter
        done = {name for name, span in self._spans.items() if name and 0 <= span.last_exit < before}
        wanted = {name for name in done if not any(p in done for p in _ancestors(name))}
        new = wanted - self._held.keys()
        if new:
            self._record(layer, new)
        for name in self._held.keys() - wanted:
            del self._held[name]

    def _record(self, layer: str, names: set[str]) -> None:
        records = {name: _Record() for name in names}
        held = sum(_bytes(record.outputs) for record in self._held.values())
        handles = []

        def stop(_m: nn.Module, _i: object) -> None:
            raise _Reached

        for name in names:

            def keep(_m: nn.Module, _i: object, output: object, name: str = name) -> None:
                records[name].outputs[-1].append(map_tensors(output, Tensor.clone))

            handles.append(self._model.get_submodule(name).register_forward_hook(keep))
        handles.append(self._model.get_submodule(layer).register_forward_pre_hook(stop))
        try:
            for index, batch in enumerate(self._batches):
                for record in records.values():
                    record.outputs.append([])
                self._forward(index, batch, stop_early=True)
        finally:
            for handle in handles:
                handle.remove()
        for name, record in records.items():
            size = _bytes(record.outputs)
            whole = all(len(calls) == self._spans[name].calls for calls in record.outputs)
            if whole and _is_plain(record.outputs) and held + size <= self._max_bytes:
                self._held[name] = record
                held += size

    def stream(self) -> Iterator[object]:
        """Results of the model, batch after batch."""
        for index, batch in enumerate(self._batches):
            yield self._forward(index, batch, stop_early=False)

    def _forward(self, index: int, batch: Batch, *, stop_early: bool) -> object:
        given: defaultdict[str, int] = defaultdict(int)
        patched: list[tuple[nn.Module, Callable[..., object] | None]] = []
        for name, record in self._held.items():
            module = self._model.get_submodule(name)
            own: Callable[..., object] | None = vars(module).get("forward")
            # An attribute of the instance shadows the method of the class; hooks of the module still run.
            module.forward = _hand_out(record.outputs[index], given, name)
            patched.append((module, own))
        try:
            with torch.no_grad():
                return run(self._model, batch)
        except _Reached:
            if stop_early:
                return None
            raise
        finally:
            for module, own in patched:
                del module.forward
                if own is not None:
                    module.forward = own


def _hand_out(outputs: Sequence[object], given: defaultdict[str, int], name: str) -> Callable[..., object]:
    def forward(*_args: object, **_kwargs: object) -> object:
        call = given[name]
        given[name] += 1
        # Cloned, since what follows may work in place.
        return map_tensors(outputs[call], Tensor.clone)

    return forward


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _bytes(value: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(value))


def _is_plain(value: object) -> bool:
    """Whether a value is made of tensors and containers alone, so that handing out copies is safe."""
    if isinstance(value, Tensor) or value is None:
        return True
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return isinstance(value, bool | int | float | str)
