# SPDX-License-Identifier: Apache-2.0
"""Measurements on disk, each kept as it is done."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from slimrank._errors import StudyError
from slimrank.cost import FORM_ROWS, forms_of
from slimrank.files import Array, Store
from slimrank.records import (
    ALL_METHODS,
    BlockDamage,
    ChannelMap,
    Curve,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    replaces_groups,
)

# Second moments of output gradients, of all layers in one file.
GRADIENT_FILE = "gradients.safetensors"
# Of a curve, as attributes of it and as names in its file.
_ARRAYS = ("ranks", "macs", "params", "bytes", "error", "damage")
# The same of a form with two ranks alone.
_SECOND = "ranks_in"
# Sizes at which divergences were measured, (A,) int64, and these, (A,) float64. Files of older versions
# have neither.
_ANCHORED, _ANCHORS = "anchored", "anchors"


def _anchors_to_arrays(anchors: Mapping[int, float], prefix: str = "") -> dict[str, Array]:
    """Measured divergences by size, as arrays; none where there are none."""
    if not anchors:
        return {}
    return {
        f"{prefix}{_ANCHORED}": np.array(list(anchors), dtype=np.int64),
        f"{prefix}{_ANCHORS}": np.array(list(anchors.values()), dtype=np.float64),
    }


def _anchors_from_arrays(arrays: Mapping[str, Array], prefix: str = "") -> dict[int, float]:
    """What ``_anchors_to_arrays`` made."""
    if f"{prefix}{_ANCHORED}" not in arrays:
        return {}
    sizes, divergences = arrays[f"{prefix}{_ANCHORED}"], arrays[f"{prefix}{_ANCHORS}"]
    return dict(zip(sizes.tolist(), divergences.tolist(), strict=True))


def layer_file(index: int) -> str:
    """The file of the curves of a layer, by its index in the study."""
    return f"curves-{index:04d}.safetensors"


def write_layer(store: Store, index: int, curves: Sequence[Curve]) -> None:
    """Writes the curves of one layer, in a file named after its index."""
    arrays = {
        f"{curve.method}.{curve.form}.{name}": getattr(curve, name)
        for curve in curves
        for name in (*_ARRAYS, _SECOND)
        if getattr(curve, name) is not None
    }
    for curve in curves:
        arrays |= _anchors_to_arrays(curve.anchors, f"{curve.method}.{curve.form}.")
    store.write_arrays(layer_file(index), arrays, {"layer": curves[0].layer} if curves else None)


def read_layer(store: Store, index: int, spec: LayerSpec) -> tuple[Curve, ...]:
    """Reads the curves of one layer; none where it was not measured."""
    file = layer_file(index)
    if not store.has(file):
        return ()
    arrays = store.read_arrays(file)
    curves = []
    for method in ALL_METHODS:
        for form in forms_of(spec, method):
            if f"{method}.{form}.ranks" not in arrays:
                continue
            names = (*_ARRAYS, _SECOND) if FORM_ROWS[form].has_third else _ARRAYS
            of_form = {name: arrays[f"{method}.{form}.{name}"] for name in names}
            anchors = _anchors_from_arrays(arrays, f"{method}.{form}.")
            curves.append(Curve(layer=spec.name, method=method, form=form, anchors=anchors, **of_form))
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


def _text_to_array(text: str) -> Array:
    """Text among arrays: its bytes, uint8."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _group_file(index: int) -> str:
    return f"group-{index:04d}.safetensors"


def write_group(store: Store, index: int, curve: GroupCurve) -> None:
    """Writes the curve of one group, in a file named after its index in the map."""
    arrays: dict[str, Array] = {name: getattr(curve, name) for name in _GROUP_ARRAYS}
    arrays["order"] = np.array(curve.order, dtype=np.int64)
    arrays["name"] = _text_to_array(curve.group)
    arrays |= _anchors_to_arrays(curve.anchors)
    store.write_arrays(_group_file(index), arrays, {"group": curve.group})


def read_group(store: Store, index: int, group: GroupSpec) -> GroupCurve | None:
    """Reads the curve of one group; None where it was not measured."""
    file = _group_file(index)
    if not store.has(file):
        return None
    arrays = store.read_arrays(file)
    if not np.array_equal(arrays["name"], _text_to_array(group.name)) or len(arrays["order"]) != group.units:
        # A version that finds other groups in the same model wrote this file.
        return None
    of_group = {name: arrays[name] for name in _GROUP_ARRAYS}
    return GroupCurve(
        group=group.name,
        order=tuple(arrays["order"].tolist()),
        anchors=_anchors_from_arrays(arrays),
        **of_group,
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


def _names_array(names: Iterable[str]) -> Array:
    return _text_to_array("\n".join(names))


def write_drops(store: Store, names: Sequence[str], measured: Mapping[Drop, float]) -> None:
    """Writes the divergences of dropped blocks that are measured so far."""
    dropped = [",".join(str(names.index(name)) for name in drop) for drop in measured]
    arrays: dict[str, Array] = {
        "measured": np.array(list(measured.values()), dtype=np.float64),
        "names": _names_array(names),
        "dropped": _text_to_array("\n".join(dropped)),
    }
    store.write_arrays(_DROPS, arrays)


def read_drops(store: Store, names: Sequence[str]) -> dict[Drop, float]:
    """Reads them back; empty where none was measured, or those of other blocks."""
    if not store.has(_DROPS):
        return {}
    arrays = store.read_arrays(_DROPS)
    if not np.array_equal(arrays["names"], _names_array(names)):
        return {}
    lines = arrays["dropped"].tobytes().decode().splitlines()
    drops = [tuple(names[int(number)] for number in line.split(",")) for line in lines]
    return dict(zip(drops, arrays["measured"].tolist(), strict=True))


def write_blocks(store: Store, damages: Sequence[BlockDamage]) -> None:
    """Writes the damages of all blocks of a study; of a study that measures none, that there are none."""
    values = np.array([block.damage for block in damages], dtype=np.float64)
    names = _names_array(block.block for block in damages)
    store.write_arrays(BLOCK_DAMAGES_FILE, {"damage": values, "names": names})


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
    arrays = store.read_arrays(BLOCK_DAMAGES_FILE)
    if not len(arrays["damage"]):
        return ()
    if not np.array_equal(arrays["names"], _names_array(names)):
        return None
    damages = arrays["damage"].tolist()
    return tuple(BlockDamage(block=name, damage=damage) for name, damage in zip(names, damages, strict=True))
