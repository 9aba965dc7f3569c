from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_cost
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import METRICS, Call, Cost, LayerKind, LayerSpec, Setting

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3, "other": 0}
SIZES = st.integers(1, 9)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
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
def plans(draw: st.DrawFn) -> Plan:
    layers = draw(st.lists(specs(), max_size=5, unique_by=lambda spec: spec.name))
    chosen = {}
    for spec in layers:
        pairs = [(method, form) for method in FORMS for form in forms_of(spec, method)]
        if pairs and draw(st.booleans()):
            method, form = draw(st.sampled_from(pairs))
            rank = draw(st.integers(1, max_rank(spec, form)))
            pair, layer = pair_cost(spec, form, rank, has_bias=spec.has_bias), layer_cost(spec)
            if pair.macs >= layer.macs and pair.params >= layer.params:
                continue
            chosen[spec.name] = (Setting(method=method, form=form, rank=rank),)
    before = sum((layer_cost(spec) for spec in layers), Cost(macs=5, params=5, bytes=20))
    return Plan(
        steps=(Step(structure=structure_of(layers), layers=chosen),),
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


@given(plan=plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_load_gives_back_what_was_saved(plan: Plan, folder: Path) -> None:
    plan.save(folder / "plan.json")
    loaded = Plan.load(folder / "plan.json")
    assert loaded == plan
    assert list(loaded.steps[0].structure.layers) == list(plan.steps[0].structure.layers)
    assert list(loaded.settings) == list(plan.settings)
    assert loaded.after == plan.after
