# SPDX-License-Identifier: Apache-2.0
"""Which channels of which layers can only go together, as one traced forward shows it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.channels._map import describe_groups
from slimrank.channels.trace._ops import Op, Traced, TracedProduct
from slimrank.channels.trace._rules import trace_op
from slimrank.forward import Batch, SingleSums, named_tensors, run, watch_modules
from slimrank.records import ChannelMap, LayerSpec

# Left alone as a whole: a kernel may run all steps at once, and then no operation inside of it is seen.
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


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

    def enter(name: str, _args: object, _kwargs: object) -> None:
        traced.modules.append(name)
        if isinstance(modules[name], _RECURRENT):
            _freeze_recurrent(traced, modules[name], name)

    def leave(name: str, _args: object, _kwargs: object, _output: object) -> None:
        # A module that raised an error, which the model caught, never left.
        while traced.modules and traced.modules.pop() != name:
            pass

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
        _Tracer(traced),
    ):
        result = run(model, sample)
    _freeze_outputs(traced, result)
    return describe_groups(model, traced, layers)


class _Tracer(TorchDispatchMode):
    """Sees the operations of a forward, and follows the labels through them."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._traced = traced

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
        trace_op(Op(self._traced, func, args, kwargs or {}, result))
        return result


def _freeze_recurrent(traced: Traced, module: nn.Module, name: str) -> None:
    kind = type(module).__name__
    for parameter in module.parameters():
        for axis in traced.axes(parameter):
            traced.labels.freeze(axis, lambda: f"{name or 'the model'} is recurrent ({kind})")
        traced.note_matrix(parameter)


def _freeze_outputs(traced: Traced, result: object) -> None:
    for name, tensor in named_tensors(result):
        traced.use(tensor)
        for axis in traced.axes(tensor):
            traced.labels.freeze(axis, lambda name=name: f"model output {name}".rstrip())  # type: ignore[misc]
        traced.made(tensor)
