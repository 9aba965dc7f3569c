from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seams import group_is_inside, units_from_json, units_to_json
from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_cost, usual_ranks_in
from slimrank.plan import Plan, Step, is_inside, structure_of
from slimrank.records import (
    METRICS,
    AxisUnits,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    GroupSpec,
    LayerKind,
    LayerSpec,
    ProductSpec,
    Setting,
    TensorSpec,
)

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3, "recurrent": 0, "other": 0}
SIZES = st.integers(1, 9)
# Words with one dot between each two; no other name can be that of a module.
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: all(name.split("."))
)
RATIOS = st.floats(0, 1, exclude_min=True)


@st.composite
def specs(draw: st.DrawFn) -> LayerSpec:
    kind = draw(st.sampled_from(KINDS))
    dims = DIMS[kind]
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    c_out, c_in = draw(SIZES), draw(SIZES)
    maps = [tuple(draw(SIZES) for _ in range(dims)) for _ in range(2)]
    shapes = ((1, c_in, *maps[0]), (1, c_out, *maps[1]))
    return LayerSpec(
        name=draw(NAMES),
        kind=kind,
        class_name=draw(st.text(max_size=5)),
        weight_shape=(c_out, c_in, *kernel),
        has_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        itemsize=draw(st.sampled_from([2, 4])),
        stride=(1,) * dims,
        dilation=(1,) * dims,
        padding=draw(st.sampled_from(["same", "valid", (1,) * dims])),
        calls=(Call(input_shape=shapes[0], output_shape=shapes[1]),) * draw(st.integers(0, 2)),
        macs=draw(st.integers(0, 10**15)),
        params=draw(st.integers(0, 10**12)),
        methods=tuple(method for method in FORMS if draw(st.booleans())),
        reason=draw(st.none() | st.text(max_size=5)),
    )


@st.composite
def group_specs(draw: st.DrawFn, names: list[str]) -> GroupSpec:
    some = st.lists(st.sampled_from(names), max_size=3).map(tuple) if names else st.just(())
    return GroupSpec(
        name=draw(NAMES),
        units=draw(SIZES),
        unit_width=draw(SIZES),
        producers=draw(some),
        consumers=draw(some),
        is_inner=draw(st.booleans()),
        sizes=tuple(draw(st.lists(st.tuples(NAMES, NAMES), max_size=2))),
        reason=draw(st.none() | st.just("it is an output")),
    )


@st.composite
def tensor_specs(draw: st.DrawFn, groups: list[GroupSpec]) -> TensorSpec:
    """Any tensors but those of a layer, whose shapes belong to the layer."""
    shape = draw(st.lists(SIZES, min_size=1, max_size=3).map(tuple))
    axes = []
    for group in draw(st.lists(st.sampled_from(groups), max_size=2)) if groups else ():
        dim = draw(st.integers(0, len(shape) - 1))
        units = draw(st.lists(st.integers(-1, group.units - 1), min_size=shape[dim], max_size=shape[dim]))
        held = [index for index, unit in enumerate(units) if unit != -1]
        axes.append(
            AxisUnits(
                group=group.name,
                dim=dim,
                role=draw(st.sampled_from(["output", "input"])),
                units=tuple(units),
                queries=tuple(index for index in held if draw(st.booleans())),
            )
        )
    return TensorSpec(
        name=draw(NAMES) + "/",
        shape=shape,
        itemsize=draw(st.sampled_from([2, 4])),
        is_parameter=draw(st.booleans()),
        positions=draw(st.integers(0, 100)),
        axes=tuple(axes),
    )


@st.composite
def channel_maps(draw: st.DrawFn, names: list[str]) -> ChannelMap:
    groups = draw(st.lists(group_specs(names), max_size=3, unique_by=lambda one: one.name))
    alive = [group for group in groups if group.reason is None]
    tensors = draw(st.lists(tensor_specs(alive), max_size=3, unique_by=lambda one: one.name))
    blocks = draw(st.lists(NAMES, max_size=2, unique=True))
    numbers = st.integers(0, 10**12)
    products = [
        ProductSpec(
            module=draw(st.just("") | NAMES),
            macs=draw(numbers),
            groups=tuple(
                draw(st.lists(st.sampled_from([one.name for one in alive]), max_size=2, unique=True))
            ),
        )
        for _ in range(draw(st.integers(0, 2)) if alive else 0)
    ]
    return ChannelMap(
        groups={one.name: one for one in groups},
        tensors={one.name: one for one in tensors},
        products=tuple(products),
        blocks={
            name: BlockSpec(name=name, macs=draw(numbers), params=draw(numbers), bytes=draw(numbers))
            for name in blocks
        },
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    layers = draw(st.lists(specs(), max_size=5, unique_by=lambda spec: spec.name))
    channels = draw(channel_maps([spec.name for spec in layers]))
    dropped: tuple[str, ...] = ()
    for name in channels.blocks:
        if not is_inside(name, dropped) and not any(is_inside(other, (name,)) for other in dropped):
            dropped += (name,) * draw(st.integers(0, 1))
    groups = {}
    for group in channels.groups.values():
        if group.reason is None and group.units > 1 and draw(st.booleans()):
            kept = draw(st.sets(st.integers(0, group.units - 1), min_size=1, max_size=group.units - 1))
            if not (dropped and group_is_inside(channels, group.name, dropped)):
                groups[group.name] = tuple(sorted(kept))
    chosen = {}
    for spec in layers:
        pairs = [(method, form) for method in FORMS for form in forms_of(spec, method)]
        if pairs and draw(st.booleans()) and not is_inside(spec.name, dropped):
            method, form = draw(st.sampled_from(pairs))
            rank = draw(st.integers(1, max_rank(spec, form)))
            pair, layer = pair_cost(spec, form, rank, has_bias=spec.has_bias), layer_cost(spec)
            if pair.macs >= layer.macs and pair.params >= layer.params:
                continue
            usual = usual_ranks_in(spec, form, np.array([rank]))
            rank_in = None if usual is None else int(usual[0])
            chosen[spec.name] = (Setting(method=method, form=form, rank=rank, rank_in=rank_in),)
    before = sum((layer_cost(spec) for spec in layers), Cost(macs=5, params=5, bytes=20))
    return Plan(
        steps=(
            Step(structure=structure_of(layers, channels), layers=chosen, groups=groups, dropped=dropped),
        ),
        before=before,
        has_bias=draw(st.booleans()),
        select=draw(st.sampled_from(["optimal", "greedy", "uniform", "manual"])),
        damage=draw(st.none() | st.floats(0, allow_infinity=False)),
        gap=draw(st.none() | st.floats(0, 1)),
        multiple_of=draw(st.integers(1, 64) | st.just({"*": 8} if layers else 1)),
        budgets=draw(st.dictionaries(st.sampled_from(METRICS), RATIOS)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.mark.slow
@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_load_gives_back_what_was_saved(plan: Plan, folder: Path) -> None:
    plan.save(folder / "plan.json")
    loaded = Plan.load(folder / "plan.json")
    assert loaded == plan
    assert list(loaded.steps[0].structure.layers) == list(plan.steps[0].structure.layers)
    assert list(loaded.settings) == list(plan.settings)
    assert list(loaded.groups) == list(plan.groups)
    assert list(loaded.steps[0].structure.channels.groups) == list(plan.steps[0].structure.channels.groups)
    assert loaded.after == plan.after


PATTERNS = st.tuples(st.integers(-1, 20), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))


@given(parts=st.lists(PATTERNS | st.integers(-1, 20), max_size=6))
def test_units_come_back_from_their_short_form(parts: list[tuple[int, ...] | int]) -> None:
    units: list[int] = []
    for part in parts:
        if isinstance(part, int):
            units.append(part)
        else:
            start, count, repeat, tile = part
            units += [start + step for step in range(count) for _ in range(repeat)] * tile
    short = units_to_json(units)
    assert units_from_json(short, "units") == tuple(units)
    assert len(short) <= len(units)
