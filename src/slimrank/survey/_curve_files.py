# SPDX-License-Identifier: Apache-2.0
"""Measurements on disk, each kept as it is done."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slimrank._errors import StudyError
from slimrank.cost import FORM_ROWS, forms_of
from slimrank.methods import TABLE
from slimrank.records import BlockDamage, ChannelMap, Curve, GroupCurve, GroupSpec, LayerSpec, replaces_groups
from slimrank.store import Store

# Second moments of output gradients, of all layers in one file.
GRADIENT_FILE = "gradients.safetensors"
# Of a curve, as attributes of it and as names in its file.
_ARRAYS = ("ranks", "macs", "params", "bytes", "error", "damage")
# The same of a form with two ranks alone.
_SECOND = "ranks_in"
# Sizes at which divergences were measured, (A,) int64, and these, (A,) float64. Files of older versions
# have neither.
_ANCHORED, _ANCHORS = "anchored", "anchors"


def _anchors_to_tensors(anchors: Mapping[int, float], prefix: str = "") -> dict[str, Tensor]:
    """Measured divergences by size, as tensors; none where there are none."""
    if not anchors:
        return {}
    return {
        f"{prefix}{_ANCHORED}": torch.tensor(list(anchors), dtype=torch.int64),
        f"{prefix}{_ANCHORS}": torch.tensor(list(anchors.values()), dtype=torch.float64),
    }


def _anchors_from_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[int, float]:
    """What ``_anchors_to_tensors`` made."""
    if f"{prefix}{_ANCHORED}" not in tensors:
        return {}
    sizes, divergences = tensors[f"{prefix}{_ANCHORED}"], tensors[f"{prefix}{_ANCHORS}"]
    return dict(zip(sizes.tolist(), divergences.tolist(), strict=True))


def layer_file(index: int) -> str:
    """The file of the curves of a layer, by its index in the study."""
    return f"curves-{index:04d}.safetensors"


def write_layer(store: Store, index: int, curves: Sequence[Curve]) -> None:
    """Writes the curves of one layer, in a file named after its index."""
    tensors = {
        f"{curve.method}.{curve.form}.{array}": torch.from_numpy(getattr(curve, array).copy())
        for curve in curves
        for array in (*_ARRAYS, _SECOND)
        if getattr(curve, array) is not None
    }
    for curve in curves:
        tensors |= _anchors_to_tensors(curve.anchors, f"{curve.method}.{curve.form}.")
    store.write_tensors(layer_file(index), tensors, {"layer": curves[0].layer} if curves else None)


def read_layer(store: Store, index: int, spec: LayerSpec) -> tuple[Curve, ...]:
    """Reads the curves of one layer; none where it was not measured."""
    name = layer_file(index)
    if not store.has(name):
        return ()
    tensors = store.read_tensors(name)
    curves = []
    for method in TABLE:
        for form in forms_of(spec, method):
            if f"{method}.{form}.ranks" not in tensors:
                continue
            names = (*_ARRAYS, _SECOND) if FORM_ROWS[form].has_third else _ARRAYS
            arrays = {array: tensors[f"{method}.{form}.{array}"].numpy() for array in names}
            anchors = _anchors_from_tensors(tensors, f"{method}.{form}.")
            curves.append(Curve(layer=spec.name, method=method, form=form, anchors=anchors, **arrays))
    return tuple(curves)


def write_curves(store: Store, layers: Sequence[LayerSpec], curves: Sequence[Curve]) -> None:
    """Writes the curves of a whole study."""
    for index, spec in enumerate(layers):
        curves_of_layer = [curve for curve in curves if curve.layer == spec.name]
        if curves_of_layer:
            write_layer(store, index, curves_of_layer)


def read_curves(store: Store, layers: Sequence[LayerSpec]) -> tuple[Curve, ...]:
    """Reads the curves of a whole study.

    Raises:
        StudyError: a layer lacks its curves; the study was not finished.
    """
    curves: list[Curve] = []
    for index, spec in enumerate(layers):
        if not all(replaces_groups(method) for method in spec.methods):
            curves_of_layer = read_layer(store, index, spec)
            if not curves_of_layer:
                raise StudyError(
                    f"{store.root} holds no curves for layer {spec.name!r}: the study was not finished; run "
                    "sr.study(..., run_dir=) on it again to go on"
                )
            curves += curves_of_layer
    return tuple(curves)


# The same of the curve of a group; its order is written beside them.
_GROUP_ARRAYS = ("kept", "error", "damage")


def text_to_tensor(text: str) -> Tensor:
    """Text among tensors: its bytes, uint8."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def write_group(store: Store, index: int, curve: GroupCurve) -> None:
    """Writes the curve of one group, in a file named after its index in the map."""
    tensors = {array: torch.from_numpy(getattr(curve, array).copy()) for array in _GROUP_ARRAYS}
    tensors["order"] = torch.tensor(curve.order, dtype=torch.int64)
    tensors["name"] = text_to_tensor(curve.group)
    tensors |= _anchors_to_tensors(curve.anchors)
    store.write_tensors(f"group-{index:04d}.safetensors", tensors, {"group": curve.group})


def read_group(store: Store, index: int, group: GroupSpec) -> GroupCurve | None:
    """Reads the curve of one group; None where it was not measured."""
    name = f"group-{index:04d}.safetensors"
    if not store.has(name):
        return None
    tensors = store.read_tensors(name)
    if not torch.equal(tensors["name"], text_to_tensor(group.name)) or len(tensors["order"]) != group.units:
        # A version that finds other groups in the same model wrote this file.
        return None
    arrays = {array: tensors[array].numpy() for array in _GROUP_ARRAYS}
    return GroupCurve(
        group=group.name,
        order=tuple(tensors["order"].tolist()),
        anchors=_anchors_from_tensors(tensors),
        **arrays,
    )


def write_groups(store: Store, channels: ChannelMap, curves: Sequence[GroupCurve]) -> None:
    """Writes the curves of all groups of a study."""
    index_of = {name: index for index, name in enumerate(channels.groups)}
    for curve in curves:
        write_group(store, index_of[curve.group], curve)


def read_group_curves(store: Store, channels: ChannelMap) -> tuple[GroupCurve, ...]:
    """Reads the curves of all groups of a study.

    Raises:
        StudyError: a group lacks its curve; the study was not finished.
    """
    curves = []
    for index, group in enumerate(channels.groups.values()):
        if group.reason is not None:
            continue
        curve = read_group(store, index, group)
        if curve is None:
            raise StudyError(
                f"{store.root} holds no curve for group {group.name!r}: the study was not finished; run "
                "sr.study(..., run_dir=) on it again to go on"
            )
        curves.append(curve)
    return tuple(curves)


# Damages of all blocks once every one is measured; until then, what was dropped so far.
BLOCK_DAMAGES_FILE, _DROPS = "blocks.safetensors", "blocks-dropped.safetensors"
# Blocks that are dropped together.
Drop = tuple[str, ...]


def _names_tensor(names: Iterable[str]) -> torch.Tensor:
    return text_to_tensor("\n".join(names))


def write_drops(store: Store, names: Sequence[str], measured: Mapping[Drop, float]) -> None:
    """Writes the divergences of dropped blocks that are measured so far."""
    dropped = [",".join(str(names.index(name)) for name in drop) for drop in measured]
    tensors = {
        "measured": torch.tensor(list(measured.values()), dtype=torch.float64),
        "names": _names_tensor(names),
        "dropped": text_to_tensor("\n".join(dropped)),
    }
    store.write_tensors(_DROPS, tensors)


def read_drops(store: Store, names: Sequence[str]) -> dict[Drop, float]:
    """Reads them back; empty where none was measured, or those of other blocks."""
    if not store.has(_DROPS):
        return {}
    tensors = store.read_tensors(_DROPS)
    if not torch.equal(tensors["names"], _names_tensor(names)):
        return {}
    lines = bytes(tensors["dropped"].tolist()).decode().splitlines()
    drops = [tuple(names[int(number)] for number in line.split(",")) for line in lines]
    return dict(zip(drops, tensors["measured"].tolist(), strict=True))


def write_blocks(store: Store, damages: Sequence[BlockDamage]) -> None:
    """Writes the damages of all blocks of a study; of a study that measures none, that there are none."""
    values = torch.tensor([block.damage for block in damages], dtype=torch.float64)
    names = _names_tensor(block.block for block in damages)
    store.write_tensors(BLOCK_DAMAGES_FILE, {"damage": values, "names": names})


def read_blocks(store: Store, channels: ChannelMap) -> tuple[BlockDamage, ...]:
    """Reads the damages of all blocks of a study that had data.

    Raises:
        StudyError: they are missing; the study was not finished.
    """
    names = tuple(channels.blocks)
    damages = read_block_damages(store, names) if names else ()
    if damages is None:
        raise StudyError(
            f"{store.root} holds no damages of blocks: the study was not finished; run "
            "sr.study(..., run_dir=) on it again to go on"
        )
    return damages


def read_block_damages(store: Store, names: Sequence[str]) -> tuple[BlockDamage, ...] | None:
    """Damages of these blocks; None where they were not measured, or others were.

    Empty where the study measured none.
    """
    if not store.has(BLOCK_DAMAGES_FILE):
        return None
    tensors = store.read_tensors(BLOCK_DAMAGES_FILE)
    if not len(tensors["damage"]):
        return ()
    if not torch.equal(tensors["names"], _names_tensor(names)):
        return None
    damages = tensors["damage"].tolist()
    return tuple(BlockDamage(block=name, damage=damage) for name, damage in zip(names, damages, strict=True))
