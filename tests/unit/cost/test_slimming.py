# SPDX-License-Identifier: Apache-2.0
"""Hand counts; whole nets stand in tests/parity."""

from dataclasses import replace

import pytest

from slimrank.cost import group_share, kept_shape, layer_cost, model_cost, query_scales, slimmed_spec, stays
from slimrank.records import (
    AxisUnits,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    GroupSpec,
    LayerSpec,
    ProductSpec,
    Setting,
    TensorSpec,
)
from specs import linear


def group(name: str, units: int, *consumers: str) -> GroupSpec:
    return GroupSpec(name=name, units=units, unit_width=1, producers=(name,), consumers=consumers)


def half(name: str, c_out: int, c_in: int, *, has_bias: bool = False) -> LayerSpec:
    return linear(name, c_out, c_in, tokens=7, has_bias=has_bias, dtype="float16", itemsize=2, methods=())


def tensor(name: str, shape: tuple[int, ...], positions: int, *axes: AxisUnits) -> TensorSpec:
    return TensorSpec(
        name=name, shape=shape, itemsize=2, is_parameter=True, positions=positions, axes=tuple(axes)
    )


HEADS = AxisUnits(group="heads", dim=0, role="output", units=(0, 0, 0, 1, 1, 1, 2, 2, 2))
WIDTH = AxisUnits(group="width", dim=0, role="output", units=(0, 1, 2) * 3)
# 9 outputs of a group behind 2 that belong to none.
BEHIND = AxisUnits(group="heads", dim=1, role="input", units=(-1, -1, *HEADS.units))
ROWS = tensor("body.q.weight", (9, 4), 7, HEADS, WIDTH)
BIAS = tensor("body.q.bias", (9,), 0, HEADS, WIDTH)
COLUMNS = tensor("body.out.weight", (5, 11), 7, BEHIND)
LAYERS = {
    spec.name: spec
    for spec in (half("body.q", 9, 4, has_bias=True), half("body.out", 5, 11), half("last", 3, 5))
}
CHANNELS = ChannelMap(
    groups={"heads": group("heads", 3, "body.out"), "width": group("width", 3)},
    tensors={one.name: one for one in (ROWS, BIAS, COLUMNS)},
    products=(ProductSpec(module="body", macs=9 * 49, groups=("heads", "width")),),
    blocks={
        "body": BlockSpec(name="body", macs=1000, params=100, bytes=200),
        "body.out": BlockSpec(name="body.out", macs=10, params=5, bytes=10),
    },
)
BEFORE = Cost(macs=10_000, params=1000, bytes=2000)


def cost(
    channels: ChannelMap = CHANNELS,
    *,
    settings: dict[str, Setting] | None = None,
    kept: dict[str, tuple[int, ...]] | None = None,
    dropped: tuple[str, ...] = (),
    has_bias: bool = False,
) -> Cost:
    return model_cost(
        BEFORE,
        LAYERS,
        channels,
        settings=settings or {},
        kept=kept or {},
        dropped=dropped,
        has_bias=has_bias,
    )


def test_an_index_stays_where_all_its_units_do() -> None:
    assert [list(one) for one in stays(ROWS, {"heads": (0, 2)}).values()] == [[0, 1, 2, 6, 7, 8]]
    assert list(stays(ROWS, {"heads": (0, 2), "width": (1,)})[0]) == [1, 7]
    assert kept_shape(ROWS, {"heads": (0, 2), "width": (1,)}) == (2, 4)
    assert kept_shape(ROWS, {}) == (9, 4)


def test_what_belongs_to_no_unit_stays() -> None:
    assert list(stays(COLUMNS, {"heads": (1,)})[1]) == [0, 1, 5, 6, 7]
    assert kept_shape(COLUMNS, {"heads": (1,), "other": (0,)}) == (5, 5)


def test_queries_are_scaled_by_the_root_of_the_share_that_stays() -> None:
    rows = tensor("body.qk.weight", (9, 4), 7, HEADS, replace(WIDTH, queries=(0, 1, 2, 3, 4, 5)))
    found = query_scales(rows, {"heads": (1, 2), "width": (0,)})
    # Rows 3 and 6 stay; of the queries in front of the keys a third.
    assert {dim: pytest.approx([(1 / 3) ** 0.5, 1.0]) for dim in (0,)} == found
    assert list(query_scales(rows, {"width": (0, 1, 2)})[0]) == [1.0] * 9
    assert query_scales(rows, {"heads": (1, 2)}) == {}
    assert query_scales(ROWS, {"width": (0,)}) == {}


def test_a_tensor_that_holds_the_first_units_alone() -> None:
    part = tensor("part", (2,), 0, AxisUnits(group="heads", dim=0, role="output", units=(0, 1)))
    assert kept_shape(part, {"heads": (2,)}) == (0,)
    assert kept_shape(part, {"heads": (1, 2)}) == (1,)


def test_a_layer_that_no_group_touches_is_itself() -> None:
    assert slimmed_spec(LAYERS["last"], CHANNELS, {"heads": (1,)}) is LAYERS["last"]
    assert slimmed_spec(LAYERS["body.q"], CHANNELS, {}) is LAYERS["body.q"]
    other = replace(LAYERS["last"], kind="other")
    assert slimmed_spec(other, CHANNELS, {"heads": (1,)}) is other


def test_a_slimmed_layer_by_hand() -> None:
    slimmed = slimmed_spec(LAYERS["body.out"], CHANNELS, {"heads": (1,)})
    assert slimmed.weight_shape == (5, 5)
    assert slimmed.calls == (Call(input_shape=(1, 7, 5), output_shape=(1, 7, 5)),)
    assert (slimmed.macs, slimmed.params) == (7 * 25, 25)


def test_calls_without_a_batch_dimension_and_without_shapes() -> None:
    conv = replace(
        LAYERS["body.out"],
        kind="conv1d",
        weight_shape=(5, 11, 3),
        calls=(Call(input_shape=(11, 8), output_shape=(5, 6)), Call(input_shape=(), output_shape=(5, 6))),
    )
    channels = replace(CHANNELS, tensors={COLUMNS.name: replace(COLUMNS, shape=(5, 11, 3))})
    calls = slimmed_spec(conv, channels, {"heads": (1,)}).calls
    assert calls == (
        Call(input_shape=(5, 8), output_shape=(5, 6)),
        Call(input_shape=(), output_shape=(5, 6)),
    )


def test_a_layer_of_unknown_kind_loses_what_its_own_tensors_do() -> None:
    other = replace(LAYERS["body.q"], kind="other", macs=7 * 36, params=45)
    slimmed = slimmed_spec(other, CHANNELS, {"heads": (0, 2)})
    assert (slimmed.macs, slimmed.params) == (7 * 24, 30)
    assert slimmed.weight_shape == (6, 4)
    biased = replace(CHANNELS, tensors={BIAS.name: BIAS})
    assert slimmed_spec(other, biased, {"heads": (0, 2)}).weight_shape == (9, 4)


def test_tensors_products_and_biases_by_hand() -> None:
    found = cost(kept={"heads": (0, 1), "width": (0,)}, has_bias=True)
    # q: 9 -> 2 rows of 4, and a bias; out: 5 rows of 11 -> 8, and a new bias; the product: 2/3 x 1/3 is left.
    params = 7 * 4 + 7 + 5 * 3 - 5
    assert found.macs == BEFORE.macs - 7 * (7 * 4 + 5 * 3) - (441 - 98)
    assert found.params == BEFORE.params - params
    assert found.bytes == BEFORE.bytes - 2 * params
    without = cost(kept={"heads": (0, 1), "width": (0,)})
    assert (found.macs, found.params - without.params, found.bytes - without.bytes) == (without.macs, 5, 10)


def test_a_group_that_keeps_all_changes_nothing() -> None:
    assert cost(kept={"heads": (0, 1, 2)}, has_bias=True) == BEFORE


def test_buffers_cost_macs_alone() -> None:
    buffer = replace(CHANNELS, tensors={ROWS.name: replace(ROWS, is_parameter=False)}, products=())
    assert cost(buffer, kept={"width": (0,)}) == replace(BEFORE, macs=BEFORE.macs - 7 * 24)


def test_nothing_inside_a_dropped_block_counts_otherwise() -> None:
    rank = Setting(method="weight_svd", form="linear", rank=1)
    found = cost(
        settings={"body.out": rank},
        kept={"heads": (0,), "width": (1,)},
        dropped=("body", "body.out", "body"),
        has_bias=True,
    )
    assert found == BEFORE - Cost(macs=1000, params=100, bytes=200)


def test_a_block_takes_what_has_its_name_and_not_what_starts_alike() -> None:
    inner = replace(CHANNELS, products=())
    found = cost(inner, kept={"heads": (0, 1)}, dropped=("body.out",), has_bias=True)
    assert found.params == BEFORE.params - 5 - (3 * 4 + 3)
    alike = replace(inner, blocks={"bod": BlockSpec(name="bod", macs=1, params=1, bytes=2)})
    assert cost(alike, kept={"heads": (0, 1)}, dropped=("bod",)).params == (
        BEFORE.params - 1 - (3 * 4 + 3) - 5 * 3
    )


def test_consumers_of_unknown_kind_and_those_in_pairs_get_no_bias() -> None:
    lone = replace(CHANNELS, groups={**CHANNELS.groups, "heads": group("heads", 3, "body.out", "last")})
    other = {**LAYERS, "last": replace(LAYERS["last"], kind="other")}
    rank = {"body.out": Setting(method="weight_svd", form="linear", rank=1)}
    kept = {"heads": (0, 1)}
    one, two = (
        model_cost(BEFORE, other, lone, settings=rank, kept=kept, dropped=(), has_bias=has_bias).params
        for has_bias in (True, False)
    )
    # The pair's own bias, once.
    assert one - two == 5
    assert two == BEFORE.params - (3 * 4 + 3) - layer_cost(LAYERS["body.out"]).params + (8 + 5)


@pytest.mark.parametrize(("count", "share"), [(3, 1.0), (1, None), (2, None)])
def test_share_of_a_group(count: int, share: float | None) -> None:
    whole = 7 * (36 + 55) + 441
    expected = (7 * (12 * count + 5 * (2 + 3 * count)) + 147 * count) / whole
    assert group_share(CHANNELS, "heads", count) == pytest.approx(share or expected)


def test_a_group_without_macs_has_no_share() -> None:
    vectors = ChannelMap(groups=CHANNELS.groups, tensors={BIAS.name: BIAS})
    assert group_share(vectors, "heads", 1) is None
