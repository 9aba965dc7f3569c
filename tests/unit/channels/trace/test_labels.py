# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from seams import ANY, Axis, Labels


def why() -> str:
    return "because"


@pytest.fixture
def labels() -> Labels:
    return Labels()


def same(labels: Labels, a: Axis, b: Axis) -> bool:
    return bool((labels.canonical(a) == labels.canonical(b)).all())


def reasons(labels: Labels, axis: Axis) -> set[str]:
    found = [labels.reason_of(int(part)) for part in labels.all_parts(axis)]
    return {reason[1] for reason in found if reason is not None}


def test_a_dimension_split_twice_in_one_way_gives_the_same_labels(labels: Labels) -> None:
    channels = labels.fresh(12, "w")
    heads, width = labels.split(channels, 3, 4, why)
    again = labels.split(channels, 3, 4, why)
    assert same(labels, heads, again[0])
    assert same(labels, width, again[1])
    assert labels.parts(int(channels[5])) == {int(heads[1]), int(width[1])}


def test_merged_dimensions_are_the_split_one(labels: Labels) -> None:
    channels = labels.fresh(12, "w")
    heads, width = labels.split(channels, 3, 4, why)
    assert same(labels, labels.merge([(heads, 3), (width, 4)], why), channels)
    # Transposed they are another order of the same.
    turned = labels.merge([(width, 4), (heads, 3)], why)
    assert_array_equal(labels.canonical(turned), labels.canonical(channels).reshape(3, 4).T.reshape(-1))


def test_repeated_labels_split_back(labels: Labels) -> None:
    channels = labels.fresh(4, "w")
    flat = labels.merge([(channels, 4), (None, 9)], why)
    assert_array_equal(flat, np.repeat(channels, 9))
    back, space = labels.split(flat, 4, 9, why)
    assert space is None
    assert same(labels, back, channels)
    space, back = labels.split(labels.merge([(None, 9), (channels, 4)], why), 9, 4, why)
    assert space is None
    assert same(labels, back, channels)


@pytest.mark.parametrize(("outer", "inner"), [(2, 12), (8, 3)])
def test_a_finer_split_refines_a_coarser_one(labels: Labels, outer: int, inner: int) -> None:
    channels = labels.fresh(24, "w")
    labels.split(channels, 4, 6, why)
    rows, columns = labels.split(channels, outer, inner, why)
    assert same(labels, labels.merge([(rows, outer), (columns, inner)], why), channels)
    assert not reasons(labels, channels)


def test_of_splits_that_do_not_fit_into_each_other_the_small_parts_stay_whole(labels: Labels) -> None:
    channels = labels.fresh(24, "w")
    heads, width = labels.split(channels, 4, 6, why)
    labels.split(channels, 3, 8, why)
    assert reasons(labels, heads) == {"laid out in two ways: because"}
    # Six places in a row of the one are places 0 to 5, 6 to 11, ... of rows of eight: two classes are left.
    assert np.unique(labels.canonical(width)).size == 2
    assert not reasons(labels, width)


def test_channel_shuffles_one_after_the_other_couple_halves_of_halves(labels: Labels) -> None:
    channels = labels.fresh(24, "w")
    for _ in range(2):
        outer, inner = labels.split(channels, 2, 12, why)
        mixed = labels.merge([(inner, 12), (outer, 2)], why)
        assert mixed is not None
        labels.couple(mixed, 2, why)
        channels = np.concatenate([mixed[:12], labels.fresh(12, "b")])
    assert np.unique(labels.canonical(mixed)).size == 6
    assert not labels.is_frozen(labels.canonical(mixed)).any()


def test_products_are_one_part_by_part(labels: Labels) -> None:
    a, b = labels.fresh(12, "a"), labels.fresh(12, "b")
    heads_a, width_a = labels.split(a, 3, 4, why)
    heads_b, width_b = labels.split(b, 3, 4, why)
    labels.unify(a, b, why)
    assert same(labels, heads_a, heads_b)
    assert same(labels, width_a, width_b)
    assert not same(labels, heads_a[:1], width_a[:1])


def test_a_plain_dimension_takes_over_the_product(labels: Labels) -> None:
    a, b = labels.fresh(12, "a"), labels.fresh(12, "b")
    heads, _ = labels.split(a, 3, 4, why)
    labels.unify(a, b, why)
    assert same(labels, labels.split(b, 3, 4, why)[0], heads)


def test_heads_that_share_keys_are_one(labels: Labels) -> None:
    queries, keys = labels.fresh(6, "q"), labels.fresh(3, "k")
    labels.unify(queries, labels.merge([(keys, 3), (ANY, 2)], why), why)
    assert labels.canonical(queries).tolist() == np.repeat(labels.canonical(keys), 2).tolist()


def test_what_never_goes_freezes_what_meets_it(labels: Labels) -> None:
    a, b = labels.fresh(3, "a"), labels.fresh(3, "b")
    labels.unify(a, np.array([b[0], 0, b[2]]), why)
    assert labels.is_frozen(labels.canonical(a)).tolist() == [False, True, False]
    labels.unify(None, b, lambda: "later")
    outside = "with what is no channel: an input of the model, a constant or a position"
    assert reasons(labels, a) == {f"because, {outside}", f"later, {outside}"}


def test_the_first_reason_stays(labels: Labels) -> None:
    a, b = labels.fresh(3, "a"), labels.fresh(3, "b")
    labels.freeze(b, lambda: "first")
    labels.freeze(a, lambda: "second")
    labels.unify(a, b, why)
    labels.freeze(a, lambda: "third")
    assert reasons(labels, a) == {"first"}


def test_freezing_a_product_freezes_its_parts_but_not_the_other_way_round(labels: Labels) -> None:
    channels = labels.fresh(12, "w")
    heads, width = labels.split(channels, 3, 4, why)
    labels.freeze(width, why)
    assert not reasons(labels, heads)
    labels.freeze(channels[:1], why)
    assert labels.is_frozen(labels.canonical(heads)).tolist() == [True, False, False]


def test_a_frozen_dimension_passes_its_reason_to_its_parts(labels: Labels) -> None:
    channels = labels.fresh(12, "w")
    labels.freeze(channels, why)
    heads, width = labels.split(channels, 3, 4, lambda: "never asked")
    assert reasons(labels, heads) == reasons(labels, width) == {"because"}


def test_a_partly_frozen_dimension_freezes_the_parts_of_that_index(labels: Labels) -> None:
    channels = labels.fresh(6, "w")
    labels.freeze(channels[:1], why)
    heads, width = labels.split(channels, 2, 3, why)
    assert labels.is_frozen(heads).tolist() == [True, False]
    assert labels.is_frozen(width).tolist() == [True, False, False]


def test_equal_sections_are_coupled(labels: Labels) -> None:
    channels = labels.fresh(6, "w")
    labels.couple(channels, 2, why)
    assert labels.canonical(channels)[:3].tolist() == labels.canonical(channels)[3:].tolist()


def test_coupled_sections_of_products_couple_the_outer_part(labels: Labels) -> None:
    outer, inner = labels.fresh(4, "a"), labels.fresh(3, "b")
    labels.couple(labels.merge([(outer, 4), (inner, 3)], why), 2, why)
    assert labels.canonical(outer)[:2].tolist() == labels.canonical(outer)[2:].tolist()
    assert np.unique(labels.canonical(inner)).size == 3


def test_a_part_left_over_may_not_go_alone(labels: Labels) -> None:
    outer, inner = labels.fresh(4, "a"), labels.fresh(3, "b")
    labels.unify(labels.merge([(outer, 4), (inner, 3)], why), np.repeat(outer, 3), why)
    assert not reasons(labels, outer)
    assert reasons(labels, inner) == {"laid out in two ways: because"}


def test_too_many_products_freeze(labels: Labels) -> None:
    merged = labels.merge([(labels.fresh(500, "a"), 500), (labels.fresh(500, "b"), 500)], why)
    assert merged is not None
    assert merged.size == 250_000
    assert reasons(labels, labels.fresh(1, "c")) == set()
    assert np.unique(labels.canonical(merged)).size == 500


def test_expanded_dimensions_ask_nothing(labels: Labels) -> None:
    channels = labels.fresh(3, "w")
    assert labels.unify(ANY, channels, why) is channels
    assert labels.unify(channels, ANY, why) is channels
    assert labels.merge([(ANY, 2), (ANY, 3)], why) is ANY
    assert labels.merge([(ANY, 2), (None, 3)], why) is None
    assert not reasons(labels, channels)
