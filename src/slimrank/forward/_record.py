# SPDX-License-Identifier: Apache-2.0
"""What a forward does before it reaches a layer: recorded once, handed out in later forwards."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.forward._batch import map_tensors, named_tensors

_Forward = Callable[..., object]


class LayerReached(BaseException):
    """Ends a forward at a layer; a BaseException so that user code does not swallow it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """Outputs of the modules that a forward was done with before it reached a layer.

    Attributes:
        outputs: by module name, in the order of its calls. Parts of a module that is done are not in it, and
            tensors that nothing reads any more hold no memory.
        n_bytes: memory held.
    """

    outputs: Mapping[str, Sequence[object]]
    n_bytes: int

    def serves(self, model: nn.Module, layer: str) -> bool:
        """Whether none of the modules holds the layer, so that their outputs do not depend on it."""
        target = model.get_submodule(layer)
        return not any(
            module is target for name in self.outputs for module in model.get_submodule(name).modules()
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _ModuleCall:
    """One call of a module, or of the model itself.

    Attributes:
        name: of the module; "" for the model.
        is_plain: nothing but tensors, plain values and containers went in and came out.
        sets_state: an attribute of a module was set within.
        output: a copy of what came out.
        living: the tensors that came out, as long as somebody holds them.
        done: calls within this one that are done, while this one is not.
        read: calls whose outputs an operation between modules has read, while this one is not done.
    """

    name: str
    is_plain: bool = True
    sets_state: bool = False
    output: object = None
    living: Sequence[weakref.ref[Tensor]] = ()
    done: list["_ModuleCall"] = field(default_factory=list)
    read: set["_ModuleCall"] = field(default_factory=set)

    def is_held(self) -> bool:
        """Whether somebody still holds a tensor that came out."""
        return any(ref() is not None for ref in self.living)


class PrefixRecorder(TorchDispatchMode):
    """Watches one forward up to a layer.

    Operations are watched as well: an output that only modules have read which are handed out themselves,
    and that nobody holds when the layer is reached, need not be kept.

    Args:
        layer: dotted name.
        stops: raise ``LayerReached`` at the layer.
    """

    def __init__(self, layer: str, *, stops: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record: Record | None = None
        self._layer = layer
        self._stops = stops
        self._open = [_ModuleCall(name="")]
        self._makers: dict[int, list[tuple[weakref.ref[Tensor], _ModuleCall]]] = {}
        self._is_over = False
        self._is_copying = False

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Runs the operation, and notes whose outputs it reads."""
        if not (self._is_over or self._is_copying):
            for _, tensor in named_tensors((args, kwargs or {})):
                for ref, call in self._makers.get(_storage(tensor), ()):
                    # A dead tensor cannot be read: its memory serves another one now.
                    if ref() is not None:
                        self._open[-1].read.add(call)
        return func(*args, **(kwargs or {}))

    def enter(self, name: str, args: object, kwargs: object) -> None:
        """A module is called."""
        # After the layer everything may differ, so nothing of it is recorded.
        if self._is_over:
            return
        if name == self._layer:
            self._is_over = True
            self.record = self._recorded()
            if self._stops:
                raise LayerReached
            return
        self._open.append(_ModuleCall(name=name, is_plain=is_plain(args) and is_plain(kwargs)))

    def leave(self, name: str, output: object, *, sets_state: bool) -> None:
        """A module is done."""
        if self._is_over:
            return
        call = self._open.pop()
        if call.name != name or not self._open:
            # A call ended by an exception that was caught: what belongs where is lost.
            self._is_over = True
            return
        # Of what a module keeps for others to read nothing is handed out.
        call.sets_state = sets_state or any(part.sets_state for part in call.done)
        call.is_plain = call.is_plain and is_plain(output) and not call.sets_state
        call.done.clear()
        call.read.clear()
        if call.is_plain:
            self._keep(call, output)
        self._open[-1].done.append(call)

    def _keep(self, call: _ModuleCall, output: object) -> None:
        self._is_copying = True
        try:
            # Copied at once, since what follows may work in place.
            call.output = map_tensors(output, Tensor.clone)
        finally:
            self._is_copying = False
        refs = []
        for _, tensor in named_tensors(output):
            ref = weakref.ref(tensor)
            refs.append(ref)
            makers = self._makers.setdefault(_storage(tensor), [])
            makers[:] = [(other, maker) for other, maker in makers if other() is not None]
            makers.append((ref, call))
        call.living = refs

    def _recorded(self) -> Record | None:
        """What is done, of the calls that are not."""
        done = [call for open_ in self._open for call in open_.done]
        if not all(call.is_plain for call in done):
            return None
        read = {call for open_ in self._open for call in open_.read}
        outputs: dict[str, list[object]] = {}
        for call in done:
            if call not in read and not call.is_held():
                call.output = map_tensors(call.output, _blank)
            outputs.setdefault(call.name, []).append(call.output)
        size = sum(_held_bytes(tensor) for _, tensor in named_tensors(list(outputs.values())))
        return Record(outputs=outputs, n_bytes=size)


@contextlib.contextmanager
def recording(
    model: nn.Module, layer: str, *, stops: bool, spares_state: bool = False
) -> Iterator[PrefixRecorder]:
    """Records one forward, up to a layer, while the context lasts.

    Args:
        model: no gradients wanted.
        layer: dotted name.
        stops: raise ``LayerReached`` at the layer.
        spares_state: hand out nothing where a module that is done has set an attribute of its own, for
            somebody outside may read it.

    Yields:
        The recorder; its record is None as long as the layer is not reached, and where what lies before it
        cannot be handed out.
    """
    recorder = PrefixRecorder(layer, stops=stops)
    target = model.get_submodule(layer)

    def watched(name: str, module: nn.Module) -> _Forward:
        forward: _Forward = module.forward
        name = layer if module is target else name

        def watch(*args: object, **kwargs: object) -> object:
            recorder.enter(name, args, kwargs)
            before = dict(vars(module))
            output = forward(*args, **kwargs)
            recorder.leave(name, output, sets_state=spares_state and _differ(before, vars(module)))
            return output

        return watch

    modules = {name: module for name, module in model.named_modules() if name and _is_open(module)}
    with _forwards({module: watched(name, module) for name, module in modules.items()}), recorder:
        yield recorder


@contextlib.contextmanager
def handing_out(model: nn.Module, record: Record | None) -> Iterator[None]:
    """For one forward, modules give what they gave before; hooks of theirs still run.

    Args:
        model: as it was recorded, but for the layer.
        record: what they gave; None for nothing.
    """
    outputs = {} if record is None else {model.get_submodule(n): given for n, given in record.outputs.items()}
    with _forwards({module: _giving(given, module.forward) for module, given in outputs.items()}):
        yield


def _giving(outputs: Sequence[object], forward: _Forward) -> _Forward:
    given = iter(outputs)
    end = object()

    def give(*args: object, **kwargs: object) -> object:
        output = next(given, end)
        # Copies, since what follows may work in place. Calls after the layer was reached are real ones.
        return forward(*args, **kwargs) if output is end else map_tensors(output, _copy)

    return give


@contextlib.contextmanager
def _forwards(changed: Mapping[nn.Module, _Forward]) -> Iterator[None]:
    """Other forwards while the context lasts: no hooks, since torch's fused layers look for those."""
    saved = {module: vars(module).get("forward") for module in changed}
    try:
        for module, forward in changed.items():
            # An attribute of the instance shadows the method of the class.
            module.forward = forward
        yield
    finally:
        for module, before in saved.items():
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before


def _differ(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether attributes were set, or set anew."""
    return len(after) != len(before) or any(after[key] is not before.get(key) for key in after)


def _is_open(module: nn.Module) -> bool:
    """Whether the forward of a module can be changed; what scripts do is seen as single operations."""
    return not isinstance(module, torch.jit.ScriptModule)


def is_plain(value: object) -> bool:
    """Whether a value is made of tensors and containers alone, so that handing out copies is safe."""
    if isinstance(value, Tensor) or value is None:
        return True
    if isinstance(value, tuple | list):
        return all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(is_plain(item) for item in value.values())
    return isinstance(value, bool | int | float | str)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _blank(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that holds one number: nan, so that a wrong read shows."""
    if tensor.numel() <= 1:
        return tensor
    # Integers have no nan.
    value = float("nan") if tensor.is_floating_point() or tensor.is_complex() else 1
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def is_blank(tensor: Tensor) -> bool:
    """Whether a recorded tensor stands for one that nothing reads."""
    # Only an expanded single number has no stride in any dimension.
    return tensor.numel() > 1 and not any(tensor.stride())


def _held_bytes(tensor: Tensor) -> int:
    return tensor.element_size() * (1 if is_blank(tensor) else tensor.numel())


def _copy(tensor: Tensor) -> Tensor:
    # A new object in any case: whether somebody holds it must not depend on the record.
    return tensor.expand(tensor.shape) if is_blank(tensor) else tensor.clone()
