# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: modules that add something to their input, and can be replaced by the identity."""

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
    named_tensors,
    run,
    training_error,
    watch_modules,
)
from slimrank.records import BlockSpec
from slimrank.surgery import copy_model, drop_blocks, light_copy

# Share of the model's MACs. A block with more of them is the net, not a part of it.
_MAX_SHARE = 0.6
_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)
# What leaves every number where it was, or cuts off the negative ones after the sum.
_PASSING = (
    *(_aten.relu.default, _aten.relu_.default, _aten.clone.default, _aten.alias.default),
    *(_aten.detach.default, _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
    *(_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.contiguous.default),
    *(_aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.dropout.default),
)


def find_blocks(model: nn.Module, sample: Batch, layers: Sequence[str]) -> Mapping[str, BlockSpec]:
    """Modules that compute their input plus something else, and without which the model runs.

    Args:
        model: in eval mode; not changed.
        sample: one sample.
        layers: names of layers; a block holds at least one of them.

    Returns:
        The innermost such modules by name, in execution order, with what they cost for one sample. A block is
        called once, with one tensor, gives one of the same shape, holds layers but not most of the MACs, and
        shares nothing with the rest of the model.
    """
    copy = copy_model(model)
    watched = _movable(copy, layers)
    residual = _residual(copy, sample, watched)
    if not residual:
        return {}
    total, macs, _ = count_by_module(copy, sample)
    small = [name for name in residual if macs.get(name, 0) <= _MAX_SHARE * total.macs]
    droppable = _droppable(copy, sample, small)
    return {name: _spec(copy, name, macs.get(name, 0)) for name in residual if name in droppable}


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


def _residual(model: nn.Module, sample: Batch, watched: Sequence[str]) -> list[str]:
    """Modules that are called once and add something to their only input, in execution order."""
    recorder = _ResidualRecorder()

    def enter(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        recorder.enter(name, args[0] if len(args) == 1 and not kwargs else None)

    def leave(_name: str, _args: object, _kwargs: object, output: object) -> None:
        recorder.leave(output)

    modules = [(name, model.get_submodule(name)) for name in watched]
    # The recorder keeps a stack of running blocks, which an error that the model catches must not shift.
    with (
        watch_modules(modules, enter=enter, leave=leave, always_leave=True),
        torch.no_grad(),
        recorder,
    ):
        run(model, sample)
    return [name for name in recorder.residual if recorder.calls[name] == 1]


@dataclass(slots=True, eq=False)
class _RunningBlock:
    """A module that is running.

    Attributes:
        name: of the module.
        start: its input; None where it has several, or none.
        carried: tensors that are the input, or a sum with it in it, by id; with whether something was added.
        alive: these tensors, so that no id is used again.
    """

    name: str
    start: Tensor | None
    carried: dict[int, bool] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def carry(self, tensor: Tensor, *, is_sum: bool) -> None:
        self.carried[id(tensor)] = is_sum
        self.alive.append(tensor)


class _ResidualRecorder(TorchDispatchMode):
    """Follows the input of every running module through sums and changes of shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.residual: list[str] = []
        self._running: list[_RunningBlock] = []

    def enter(self, name: str, x: object) -> None:
        """A module is called.

        Args:
            name: of the module.
            x: its input; anything but a tensor where it has several, or none.
        """
        self.calls[name] += 1
        call = _RunningBlock(name, x if isinstance(x, Tensor) and x.is_floating_point() else None)
        if call.start is not None:
            call.carry(call.start, is_sum=False)
        self._running.append(call)

    def leave(self, output: object) -> None:
        """The module that was called last is done."""
        call = self._running.pop()
        start = call.start
        if start is None or not isinstance(output, Tensor):
            return
        is_same_kind = output.shape == start.shape and output.dtype == start.dtype
        if is_same_kind and call.carried.get(id(output)):
            self.residual.append(call.name)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs the operation as it is, then notes whether it adds or only arranges."""
        result = func(*args, **(kwargs or {}))
        for call in self._running:
            if call.start is not None:
                _follow(call, func, args, kwargs or {}, result)
        return result


def _follow(
    call: _RunningBlock,
    func: torch._ops.OpOverload,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    result: object,
) -> None:
    if not isinstance(result, Tensor):
        return
    carried = [tensor for tensor in args if isinstance(tensor, Tensor) and id(tensor) in call.carried]
    if func in _ADDITIONS and kwargs.get("alpha", 1) == 1 and carried:
        # The sum must have every number of the input, once.
        if result.shape == carried[0].shape and (len(carried) == 1 or carried[0] is not carried[1]):
            call.carry(result, is_sum=True)
    elif func in _PASSING and carried:
        call.carry(result, is_sum=call.carried[id(carried[0])])
    elif id(result) in call.carried:
        # In-place work has made something else of a tensor that was followed.
        del call.carried[id(result)]


def _droppable(model: nn.Module, sample: Batch, names: Sequence[str]) -> set[str]:
    """The innermost of these without which the model runs."""
    expected = _outputs(light_copy(model), sample)
    trains = training_error(light_copy(model), sample) is None

    def runs_without(*gone: str) -> bool:
        without = light_copy(model)
        drop_blocks(without, gone)
        return _runs(without, sample, expected, trains=trains)

    innermost = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    # A block keeps shape and dtype, so mostly all of them can go at once: then one run is enough.
    if runs_without(*innermost):
        return innermost
    found: set[str] = set()
    # Deepest first: a block that holds another one which can go alone need not go as a whole.
    for name in sorted(names, key=lambda name: -name.count(".")):
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


def _spec(model: nn.Module, name: str, macs: int) -> BlockSpec:
    parameters = list(model.get_submodule(name).parameters())
    return BlockSpec(
        name=name,
        macs=macs,
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
    )
