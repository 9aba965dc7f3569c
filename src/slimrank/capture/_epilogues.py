# SPDX-License-Identifier: Apache-2.0
"""What happens to a layer's output before the next nonlinearity: a batch norm, a sum, a clipping.

And the other way round: the layer that alone gives a module its input.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.forward import Batch, Shortcut, Side, first_input, named_tensors, run, watch_modules

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)
_RELUS = (_aten.relu.default, _aten.relu_.default)
# Both spellings of ReLU6 and the like; ``relu`` itself has bounds that need not be read.
_CLIPPINGS = (
    *(_aten.hardtanh.default, _aten.hardtanh_.default, _aten.clamp.default, _aten.clamp_.default),
    *(_aten.clamp_min.default, _aten.clamp_min_.default),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What follows a layer: ``clip(norm(y) + shortcut)``, each part where it was seen.

    Attributes:
        norm: the batch norm; None for none.
        shortcut: what is added; None for nothing.
        bounds: lower and upper end of the clipping (0 and inf for a ReLU); None where there is none, or
            where what is clipped is also used in another way.
    """

    norm: str | None = None
    shortcut: Shortcut | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The layer that gives a module what it reads.

    Attributes:
        layer: its name.
        n_dims: dimensions of its outputs; None where they differ from call to call.
    """

    layer: str
    n_dims: int | None


def find_epilogues(model: nn.Module, sample: Batch, layers: Sequence[str]) -> Mapping[str, Epilogue]:
    """What happens to the outputs of layers, as one forward shows it by the identity of tensors.

    Only chains whose links have no other use are told, of modules that are called once.

    Args:
        model: a private copy in eval mode.
        sample: one sample.
        layers: names to look for.

    Returns:
        Epilogue by layer name; layers followed by neither a sum nor a clipping are left out.
    """
    recorder, result = _watched(model, sample, layers)
    return recorder.epilogues(result)


def find_norms(model: nn.Module, sample: Batch, layers: Sequence[str]) -> Mapping[str, str]:
    """The batch norms that alone read the outputs of layers, so that a mean can move into them.

    Args:
        model: a private copy in eval mode.
        sample: one sample.
        layers: names to look for.

    Returns:
        Norm with running statistics by layer name; layers without such a norm are left out.
    """
    recorder, result = _watched(model, sample, layers)
    return recorder.norms(result)


def find_sources(
    model: nn.Module, sample: Batch, readers: Sequence[str], layers: Sequence[str]
) -> Mapping[str, Source | str]:
    """The layers whose outputs certain modules, and nobody else, read.

    A layer and its reader may be called several times, each reader's call on another output of the layer.

    Args:
        model: a private copy in eval mode.
        sample: a few samples.
        readers: names of the modules.
        layers: names to look for.

    Returns:
        By reader: its layer, or why there is none of which this is certain.
    """
    recorder, result = _watched(model, sample, layers)
    return recorder.sources(result, readers)


def _watched(model: nn.Module, sample: Batch, layers: Sequence[str]) -> tuple["_Recorder", object]:
    """One forward, recorded."""
    recorder = _Recorder(model, layers)

    def enter(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        recorder.enter(name, first_input(args, kwargs))

    def leave(name: str, _args: object, _kwargs: object, output: object) -> None:
        recorder.leave(name, output)

    with watch_modules(model.named_modules(), enter=enter, leave=leave), torch.no_grad(), recorder:
        result = run(model, sample)
    return recorder, result


@dataclass(frozen=True, slots=True, eq=False)
class _Moment:
    """A tensor as it was at one time: in-place work makes another one of it."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Moment":
        # Inference tensors do not count their changes.
        return cls(tensor, 0 if tensor.is_inference() else tensor._version)

    @property
    def key(self) -> tuple[int, int]:
        """Equal for the same tensor at the same time; it is kept alive, so its id is its own."""
        return id(self.tensor), self.version


@dataclass(frozen=True, slots=True, eq=False)
class _Passing:
    """A tensor that went into or came out of a module."""

    moment: _Moment
    module: str
    side: Side
    clock: int


@dataclass(frozen=True, slots=True, eq=False)
class _Sum:
    """A sum with a layer's output in it; shortcut None where the rest came too late to be read."""

    links: tuple[_Moment, ...]
    layer: str
    norm: str | None
    shortcut: Shortcut | None


class _Recorder(TorchDispatchMode):
    """Sees the operations of a forward, and who made what they work on."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._norms = {name for name, module in model.named_modules() if type(module) in _NORMS}
        self._means = {name for name in self._norms if model.get_submodule(name).running_mean is not None}
        self._layers = frozenset(layers)
        self._model = model
        self._clock = 0
        self._calls: Counter[str] = Counter()
        self._uses: Counter[tuple[int, int]] = Counter()
        # The innermost modules that work on a tensor; "" is the model itself.
        self._users: dict[tuple[int, int], set[str]] = {}
        self._open: list[str] = []
        self._owners: dict[int, set[str]] = {}
        for name, module in model.named_modules():
            for held in (*module._parameters.values(), *module._buffers.values()):
                if held is not None:
                    self._owners.setdefault(id(held), set()).add(name)
        # Modules whose own tensors others work on.
        self._lenders: set[str] = set()
        self._entered: dict[str, _Passing] = {}
        self._passings: list[_Passing] = []
        self._makers: dict[tuple[int, int], list[str]] = {}
        self._sums: list[tuple[_Moment, _Sum]] = []
        self._clipped: dict[tuple[int, int], tuple[float, float]] = {}
        # Tensors are told apart by id, so none may be freed before the forward is over.
        self._alive: list[Tensor] = []

    def enter(self, name: str, x: object) -> None:
        """A module is called."""
        self._clock += 1
        self._calls[name] += 1
        self._open.append(name)
        if isinstance(x, Tensor):
            self._entered[name] = _Passing(_Moment.of(x), name, "input", self._clock)
            self._passings.append(self._entered[name])

    def leave(self, name: str, output: object) -> None:
        """A module is done."""
        self._clock += 1
        # More than one where a module inside ended by an error that was caught.
        while self._open and self._open.pop() != name:
            pass
        if isinstance(output, Tensor):
            self._passings.append(_Passing(_Moment.of(output), name, "output", self._clock))
            self._makers.setdefault(_Moment.of(output).key, []).append(name)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Notes what is used, added and clipped, and runs the operation as it is."""
        kwargs = kwargs or {}
        module = self._open[-1] if self._open else ""
        for _, tensor in named_tensors([*args, *kwargs.values()]):
            self._alive.append(tensor)
            self._uses[_Moment.of(tensor).key] += 1
            self._users.setdefault(_Moment.of(tensor).key, set()).add(module)
            owners = self._owners.get(id(tensor))
            if owners is not None and module not in owners:
                self._lenders |= owners
        found: list[_Sum] = []
        first = args[0] if args else None
        if func in _ADDITIONS and kwargs.get("alpha", 1) == 1:
            second = args[1]
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                found = [*self._added(first, second), *self._added(second, first)]
        elif isinstance(first, Tensor) and func in _RELUS:
            self._clipped[_Moment.of(first).key] = (0.0, float("inf"))
        elif isinstance(first, Tensor) and func in _CLIPPINGS:
            self._clipped[_Moment.of(first).key] = _ends(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._alive.append(result)
            self._sums += [(_Moment.of(result), found_sum) for found_sum in found]
        return result

    def _added(self, branch: Tensor, other: Tensor) -> list[_Sum]:
        added = _Moment.of(other).key
        return [
            _Sum(links, layer, norm, self._where(added, self._entered[layer].clock))
            for links, layer, norm in self._chains(_Moment.of(branch))
            if layer in self._entered
        ]

    def _where(self, wanted: tuple[int, int], before: int) -> Shortcut | None:
        for passing in self._passings:
            if passing.clock < before and passing.moment.key == wanted and self._calls[passing.module] == 1:
                return Shortcut(passing.module, passing.side)
        return None

    def _chains(self, end: _Moment) -> list[tuple[tuple[_Moment, ...], str, str | None]]:
        """Layers whose output this is, itself or after a batch norm: links, layer, norm."""
        chains: list[tuple[tuple[_Moment, ...], str, str | None]] = []
        for maker in self._makers.get(end.key, ()):
            if maker in self._layers:
                chains.append(((end,), maker, None))
            elif maker in self._norms and maker in self._entered:
                before = self._entered[maker].moment
                chains += [
                    ((before, end), layer, maker)
                    for layer in self._makers.get(before.key, ())
                    if layer in self._layers
                ]
        return chains

    def epilogues(self, result: object) -> Mapping[str, Epilogue]:
        """What was found.

        Args:
            result: of the forward; what it holds is used once more.

        Returns:
            Epilogue by layer name.
        """
        self._use(result)
        epilogues: dict[str, Epilogue] = {}
        for total, found in self._sums:
            if found.shortcut is not None and self._is_once(*found.links):
                bounds = self._clipped.get(total.key) if self._is_once(total) else None
                epilogues[found.layer] = Epilogue(norm=found.norm, shortcut=found.shortcut, bounds=bounds)
        for key, bounds in self._clipped.items():
            ends = [passing.moment for passing in self._passings if passing.moment.key == key]
            for links, layer, norm in self._chains(ends[0]) if ends else ():
                if self._is_once(*links):
                    epilogues.setdefault(layer, Epilogue(norm=norm, bounds=bounds))
        return {
            layer: epilogue
            for layer, epilogue in epilogues.items()
            if all(
                self._calls[name] == 1
                for name in (
                    layer,
                    epilogue.norm or layer,
                    epilogue.shortcut.source if epilogue.shortcut else layer,
                )
            )
        }

    def norms(self, result: object) -> Mapping[str, str]:
        """Batch norms with running statistics that alone read a layer, by layer name.

        Args:
            result: of the forward; what it holds is used once more.
        """
        self._use(result)
        return {
            layer: norm
            for norm in self._means & self._entered.keys()
            if self._calls[norm] == 1 and self._is_once(self._entered[norm].moment)
            for layer in self._makers.get(self._entered[norm].moment.key, ())
            if layer in self._layers and self._calls[layer] == 1
        }

    def sources(self, result: object, readers: Sequence[str]) -> Mapping[str, Source | str]:
        """The layers that certain modules alone read, or why there are none.

        Args:
            result: of the forward; what it holds is used once more.
            readers: names of the modules.
        """
        self._use(result)
        return {reader: self._source(reader) for reader in readers}

    def _source(self, reader: str) -> Source | str:
        read = [p.moment for p in self._passings if (p.module, p.side) == (reader, "input")]
        makers = [self._layers.intersection(self._makers.get(moment.key, ())) for moment in read]
        if not self._calls[reader]:
            return "the forward does not call it"
        if len(read) < self._calls[reader] or not all(makers):
            return "the input is not the output of one layer, unchanged"
        layers = set[str]().union(*makers)
        if len(layers) > 1:
            return "the inputs come from several layers"
        layer = layers.pop()
        n_dims = {moment.tensor.ndim for moment in read}
        return self._why_shared(reader, layer, {moment.key for moment in read}) or Source(
            layer=layer, n_dims=n_dims.pop() if len(n_dims) == 1 else None
        )

    def _why_shared(self, reader: str, layer: str, keys: Set[tuple[int, int]]) -> str | None:
        """Why others have to do with a layer and its reader; None where nobody has."""
        if not self._calls[layer] == self._calls[reader] == len(keys):
            return "the layer before is not called once for each call"
        if any(self._users[key] != {reader} for key in keys):
            return "the output of the layer before is also read elsewhere"
        if {layer, reader} & self._lenders:
            return "weights are also read elsewhere"
        if any(len(self._owners[id(held)]) > 1 for held in self._held_by(layer)):
            return "the layer before shares its weights"
        return None

    def _held_by(self, name: str) -> list[Tensor]:
        return [held for held in self._model.get_submodule(name)._parameters.values() if held is not None]

    def _use(self, result: object) -> None:
        for _, tensor in named_tensors(result):
            self._uses[_Moment.of(tensor).key] += 1
            self._users.setdefault(_Moment.of(tensor).key, set()).add("")

    def _is_once(self, *moments: _Moment) -> bool:
        return all(self._uses[moment.key] == 1 for moment in moments)


def _ends(
    func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[float, float]:
    """Where a clipping starts and ends."""
    is_hardtanh = func in (_aten.hardtanh.default, _aten.hardtanh_.default)
    given = dict(zip(("self", "min", "max"), args, strict=False)) | dict(kwargs)
    low = given.get("min", given.get("min_val", -1.0 if is_hardtanh else None))
    high = given.get("max", given.get("max_val", 1.0 if is_hardtanh else None))
    return (
        float(low) if isinstance(low, int | float) else -float("inf"),
        float(high) if isinstance(high, int | float) else float("inf"),
    )
