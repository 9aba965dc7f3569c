# SPDX-License-Identifier: Apache-2.0
"""Taking channels out of a model for good, or out of what its layers read."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from slimrank._errors import ModelError, OptionError, ShapeError, UnknownNameError
from slimrank._names import nearest
from slimrank.cost import query_scales, stays
from slimrank.records import AxisUnits, ChannelMap, Kept, TensorSpec
from slimrank.surgery._attention import SlimAttention
from slimrank.surgery._constant_shapes import ConstantShape, constant_path, is_constant_path
from slimrank.surgery._fused import unfuse
from slimrank.surgery._replace import replace_tensors
from slimrank.surgery._sizes import Cut, Size, synced_sizes

# By number of dimensions. Who laid a kernel out so did it for speed: what is left of it is laid out alike.
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def slim(model: nn.Module, channels: ChannelMap, kept: Kept) -> None:
    """Takes channels out of a model (in place).

    Every tensor loses the indices whose units go, under each name that it has, and queries are scaled where
    attention takes its scale from the group; standard modules and the attributes listed with the groups are
    set to the sizes that are left. Torch's attention becomes one that takes any number of heads. Where a
    group lists the shape of a constant, the forward of the module that reshapes it takes the sizes that the
    constant has now. Optimisers and whoever else holds the old parameters keep those.

    Args:
        model: the model that ``channels`` was read from; nothing is changed where an error is raised.
        channels: its groups.
        kept: group -> units that stay, ascending; groups not named stay whole.

    Raises:
        UnknownNameError: a group does not exist.
        OptionError: units that are not ascending, out of range, none at all, or of a group that is frozen.
        ModelError: a tensor or attribute is not there, or what is left has no whole size.
        ShapeError: a tensor has another shape than in ``channels``.
    """
    smaller = _smaller(channels, kept)
    cuts = {id(tensor): _cut(spec, tensor, smaller) for spec, tensor in _touched(model, channels, smaller)}
    sizes: list[Size | ConstantShape] = [
        *_scaled(model, channels, smaller),
        *synced_sizes(model, cuts),
        *_reshaped(model, channels, smaller),
    ]
    # Nothing is written before everything that can fail is done.
    new = {key: _taken(cut) for key, cut in cuts.items()}
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and any(
            id(tensor) in cuts for tensor in module.parameters()
        ):
            SlimAttention.of(module)
            unfuse(model, module)
    replace_tensors(model, new)
    for size in sizes:
        size.write()


def mask(model: nn.Module, channels: ChannelMap, kept: Kept) -> None:
    """Zeroes what reads channels that go, at unchanged shapes (in place).

    That is the model which ``slim`` must equal. Where a product of two activations sums over a group,
    no weight reads it, and what makes its units is zeroed as well.

    Args:
        model: the model that ``channels`` was read from.
        channels: its groups.
        kept: group -> units that stay, ascending; groups not named stay whole.

    Raises:
        UnknownNameError: a group does not exist.
        OptionError: units that are not ascending, out of range, none at all, or of a group that is frozen.
        ModelError: a tensor is not there.
        ShapeError: a tensor has another shape than in ``channels``.
    """
    smaller = _smaller(channels, kept)
    with torch.no_grad():
        for spec, tensor in _touched(model, channels, smaller):
            for axis in spec.axes:
                gone = _gone(axis, channels, smaller)
                if gone:
                    tensor.index_fill_(axis.dim, torch.tensor(gone, device=tensor.device), 0)


def _cut(spec: TensorSpec, tensor: Tensor, kept: Kept) -> Cut:
    return Cut(
        tensor,
        {dim: tuple(map(int, index)) for dim, index in stays(spec, kept).items()},
        {dim: tuple(map(float, scale)) for dim, scale in query_scales(spec, kept).items()},
    )


def _taken(cut: Cut) -> Tensor:
    """What stays of a tensor, as the same kind: a parameter, trained or not, laid out as before."""
    old = cut.tensor
    data = old.detach()
    for dim, index in cut.stays.items():
        data = data.index_select(dim, torch.tensor(index, device=old.device))
    for dim, scale in cut.scales.items():
        # In half precision a rounded factor would bend all queries the same way.
        wide = torch.promote_types(old.dtype, torch.float32)
        factors = torch.tensor(scale, dtype=wide, device=old.device).unflatten(
            0, (-1, *[1] * (old.ndim - dim - 1))
        )
        data = (data.to(wide) * factors).to(old.dtype)
    layout = _LAYOUTS.get(old.ndim)
    if layout and old.is_contiguous(memory_format=layout) and not old.is_contiguous():
        data = data.contiguous(memory_format=layout)
    if not isinstance(old, nn.Parameter):
        return data.requires_grad_(old.requires_grad)
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    # Marks such as "no weight decay", which optimisers ask for.
    vars(new).update(vars(old))
    return new


def check_kept(channels: ChannelMap, kept: Kept) -> None:
    """Refuses units that cannot stay.

    Raises:
        UnknownNameError: a group does not exist.
        OptionError: units that are not ascending, out of range, none at all, or of a group that is frozen.
    """
    for name, units in kept.items():
        if name not in channels.groups:
            raise UnknownNameError(f"there is no group {name!r}; {nearest(name, channels.groups)}")
        group = channels.groups[name]
        if group.reason is not None and list(units) != list(range(group.units)):
            raise OptionError(f"group {name!r} cannot be slimmed: {group.reason}; leave it out")
        if not units or list(units) != sorted(set(units)):
            raise OptionError(
                f"group {name!r}: the units that stay are {list(units)}; give at least one, ascending, "
                "each once"
            )
        if units[0] < 0 or units[-1] >= group.units:
            raise OptionError(
                f"group {name!r}: units {units[0]} to {units[-1]} are not all inside 0..{group.units - 1}; "
                "give units that it has"
            )


def _smaller(channels: ChannelMap, kept: Kept) -> Kept:
    """Those that lose anything."""
    check_kept(channels, kept)
    return {name: units for name, units in kept.items() if len(units) < channels.groups[name].units}


def _touched(model: nn.Module, channels: ChannelMap, kept: Kept) -> list[tuple[TensorSpec, Tensor]]:
    """Tensors that lose something, each once."""
    named: dict[str, Tensor] = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    found = []
    for spec in channels.tensors.values():
        if not any(axis.group in kept for axis in spec.axes):
            continue
        tensor = named.get(spec.name)
        if tensor is None:
            raise ModelError(
                f"{type(model).__name__} has no tensor {spec.name!r}; the groups were read from another model"
            )
        if tuple(tensor.shape) != spec.shape:
            raise ShapeError(
                f"{spec.name} is {tuple(tensor.shape)}, and {spec.shape} where the groups were read; "
                "slim the model that they were read from, once"
            )
        found.append((spec, tensor))
    return found


def _gone(axis: AxisUnits, channels: ChannelMap, kept: Kept) -> list[int]:
    """Indices of a dimension to be zeroed."""
    if axis.group not in kept or not (axis.role == "input" or channels.groups[axis.group].is_inner):
        return []
    # -1 stands for an index that holds no unit: it always stays.
    staying = {-1, *kept[axis.group]}
    return [index for index, unit in enumerate(axis.units) if unit not in staying]


def _scaled(model: nn.Module, channels: ChannelMap, kept: Kept) -> list[Size]:
    """Attributes of the user's modules that go in proportion."""
    # Fractions: two groups may share an attribute, and floats would not tell whether it stays whole.
    shares: dict[tuple[int, str], Fraction] = {}
    attributes: dict[tuple[int, str], tuple[nn.Module, str, str]] = {}
    for name, units in kept.items():
        group = channels.groups[name]
        for module_name, path in group.sizes:
            if is_constant_path(path):
                continue
            module = _module(model, module_name)
            key = id(module), path
            attributes[key] = module, module_name, path
            shares[key] = shares.get(key, Fraction(1)) * Fraction(len(units), group.units)
    sizes = []
    for key, (module, module_name, path) in attributes.items():
        size = Size.read(module, path, module_name)
        new = size.value * shares[key]
        if new.denominator != 1:
            raise ModelError(
                f"{module_name}.{path} is {size.value}, and {float(new):g} of it would be left; "
                "keep a number of units at which it is whole"
            )
        sizes.append(size.resized(int(new)))
    return sizes


def _reshaped(model: nn.Module, channels: ChannelMap, kept: Kept) -> list[ConstantShape]:
    """Constants whose shapes stand in the user's forward."""
    # A constant that two groups cut has its shape with one of them.
    touched = {
        tensor.name for tensor in channels.tensors.values() if any(axis.group in kept for axis in tensor.axes)
    }
    named = dict.fromkeys(
        size
        for name, group in channels.groups.items()
        for size in group.sizes
        if name in kept or f"{size[0]}.{size[1]}".lstrip(".").removesuffix(constant_path("")) in touched
    )
    return [ConstantShape.read(model, module, path) for module, path in named if is_constant_path(path)]


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} has no module {name!r}; the groups were read from another model"
        ) from error
