# SPDX-License-Identifier: Apache-2.0
"""Modules and tensors that take the place of others, by name."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from slimrank._errors import UnknownNameError
from slimrank._names import nearest
from slimrank.records import BlockSpec
from slimrank.surgery._bypass import bypass_of
from slimrank.surgery._fused import unfuse


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """The module that a plan names.

    Args:
        model: the tree.
        name: dotted name.

    Raises:
        UnknownNameError: there is none.
    """
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in known:
        hint = nearest(name, filter(None, known))
        raise UnknownNameError(f"{type(model).__name__} has no layer {name!r} that the plan names; {hint}")
    return known[name]


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in place of another, under every name that it has in the tree (in place).

    Args:
        model: the tree.
        name: dotted name of the module to replace; not the root.
        new: what takes its place.
    """
    old = model.get_submodule(name)
    unfuse(model, old)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new


def shift_mean(norm: nn.Module, shift: Tensor) -> None:
    """Lets a batch norm expect another mean (in place, by another buffer).

    Args:
        norm: with running statistics.
        shift: (C,), what its inputs lack of the mean that they had.
    """
    mean = norm.running_mean
    if not isinstance(mean, Tensor):
        raise TypeError(f"{type(norm).__name__} keeps no running mean")
    norm.running_mean = (mean.double() - shift.double()).to(mean.dtype)


def drop_blocks(model: nn.Module, names: Sequence[str], blocks: Mapping[str, BlockSpec]) -> None:
    """Replaces modules by what passes their input on (in place).

    Args:
        model: the tree.
        names: of the modules; what stands inside another one of them goes with it.
        blocks: what the model gets in place of their results; the identity replaces those that are missing.

    Raises:
        UnknownNameError: a module does not exist.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if not name or name not in known:
            # The model itself, whose name is "", cannot be dropped.
            hint = nearest(name, filter(None, known))
            raise UnknownNameError(f"{type(model).__name__} has no block {name!r} to drop; {hint}")
    for name in names:
        if not any(name.startswith(f"{other}.") for other in names):
            bypass = bypass_of(known[name], blocks[name].passes if name in blocks else None)
            bypass.train(known[name].training)
            replace_module(model, name, bypass)


def set_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts new parameters in place of others (in place).

    Args:
        model: the tree.
        values: by the dotted name of the parameter, whose dtype, device and requires_grad are kept.
    """
    for name, new in values.items():
        old = model.get_parameter(name)
        data = new.to(device=old.device, dtype=old.dtype)
        replace_tensors(model, {id(old): nn.Parameter(data, requires_grad=old.requires_grad)})


def flatten_recurrent(model: nn.Module) -> None:
    """Lets recurrent layers keep their weights in one piece of memory again, as cuDNN wants it (in place).

    Args:
        model: whose tensors nobody else holds; on a CPU nothing changes.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def replace_tensors(model: nn.Module, new: Mapping[int, Tensor]) -> None:
    """Puts tensors in place of others, under every name that they have (in place).

    Args:
        model: the tree; parameters, buffers and tensors kept in attributes are looked at.
        new: what takes the place, by ``id`` of the old tensor.
    """
    for module in model.modules():
        tables = cast("list[dict[str, object]]", [module._parameters, module._buffers, vars(module)])
        for table in tables:
            for key, value in list(table.items()):
                if isinstance(value, Tensor) and id(value) in new:
                    table[key] = new[id(value)]
        if isinstance(module, nn.RNNBase):
            # It runs with a list of its own: a new one, since what is put back may hold the old one.
            weights = [new.get(id(weight), weight) for weight in module._flat_weights]
            module._flat_weights = cast("list[Tensor | None]", weights)
