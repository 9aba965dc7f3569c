from dataclasses import replace

import pytest

from slimrank import PlanError
from slimrank.plan import Plan, Step, Structure, check_structure, structure_of
from slimrank.records import Cost, LayerSpec
from specs import linear


def layer(name: str, rows: int = 4) -> LayerSpec:
    return linear(name, rows, 3)


def plan_for(structure: Structure) -> Plan:
    step = Step(structure=structure, layers={})
    return Plan(steps=(step,), before=Cost(macs=1, params=1, bytes=4), has_bias=False)


def test_fingerprint_follows_names_and_shapes_only() -> None:
    first = structure_of([layer("a"), layer("b")]).sha256
    assert structure_of([layer("b"), layer("a")]).sha256 == first
    assert structure_of([replace(layer("a"), calls=(), dtype="bfloat16"), layer("b")]).sha256 == first
    assert structure_of([layer("a"), layer("c")]).sha256 != first
    assert structure_of([layer("a"), layer("b", 5)]).sha256 != first
    assert structure_of([layer("a"), replace(layer("b"), has_bias=False)]).sha256 != first


def test_same_structure_and_empty_plans_pass() -> None:
    structure = structure_of([layer("a")])
    check_structure(plan_for(structure), structure_of([layer("a")]))
    check_structure(Plan(steps=(), before=Cost(macs=1, params=1, bytes=4), has_bias=False), structure)


def test_other_models_are_named_layer_by_layer() -> None:
    planned = structure_of([layer("a"), layer("b"), layer("gone")])
    present = structure_of([layer("a"), layer("b", 7), layer("new")])
    message = (
        r"1 missing in the model: 'gone'; 1 unknown to the plan: 'new'; "
        r"1 of another shape: 'b' weight_shape \(4, 3\) -> \(7, 3\)"
    )
    with pytest.raises(PlanError, match=message):
        check_structure(plan_for(planned), present)


def test_at_most_five_names_and_a_count() -> None:
    planned = structure_of([layer(f"a{i}") for i in range(8)])
    with pytest.raises(PlanError, match=r"8 missing in the model: 'a0', .*'a4' and 3 more"):
        check_structure(plan_for(planned), structure_of([]))
    with pytest.raises(PlanError, match=r"8 of another shape: .*'a4' [^']* and 3 more"):
        check_structure(plan_for(planned), structure_of([layer(f"a{i}", 9) for i in range(8)]))


def test_same_layers_but_other_fingerprint() -> None:
    structure = structure_of([layer("a")])
    with pytest.raises(PlanError, match="same layers, but other tensors besides them"):
        check_structure(plan_for(structure), replace(structure, sha256="0" * 64))
