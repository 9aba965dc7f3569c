# SPDX-License-Identifier: Apache-2.0
"""Which channels of which layers can only go together, as one traced forward shows it."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.channels._map import describe_groups
from slimrank.channels.trace._ops import Op, Traced, TracedProduct
from slimrank.channels.trace._recurrent import is_recurrent, trace_recurrent
from slimrank.channels.trace._rules import trace_op
from slimrank.forward import Batch, SingleSums, named_tensors, run, watch_modules
from slimrank.records import ChannelMap, LayerSpec


def read_groups(model: nn.Module, sample: Batch, layers: Sequence[LayerSpec]) -> ChannelMap:
    """Groups of channels that can only go together.

    Every index of every dimension of every parameter carries a label; one forward shows, operation by
    operation, which labels are one and the same, and which may not go. Whether the model's own code takes
    the smaller tensors is not tried here.

    Args:
        model: a private copy in eval mode.
        sample: one sample, or a batch that cannot be cut.
        layers: every layer, called ones first in execution order.

    Returns:
        Groups, the tensors that they touch and products of activations; no blocks. Groups of which nothing
        can go carry the reason.
    """
    traced = Traced(model)
    modules = dict(model.named_modules())
    recurrent = {name for name, module in modules.items() if is_recurrent(module)}

    def enter(name: str, _args: object, _kwargs: object) -> None:
        traced.modules.append(name)

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> None:
        # A module that raised an error, which the model caught, never left.
        while traced.modules and traced.modules.pop() != name:
            pass
        if name in recurrent:
            trace_recurrent(traced, modules[name], name, args, kwargs, output)

    def note_product(product: Tensor, macs: int) -> None:
        axes = [axis for axis in traced.axes(product) if axis is not None and axis.size]
        if axes:
            module = traced.modules[-1] if traced.modules else ""
            where = f"torch.einsum in {module!r}"
            traced.uses.products.append(
                TracedProduct(module=module, where=where, macs=macs, axes=tuple(axes))
            )

    with (
        watch_modules(modules.items(), enter=enter, leave=leave),
        torch.no_grad(),
        SingleSums(note_product),
        _Tracer(traced, recurrent),
    ):
        result = run(model, sample)
    _freeze_outputs(traced, result)
    return describe_groups(model, traced, layers)


class _Tracer(TorchDispatchMode):
    """Sees the operations of a forward, and follows the labels through them."""

    def __init__(self, traced: Traced, recurrent: Collection[str]) -> None:
        """Follows a forward.

        Args:
            traced: where labels are kept.
            recurrent: modules that are followed as a whole, not operation by operation.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._traced = traced
        self._recurrent = recurrent

    def __torch_dispatch__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation as it is, then its rule."""
        if not callable(func):
            return NotImplemented
        result: object = func(*args, **(kwargs or {}))
        if not self._traced.modules or self._traced.modules[-1] not in self._recurrent:
            trace_op(Op(self._traced, func, args, kwargs or {}, result))
        return result


def _freeze_outputs(traced: Traced, result: object) -> None:
    for name, tensor in named_tensors(result):
        traced.use(tensor)
        for axis in traced.axes(tensor):
            traced.labels.freeze(axis, lambda name=name: f"model output {name}".rstrip())  # type: ignore[misc]
        traced.made(tensor)
