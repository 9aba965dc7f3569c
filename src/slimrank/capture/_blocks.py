# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: modules that add something to their input, and can be replaced by the identity."""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.capture._count import count_by_module
from slimrank.forward import (
    Batch,
    fixed_seed_without_warnings,
    is_plain,
    named_tensors,
    run,
    training_error,
    watch_modules,
)
from slimrank.records import BlockSpec, Passes
from slimrank.surgery import copy_model, drop_blocks, light_copy

# Share of the model's MACs. A block with more of them is the net, not a part of it.
_MAX_SHARE = 0.6
# One of the calls that run, and a position or name.
_Argument = tuple[int, int | str]
_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)
# What leaves every number where it was, or cuts off the negative ones after the sum.
_PASSING = (
    *(_aten.relu.default, _aten.relu_.default, _aten.clone.default, _aten.alias.default),
    *(_aten.detach.default, _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
    *(_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.contiguous.default),
    *(_aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.dropout.default),
)
# A norm behind the sum, as in the first transformers: what comes in went through one, too.
_NORMS = (_aten.native_layer_norm.default, _aten._fused_rms_norm.default)


def find_blocks(model: nn.Module, sample: Batch, layers: Sequence[str]) -> Mapping[str, BlockSpec]:
    """Modules that compute their input plus something else, and without which the model runs.

    Args:
        model: in eval mode; not changed.
        sample: one sample.
        layers: names of layers; a block holds at least one of them.

    Returns:
        The innermost such modules by name, in execution order, with what they cost for one sample. A block is
        called once and gives, alone or in a tuple, one of its arguments with something added that it has
        computed from this argument. It holds layers but not most of the MACs, and shares nothing with the
        rest of the model.
    """
    copy = copy_model(model)
    watched = _movable(copy, layers)
    residual = _residual(copy, sample, watched)
    if not residual:
        return {}
    total, macs, _ = count_by_module(copy, sample)
    blocks = {
        name: _spec(copy, name, macs.get(name, 0), passes)
        for name, passes in residual.items()
        if macs.get(name, 0) <= _MAX_SHARE * total.macs
    }
    droppable = _droppable(copy, sample, blocks)
    return {name: block for name, block in blocks.items() if name in droppable}


def _movable(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Modules with layers inside that have one name only, and whose tensors belong to nothing outside."""
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    names_of: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names_of.setdefault(id(tensor), []).append(name)
    around: set[str] = set()
    for layer in layers:
        parts = layer.split(".")
        around.update(".".join(parts[:length]) for length in range(1, len(parts)))
    movable = []
    for name, module in model.named_modules():
        if name not in around or names[id(module)] > 1:
            continue
        tensors = (*module.parameters(), *module.buffers())
        if all(
            tensor_name.startswith(f"{name}.") for tensor in tensors for tensor_name in names_of[id(tensor)]
        ):
            movable.append(name)
    return movable


def _residual(model: nn.Module, sample: Batch, watched: Sequence[str]) -> Mapping[str, Passes]:
    """Modules that are called once and add something to an argument, in execution order.

    Returns:
        What the model gets in place of their results, by name.
    """
    recorder = _ResidualRecorder()

    def leave(_name: str, _args: object, _kwargs: object, output: object) -> None:
        recorder.leave(output)

    modules = [(name, model.get_submodule(name)) for name in watched]
    # The recorder keeps a stack of running blocks, which an error that the model catches must not shift.
    with (
        watch_modules(modules, enter=recorder.enter, leave=leave, always_leave=True),
        torch.no_grad(),
        recorder,
    ):
        run(model, sample)
    found = {name: passes for name, passes in recorder.residual.items() if recorder.calls[name] == 1}
    # A cache is asked for its length by what the first layer has put into it.
    first = next((name for name in found if name in recorder.stateful), None)
    return {name: passes for name, passes in found.items() if name != first}


@dataclass(slots=True, eq=False)
class _RunningBlock:
    """A module that is running.

    Attributes:
        name: of the module.
        serial: number of the call.
        starts: its tensors by position or name of the argument; none where it cannot be a block.
        is_single: whether it has one argument.
        carried: by id of a tensor, the arguments that are it, or that stand in it with something added; with
            whether something was added.
        alive: these tensors, so that no id is used again.
    """

    name: str
    serial: int
    starts: Mapping[int | str, Tensor]
    is_single: bool
    carried: dict[int, dict[int | str, bool]] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def carry(self, tensor: Tensor, keys: Mapping[int | str, bool]) -> None:
        self.carried[id(tensor)] = dict(keys)
        self.alive.append(tensor)

    def passes(self, output: object) -> tuple[Passes, bool]:
        """What stands for a result if the block is gone, and whether anything was added to it."""
        if type(output) is tuple:
            parts = [self.passes(part) for part in output]
            return tuple(part for part, _ in parts), any(is_sum for _, is_sum in parts)
        if not isinstance(output, Tensor):
            return None, False
        for key, is_sum in self.carried.get(id(output), {}).items():
            start = self.starts[key]
            if output.shape == start.shape and output.dtype == start.dtype:
                return key, is_sum
        # Scores, say, that nobody may ask for; whether the model runs without them is tried.
        return None, False


class _ResidualRecorder(TorchDispatchMode):
    """Follows the arguments of every running module through sums and changes of shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.residual: dict[str, Passes] = {}
        self.stateful: set[str] = set()
        self._running: list[_RunningBlock] = []
        # By id of a tensor, the arguments of running blocks that it is computed from.
        self._origins: dict[int, tuple[weakref.ref[Tensor], frozenset[_Argument]]] = {}

    def enter(self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """A module is called."""
        self.calls[name] += 1
        arguments: dict[int | str, object] = dict(enumerate(args))
        arguments.update(kwargs)
        starts = {
            key: value
            for key, value in arguments.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        if not is_plain(args) or not is_plain(dict(kwargs)):
            self.stateful.add(name)
        call = _RunningBlock(name, self.calls.total(), starts, is_single=len(args) == 1 and not kwargs)
        # The first argument last: where it was given twice, it is the one that is passed on.
        for key, value in reversed(starts.items()):
            call.carry(value, {key: False})
            self._note_origins(value, self._origins_of(value) | {(call.serial, key)})
        self._running.append(call)

    def leave(self, output: object) -> None:
        """The module that was called last is done."""
        call = self._running.pop()
        passes, is_sum = call.passes(output)
        if is_sum:
            self.residual[call.name] = None if call.is_single and passes == 0 else passes

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs the operation as it is, then notes whether it adds or only arranges."""
        origins = frozenset[_Argument]().union(
            *(self._origins_of(tensor) for _, tensor in named_tensors((args, kwargs or {})))
        )
        result = func(*args, **(kwargs or {}))
        for call in self._running:
            if call.starts:
                self._follow(call, func, args, kwargs or {}, result)
        for _, tensor in named_tensors(result) if origins else ():
            self._note_origins(tensor, origins)
        return result

    def _note_origins(self, tensor: Tensor, origins: frozenset[_Argument]) -> None:
        self._origins[id(tensor)] = weakref.ref(tensor), origins

    def _origins_of(self, tensor: Tensor) -> frozenset[_Argument]:
        ref, origins = self._origins.get(id(tensor), (None, frozenset()))
        # An id may serve another tensor by now.
        return origins if ref is not None and ref() is tensor else frozenset()

    def _follow(
        self,
        call: _RunningBlock,
        func: torch._ops.OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        result: object,
    ) -> None:
        first = result[0] if isinstance(result, tuple) and func in _NORMS else result
        if not isinstance(first, Tensor):
            return
        carried = [tensor for tensor in args if isinstance(tensor, Tensor) and id(tensor) in call.carried]
        if func in _ADDITIONS and kwargs.get("alpha", 1) == 1 and carried:
            # The sum must have every number of the argument, once.
            if carried[0].shape == first.shape and (len(carried) == 1 or carried[0] is not carried[1]):
                call.carry(first, self._summed(call, args, carried))
        elif func in _PASSING and carried:
            call.carry(first, call.carried[id(carried[0])])
        elif func in _NORMS and carried and carried[0] is args[0]:
            call.carry(first, {key: True for key, is_sum in call.carried[id(carried[0])].items() if is_sum})
        elif id(first) in call.carried:
            # In-place work has made something else of a tensor that was followed.
            del call.carried[id(first)]

    def _summed(
        self, call: _RunningBlock, args: tuple[object, ...], carried: Sequence[Tensor]
    ) -> Mapping[int | str, bool]:
        """The arguments that stand in a sum; with whether what was added is computed from them."""
        keys: dict[int | str, bool] = {}
        for tensor in carried:
            others = [other for other in args if isinstance(other, Tensor) and other is not tensor]
            for key, is_sum in call.carried[id(tensor)].items():
                is_own = any((call.serial, key) in self._origins_of(other) for other in others)
                keys[key] = keys.get(key, False) or is_sum or is_own
        return keys


def _droppable(model: nn.Module, sample: Batch, blocks: Mapping[str, BlockSpec]) -> set[str]:
    """The innermost of these without which the model runs."""
    expected = _outputs(light_copy(model), sample)
    trains = training_error(light_copy(model), sample) is None

    def runs_without(*gone: str) -> bool:
        without = light_copy(model)
        drop_blocks(without, gone, blocks)
        return _runs(without, sample, expected, trains=trains)

    innermost = {name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)}
    # A block keeps shape and dtype, so mostly all of them can go at once: then one run is enough.
    if runs_without(*innermost):
        return innermost
    found: set[str] = set()
    # Deepest first: a block that holds another one which can go alone need not go as a whole.
    for name in sorted(blocks, key=lambda name: -name.count(".")):
        if not any(other.startswith(f"{name}.") for other in found) and runs_without(name):
            found.add(name)
    return found


def _runs(model: nn.Module, sample: Batch, expected: Mapping[str, Tensor], *, trains: bool) -> bool:
    try:
        got = _outputs(model, sample)
    except Exception:
        # Whatever the user's code raises is the answer to the question asked here.
        return False
    is_same_kind = list(got) == list(expected) and all(
        got[name].shape == tensor.shape and bool(got[name].isfinite().all() or not tensor.isfinite().all())
        for name, tensor in expected.items()
    )
    return is_same_kind and (not trains or training_error(model, sample) is None)


def _outputs(model: nn.Module, sample: Batch) -> Mapping[str, Tensor]:
    with torch.no_grad(), fixed_seed_without_warnings(model):
        result = run(model, sample)
    return {name: tensor for name, tensor in named_tensors(result) if tensor.is_floating_point()}


def _spec(model: nn.Module, name: str, macs: int, passes: Passes) -> BlockSpec:
    parameters = list(model.get_submodule(name).parameters())
    return BlockSpec(
        name=name,
        macs=macs,
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        passes=passes,
    )
