# SPDX-License-Identifier: Apache-2.0
"""Channel groups in a plan file: what a person may edit, and the tensors behind it in short form."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

from slimrank._errors import PlanError
from slimrank._names import nearest
from slimrank.files import Json, as_flag, as_integer, as_integers, as_list, as_object, as_text
from slimrank.records import (
    AxisUnits,
    BlockSpec,
    ChannelMap,
    GroupSpec,
    LayerSpec,
    Passes,
    ProductSpec,
    Role,
    TensorSpec,
)

# Parts of the file that are lists, since sorted keys would lose the order of execution.
_LISTS = ("groups", "tensors", "products", "blocks")
# Spelled out, so that a role read from a file gets the type of the literal.
_ROLES: tuple[Role, ...] = ("output", "input")
# How many numbers a pattern of units has: start, count, repeat, tile.
_PATTERN_LENGTH = 4
_Named = TypeVar("_Named", GroupSpec, TensorSpec, BlockSpec)


def channels_to_json(channels: ChannelMap) -> dict[str, Json]:
    """Groups, tensors, products and blocks, each a list in order.

    Args:
        channels: of a model.

    Returns:
        What ``channels_from_json`` reads.
    """
    return {
        "groups": [_group_to_json(group) for group in channels.groups.values()],
        "tensors": [_tensor_to_json(tensor) for tensor in channels.tensors.values()],
        "products": [
            {"module": product.module, "macs": product.macs, "groups": list(product.groups)}
            for product in channels.products
        ],
        "blocks": [_block_to_json(block) for block in channels.blocks.values()],
        "norms": dict(channels.norms),
    }


def channels_from_json(value: Json, layers: Mapping[str, LayerSpec], where: str) -> ChannelMap:
    """Groups, tensors, products and blocks of a plan file.

    Args:
        value: what ``channels_to_json`` wrote.
        layers: of the structure.
        where: for errors.

    Returns:
        The groups and what belongs to them.

    Raises:
        PlanError: something else, a name twice, or names and numbers that do not belong together.
    """
    content = as_object(value, where, required=(*_LISTS, "norms"))
    parts = {key: list(_items(content[key], f"{where}.{key}")) for key in _LISTS}
    # Groups first: tensors and products name them.
    groups = _by_name(
        (_group_from_json(group, layers, location) for group, location in parts["groups"]), f"{where}.groups"
    )
    tensors = _by_name(
        (_tensor_from_json(tensor, groups, location) for tensor, location in parts["tensors"]),
        f"{where}.tensors",
    )
    return ChannelMap(
        groups=groups,
        tensors=tensors,
        products=tuple(
            _product_from_json(product, groups, location) for product, location in parts["products"]
        ),
        blocks=_by_name(
            (_block_from_json(block, location) for block, location in parts["blocks"]), f"{where}.blocks"
        ),
        norms=_norms_from_json(content["norms"], layers, f"{where}.norms"),
    )


def _norms_from_json(value: Json, layers: Mapping[str, LayerSpec], where: str) -> dict[str, str]:
    norms = as_object(value, where)
    for layer in norms:
        if layer not in layers:
            raise PlanError(f"{where}: {layer!r} is no layer of the structure; {nearest(layer, layers)}")
    return {layer: as_text(norm, f"{where}.{layer}") for layer, norm in norms.items()}


def units_to_json(units: Sequence[int]) -> list[Json]:
    """The unit of each index in short form.

    Args:
        units: (size,) whole numbers.

    Returns:
        Whole numbers, and ``[start, count, repeat, tile]`` for ``count`` units from ``start`` on, each
        ``repeat`` times, all of it ``tile`` times.
    """
    runs = [(unit, len(list(same))) for unit, same in groupby(units)]
    # Runs of equal length whose units rise by one, each as start, count and repeat.
    stairs: list[list[int]] = []
    for unit, length in runs:
        last = stairs[-1] if stairs else None
        if last is not None and last[2] == length and unit == last[0] + last[1]:
            last[1] += 1
        else:
            stairs.append([unit, 1, length])
    short: list[Json] = []
    for (start, count, repeat), same in groupby(stairs):
        tile = len(list(same))
        short += [start] * tile if count * repeat == 1 else [[start, count, repeat, tile]]
    return short


def units_from_json(value: Json, where: str) -> tuple[int, ...]:
    """The unit of each index, from its short form.

    Args:
        value: what ``units_to_json`` wrote.
        where: for errors.

    Returns:
        (size,) whole numbers.

    Raises:
        PlanError: something else.
    """
    units: list[int] = []
    for item, location in _items(value, where):
        if not isinstance(item, list):
            units.append(as_integer(item, location))
            continue
        pattern = as_integers(item, location)
        if len(pattern) != _PATTERN_LENGTH or min(pattern[1:]) < 1:
            raise PlanError(f"{location}: {list(pattern)} is no pattern; write [start, count, repeat, tile]")
        start, count, repeat, tile = pattern
        units += [start + index // repeat for index in range(count * repeat)] * tile
    return tuple(units)


def _items(value: Json, where: str) -> Iterable[tuple[Json, str]]:
    """The items of a list, each with where it stands, for errors."""
    return ((item, f"{where}[{index}]") for index, item in enumerate(as_list(value, where)))


def _by_name(values: Iterable[_Named], where: str) -> dict[str, _Named]:
    found: dict[str, _Named] = {}
    for value in values:
        if value.name in found:
            raise PlanError(f"{where}: {value.name!r} stands twice; delete one of them")
        found[value.name] = value
    return found


def _texts(value: Json, where: str) -> tuple[str, ...]:
    return tuple(as_text(item, location) for item, location in _items(value, where))


def _group_to_json(group: GroupSpec) -> dict[str, Json]:
    every: dict[str, Json] = {
        "name": group.name,
        "units": group.units,
        "unit_width": group.unit_width,
        "producers": list(group.producers),
        "consumers": list(group.consumers),
        "is_inner": group.is_inner,
        "sizes": [[module, attribute] for module, attribute in group.sizes],
        "reason": group.reason,
    }
    # Defaults are left out, so that most groups take one line of the file.
    defaults: dict[str, Json] = {"is_inner": False, "sizes": [], "reason": None}
    return {key: value for key, value in every.items() if key not in defaults or value != defaults[key]}


def _group_from_json(value: Json, layers: Mapping[str, LayerSpec], where: str) -> GroupSpec:
    content = as_object(
        value,
        where,
        required=("name", "units", "unit_width", "producers", "consumers"),
        optional=("is_inner", "sizes", "reason"),
    )
    units = as_integer(content["units"], f"{where}.units")
    if units < 1:
        raise PlanError(f"{where}: {units} units; a group has at least one")
    members = {key: _texts(content[key], f"{where}.{key}") for key in ("producers", "consumers")}
    # Costs look consumers up; a producer is a name alone, and need not be a layer (a position table).
    for name in members["consumers"]:
        if name not in layers:
            raise PlanError(f"{where}: {name!r} is no layer of the structure; {nearest(name, layers)}")
    pairs = [
        (_texts(item, location), location)
        for item, location in _items(content.get("sizes", []), f"{where}.sizes")
    ]
    for pair, location in pairs:
        if len(pair) != 2:
            raise PlanError(f"{location}: {list(pair)} is no pair; write [module, attribute]")
    reason = content.get("reason")
    return GroupSpec(
        name=as_text(content["name"], f"{where}.name"),
        units=units,
        unit_width=as_integer(content["unit_width"], f"{where}.unit_width"),
        producers=members["producers"],
        consumers=members["consumers"],
        is_inner=as_flag(content.get("is_inner", False), f"{where}.is_inner"),
        sizes=tuple((pair[0], pair[1]) for pair, _ in pairs),
        reason=None if reason is None else as_text(reason, f"{where}.reason"),
    )


def _tensor_to_json(tensor: TensorSpec) -> dict[str, Json]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "itemsize": tensor.itemsize,
        "is_parameter": tensor.is_parameter,
        "positions": tensor.positions,
        "axes": [_axis_to_json(axis) for axis in tensor.axes],
    }


def _axis_to_json(axis: AxisUnits) -> dict[str, Json]:
    written: dict[str, Json] = {"group": axis.group, "dim": axis.dim, "role": axis.role}
    written["units"] = units_to_json(axis.units)
    return written | ({"queries": units_to_json(axis.queries)} if axis.queries else {})


def _tensor_from_json(value: Json, groups: Mapping[str, GroupSpec], where: str) -> TensorSpec:
    content = as_object(
        value, where, required=("name", "shape", "itemsize", "is_parameter", "positions", "axes")
    )
    shape = as_integers(content["shape"], f"{where}.shape")
    return TensorSpec(
        name=as_text(content["name"], f"{where}.name"),
        shape=shape,
        itemsize=as_integer(content["itemsize"], f"{where}.itemsize"),
        is_parameter=as_flag(content["is_parameter"], f"{where}.is_parameter"),
        positions=as_integer(content["positions"], f"{where}.positions"),
        axes=tuple(
            _axis_from_json(axis, shape, groups, location)
            for axis, location in _items(content["axes"], f"{where}.axes")
        ),
    )


def _axis_from_json(
    value: Json, shape: Sequence[int], groups: Mapping[str, GroupSpec], where: str
) -> AxisUnits:
    content = as_object(value, where, required=("group", "dim", "role", "units"), optional=("queries",))
    group = _group_name(content["group"], groups, f"{where}.group")
    dim = as_integer(content["dim"], f"{where}.dim")
    if not 0 <= dim < len(shape):
        raise PlanError(f"{where}: dim {dim} is outside 0..{len(shape) - 1}; save the plan again")
    text = as_text(content["role"], f"{where}.role")
    role = next((known for known in _ROLES if known == text), None)
    if role is None:
        raise PlanError(f"{where}: unknown role {text!r}; {nearest(text, _ROLES)}")
    units = units_from_json(content["units"], f"{where}.units")
    if len(units) != shape[dim]:
        raise PlanError(
            f"{where}: {len(units)} units for a dimension of {shape[dim]} indices; save the plan again"
        )
    # -1 stands for an index that belongs to no unit of this group.
    wrong = next((unit for unit in units if not -1 <= unit < groups[group].units), None)
    if wrong is not None:
        raise PlanError(
            f"{where}: unit {wrong} is outside -1..{groups[group].units - 1} of group {group!r}; save the "
            "plan again"
        )
    queries = units_from_json(content.get("queries", []), f"{where}.queries")
    if any(not 0 <= index < len(units) or units[index] == -1 for index in queries):
        raise PlanError(
            f"{where}: queries stand at indices that hold no unit of {group!r}; save the plan again"
        )
    return AxisUnits(group=group, dim=dim, role=role, units=units, queries=queries)


def _group_name(value: Json, groups: Mapping[str, GroupSpec], where: str) -> str:
    name = as_text(value, where)
    if name not in groups:
        raise PlanError(f"{where}: {name!r} is no group of the structure; {nearest(name, groups)}")
    return name


def _product_from_json(value: Json, groups: Mapping[str, GroupSpec], where: str) -> ProductSpec:
    content = as_object(value, where, required=("module", "macs", "groups"))
    return ProductSpec(
        module=as_text(content["module"], f"{where}.module"),
        macs=as_integer(content["macs"], f"{where}.macs"),
        groups=tuple(
            _group_name(name, groups, location)
            for name, location in _items(content["groups"], f"{where}.groups")
        ),
    )


def _block_to_json(block: BlockSpec) -> dict[str, Json]:
    written: dict[str, Json] = {key: getattr(block, key) for key in ("name", "macs", "params", "bytes")}
    return written | ({} if block.passes is None else {"passes": _passes_to_json(block.passes)})


def _passes_to_json(passes: Passes) -> Json:
    return [_passes_to_json(part) for part in passes] if isinstance(passes, tuple) else passes


def _block_from_json(value: Json, where: str) -> BlockSpec:
    content = as_object(value, where, required=("name", "macs", "params", "bytes"), optional=("passes",))
    macs, params, size = (as_integer(content[key], f"{where}.{key}") for key in ("macs", "params", "bytes"))
    return BlockSpec(
        name=as_text(content["name"], f"{where}.name"),
        macs=macs,
        params=params,
        bytes=size,
        passes=_passes_from_json(content.get("passes"), f"{where}.passes"),
    )


def _passes_from_json(value: Json, where: str) -> Passes:
    if isinstance(value, list):
        return tuple(_passes_from_json(part, location) for part, location in _items(value, where))
    if value is None or isinstance(value, str):
        return value
    index = as_integer(value, where)
    if index < 0:
        raise PlanError(f"{where}: argument {index}; give its position, from 0 on, or its name")
    return index
