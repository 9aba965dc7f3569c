# SPDX-License-Identifier: Apache-2.0
"""Two groups as one: what becomes of tensors, products and names."""

from seams import mergeable, merged
from slimrank.records import AxisUnits, ChannelMap, GroupSpec, ProductSpec, Role, TensorSpec


def _group(name: str, units: int, *producers: str, **fields: object) -> GroupSpec:
    given = {"consumers": (), "unit_width": 1} | fields
    return GroupSpec(name=name, units=units, producers=producers, **given)


def _axis(group: str, units: tuple[int, ...], role: Role = "output") -> AxisUnits:
    return AxisUnits(group=group, dim=0, role=role, units=units)


def _tensor(*axes: AxisUnits) -> TensorSpec:
    size = len(axes[0].units)
    return TensorSpec(name="t", shape=(size,), itemsize=4, is_parameter=True, positions=0, axes=axes)


def _map(*axes: AxisUnits, products: tuple[ProductSpec, ...] = ()) -> ChannelMap:
    groups = {
        "q": _group("q", 2, "attn.q", "attn.k", is_inner=True),
        "v": _group("v", 2, "attn.v", consumers=("attn.out",), sizes=(("attn", "width"),)),
        "w": _group("w", 2, "w"),
    }
    return ChannelMap(groups=groups, tensors={"t": _tensor(*axes)} if axes else {}, products=products)


def test_groups_of_as_many_units_in_one_module_are_offered() -> None:
    groups = [
        _group("a", 4, "block.q"),
        _group("b", 8, "block.v"),
        _group("c", 4, "other.v"),
        _group("d", 4, "block.v", "far.x"),
        _group("e", 4, "far.y"),
    ]
    assert list(mergeable(groups)) == [("a", "d"), ("d", "e")]


def test_the_new_group_has_what_both_had_but_their_sizes() -> None:
    found = merged(_map(), "q", "v")
    assert list(found.groups) == ["q", "w"]
    expected = _group("q", 2, "attn.q", "attn.k", "attn.v", consumers=("attn.out",), is_inner=True)
    assert found.groups["q"] == expected


def test_parts_of_one_dimension_become_one() -> None:
    found = merged(_map(_axis("q", (0, 1, -1, -1)), _axis("v", (-1, -1, 1, 0))), "q", "v")
    assert found.tensors["t"].axes == (_axis("q", (0, 1, 1, 0)),)


def test_indices_of_both_and_of_other_roles_stand_side_by_side() -> None:
    both = merged(_map(_axis("q", (0, 0, 1, 1)), _axis("v", (0, 1, 0, 1))), "q", "v")
    assert both.tensors["t"].axes == (_axis("q", (0, 0, 1, 1)), _axis("q", (0, 1, 0, 1)))
    roles = merged(_map(_axis("q", (0, -1)), _axis("v", (-1, 0), "input")), "q", "v")
    assert roles.tensors["t"].axes == (_axis("q", (0, -1)), _axis("q", (-1, 0), "input"))


def test_tensors_and_products_of_others_stay() -> None:
    products = (
        ProductSpec(module="", macs=3, groups=("w", "v")),
        ProductSpec(module="", macs=4, groups=("q", "v")),
    )
    found = merged(_map(_axis("w", (0, 1)), products=products), "q", "v")
    assert found.tensors["t"].axes == (_axis("w", (0, 1)),)
    assert [product.groups for product in found.products] == [("w", "q"), ("q",)]
