# SPDX-License-Identifier: Apache-2.0
"""Forwards that somebody else calls, on inputs that come again: what lies before a layer is handed out."""

import contextlib
import copy
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from slimrank.forward._batch import Batch, copied, digest_batch, map_tensors, named_tensors
from slimrank.forward._record import Record, handing_out, is_blank, is_plain, recording
from slimrank.forward._seed import cuda_devices

_Forward = Callable[..., object]


class PrefixCache:
    """Forwards of a private copy skip what lies before the layer under test, whoever calls them.

    The first evaluation of a layer records, later ones hand out. Inputs are told apart by their content, so
    batches may come in any order. Forwards with gradients, with hooks, with a module in training mode, or on
    inputs that hold anything but tensors and plain values are run as they are, and so are modules that keep
    something of a forward on themselves. For every layer, the first forward that
    records and the first one that hands out are compared, bit for bit, with plain ones; where they differ, or
    draw other random numbers, the cache turns itself off.

    Args:
        model: between evaluations of one layer only that layer changes.
        max_bytes: outputs held at most; what goes beyond it is run again. 0 does nothing at all.
    """

    def __init__(self, model: nn.Module, *, max_bytes: int) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._layer: str | None = None
        self._evaluations = 0
        self._is_checked = False
        self._is_off = max_bytes <= 0
        self._earlier: dict[str, Record] = {}
        self._records: dict[str, Record] = {}
        self._lock = threading.RLock()
        self._is_inside = False

    @contextlib.contextmanager
    def evaluation(self, layer: str | None) -> Iterator[None]:
        """Forwards of the model are shortened while the context lasts.

        Args:
            layer: the layer that is not the original's; None where there is none.
        """
        if layer is None or self._is_off:
            yield
            return
        if layer != self._layer:
            self._layer, self._evaluations = layer, 0
            self._earlier, self._records = self._records, {}
        else:
            self._evaluations += 1
            self._earlier.clear()
        if self._evaluations <= 1:
            # The first forward that records, and the first one that hands out.
            self._is_checked = False
        # Somebody may have set a forward on the instance, which shadows the method of the class.
        instance_forward = vars(self._model).get("forward")
        self._model.forward = _Entry(self._model, instance_forward, self._forward)
        try:
            yield
        finally:
            vars(self._model).pop("forward", None)
            if instance_forward is not None:
                vars(self._model)["forward"] = instance_forward

    def _forward(self, plain: _Forward, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        with self._lock:
            if self._is_inside or not self._applies(args, kwargs):
                return plain(*args, **kwargs)
            self._is_inside = True
            try:
                return self._shortened(plain, args, kwargs)
            finally:
                self._is_inside = False

    def _applies(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
        if self._is_off or torch.compiler.is_compiling() or torch._C._is_tracing():
            return False
        if any(module.training or _has_hooks(module) for module in self._model.modules()):
            return False
        if _global_forward_hooks or _global_forward_pre_hooks:
            return False
        tensors = [tensor for _, tensor in named_tensors([args, kwargs])]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *self._model.parameters())):
            return False
        ordinary = all(type(t) is Tensor and t.layout == torch.strided for t in tensors)
        return ordinary and is_plain(args) and is_plain(kwargs)

    def _shortened(self, plain: _Forward, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        key = _key(args, kwargs)
        if self._evaluations:
            record = self._records.get(key)
            if record is None:
                return plain(*args, **kwargs)
            return self._checked(plain, args, kwargs, handing_out(self._model, record))
        return self._checked(plain, args, kwargs, self._recording(key))

    @contextlib.contextmanager
    def _recording(self, key: str) -> Iterator[None]:
        """Records one forward, and hands out in it what an earlier layer left."""
        layer = self._layer or ""
        known = self._earlier.pop(key, None)
        if known is not None and not known.serves(self._model, layer):
            known = None
        with (
            handing_out(self._model, known),
            recording(self._model, layer, stops=False, spares_state=True) as recorder,
        ):
            yield
        again = self._records.get(key)
        if again is not None:
            if recorder.record is None or not _agree(recorder.record, again):
                # Equal inputs, other values: what is handed out would not be what is computed.
                self._turn_off()
            return
        held = sum(
            record.n_bytes for records in (self._records, self._earlier) for record in records.values()
        )
        for record in (recorder.record, known):
            if record is not None and record.outputs and held + record.n_bytes <= self._max_bytes:
                self._records[key] = record
                return

    def _checked(
        self,
        plain: _Forward,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        changed: AbstractContextManager[None],
    ) -> object:
        """A forward within the context; where it is the first one, compared with one without."""
        if self._is_checked:
            with changed:
                return plain(*args, **kwargs)
        self._is_checked = True
        # Both forwards start from the same random numbers; the caller's go on as after one forward.
        before = _random_states(self._model)
        copies = copied(Batch(args=args, kwargs=kwargs))
        expected = plain(*copies.args, **copies.kwargs)
        after = _random_states(self._model)
        _set_random_states(self._model, before)
        if not is_plain(expected):
            self._turn_off()
            return plain(*args, **kwargs)
        with changed:
            output = plain(*args, **kwargs)
        if _same(output, expected) and _same(_random_states(self._model), after):
            return output
        self._turn_off()
        _set_random_states(self._model, after)
        return expected

    def _turn_off(self) -> None:
        self._is_off = True
        self._records.clear()
        self._earlier.clear()


class _Entry:
    """The forward of the model under evaluation; a copy of the model gets its ordinary forward.

    Args:
        model: the model under evaluation.
        instance_forward: what was set as ``forward`` on the instance before; None where nothing was.
        shortened: runs a forward in its short form, given the plain one, its arguments and its keywords.
    """

    def __init__(
        self,
        model: nn.Module,
        instance_forward: object,
        shortened: Callable[[_Forward, tuple[object, ...], Mapping[str, object]], object],
    ) -> None:
        self._model = model
        self._instance_forward = instance_forward
        self._shortened = shortened
        # The signature of this is the one that people see.
        self.__wrapped__: _Forward = model.forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._shortened(self.__wrapped__, args, kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        if self._instance_forward is not None:
            return copy.deepcopy(self._instance_forward, memo)
        return _ordinary_forward(memo.get(id(self._model), self._model))

    # Where the model is pickled (torch.save), what is read back has its ordinary forward too.
    def __reduce__(self) -> tuple[Callable[[object], object], tuple[object]]:
        return _same_object if self._instance_forward is not None else _ordinary_forward, (
            self._instance_forward or self._model,
        )


def _ordinary_forward(model: object) -> object:
    return types.MethodType(type(model).forward, model)  # type: ignore[attr-defined]


def _same_object(value: object) -> object:
    return value


def _key(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """Everything about the inputs, and about how torch works now, that outputs depend on."""
    layouts = [(tensor.stride(), tensor.device) for _, tensor in named_tensors([args, kwargs])]
    kinds = {tensor.device.type for _, tensor in named_tensors([args, kwargs])}
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]
    return f"{digest_batch(Batch(args=args, kwargs=kwargs))}{layouts}{autocast}"


def _agree(first: Record, second: Record) -> bool:
    """Whether two forwards gave the same before the layer; what one of them did not keep does not count."""
    of_first, of_second = list(named_tensors(first.outputs)), list(named_tensors(second.outputs))
    if [(name, tensor.shape) for name, tensor in of_first] != [
        (name, tensor.shape) for name, tensor in of_second
    ]:
        return False
    pairs = [
        (a, b) for (_, a), (_, b) in zip(of_first, of_second, strict=True) if not is_blank(a) | is_blank(b)
    ]
    return all(torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _same(first: object, second: object) -> bool:
    """Whether nested containers hold the same, tensors bit for bit."""
    of_first, of_second = list(named_tensors(first)), list(named_tensors(second))
    if [_description(*item) for item in of_first] != [_description(*item) for item in of_second]:
        return False
    if repr(map_tensors(first, lambda _: "tensor")) != repr(map_tensors(second, lambda _: "tensor")):
        return False
    pairs = zip(of_first, of_second, strict=True)
    return all(torch.equal(_bits(tensor), _bits(twin)) for (_, tensor), (_, twin) in pairs)


def _description(name: str, tensor: Tensor) -> tuple[object, ...]:
    return name, tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _random_states(model: nn.Module) -> list[Tensor]:
    """States of the generators that a forward may draw from: of the CPU, then of the model's devices."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda_devices(model))]


def _set_random_states(model: nn.Module, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(cuda_devices(model), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks into the forward: what is handed out would not show there."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
