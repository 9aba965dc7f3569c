# SPDX-License-Identifier: Apache-2.0
"""Sums that a layer ends in: what is added to its output, and where that can be read beforehand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.graph._batch import Batch
from slimrank.graph._modules import run

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What is added to the output of a layer.

    Attributes:
        norm: the batch norm between the layer and the sum; None for none.
        source: the module to read it from.
        side: whether it is the input or the output of that module.
    """

    norm: str | None
    source: str
    side: Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor that went into or came out of a module, as it was then."""

    tensor: Tensor
    version: int
    module: str
    side: Literal["input", "output"]
    clock: int


def find_shortcuts(model: nn.Module, sample: Batch, layers: Sequence[str]) -> Mapping[str, Shortcut]:
    """Layers whose output is added to something that was there before the layer ran.

    ``z = norm(layer(x)) + s``: an error in s can then be made up for in the layer. Only what one forward
    shows by the identity of tensors is told, and only for modules that are called once.

    Args:
        model: a private copy in eval mode.
        sample: one sample.
        layers: names to look for.

    Returns:
        Shortcut by layer name; layers without one are left out.
    """
    recorder = _Recorder(model, layers)
    handles = []
    for name, module in model.named_modules():

        def enter(
            _m: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str = name
        ) -> None:
            recorder.enter(name, args[0] if args else next(iter(kwargs.values()), None))

        def leave(_m: nn.Module, _i: object, output: object, name: str = name) -> None:
            recorder.leave(name, output)

        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad(), recorder:
            run(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.shortcuts()


class _Recorder(TorchDispatchMode):
    """Sees the additions of a forward, and who made what they add."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._norms = {name for name, module in model.named_modules() if type(module) in _NORMS}
        self._layers = frozenset(layers)
        self._clock = 0
        self._calls: Counter[str] = Counter()
        self._entered: dict[str, _Seen] = {}
        self._seen: list[_Seen] = []
        self._found: dict[str, Shortcut] = {}

    def enter(self, name: str, x: object) -> None:
        """A module is called."""
        self._clock += 1
        self._calls[name] += 1
        if isinstance(x, Tensor):
            self._entered[name] = _Seen(x, x._version, name, "input", self._clock)
            self._seen.append(self._entered[name])

    def leave(self, name: str, output: object) -> None:
        """A module is done."""
        self._clock += 1
        if isinstance(output, Tensor):
            self._seen.append(_Seen(output, output._version, name, "output", self._clock))

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Notes additions; runs everything as it is."""
        kwargs = kwargs or {}
        if func in _ADDITIONS and kwargs.get("alpha", 1) == 1:
            first, second = args[:2]
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                self._added(first, second)
                self._added(second, first)
        return func(*args, **kwargs)

    def _added(self, branch: Tensor, other: Tensor) -> None:
        for layer, norm in self._makers(branch):
            entered = self._entered[layer].clock
            for seen in self._seen:
                if seen.clock < entered and seen.tensor is other and seen.version == other._version:
                    self._found.setdefault(layer, Shortcut(norm, seen.module, seen.side))
                    break

    def _makers(self, branch: Tensor) -> list[tuple[str, str | None]]:
        """Layers whose output this is, itself or after a batch norm."""
        made = [
            seen
            for seen in self._seen
            if seen.side == "output" and seen.tensor is branch and seen.version == branch._version
        ]
        makers: list[tuple[str, str | None]] = []
        for seen in made:
            if seen.module in self._layers:
                makers.append((seen.module, None))
            elif seen.module in self._norms:
                x = self._entered[seen.module]
                makers += [
                    (before.module, seen.module)
                    for before in self._seen
                    if before.side == "output"
                    and before.module in self._layers
                    and before.tensor is x.tensor
                    and before.version == x.version
                ]
        return makers

    def shortcuts(self) -> Mapping[str, Shortcut]:
        """What was found, of modules that are called once."""
        return {
            layer: found
            for layer, found in self._found.items()
            if all(self._calls[name] == 1 for name in (layer, found.source, found.norm or layer))
        }
