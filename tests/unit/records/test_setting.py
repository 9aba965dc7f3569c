# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import numpy as np
import pytest

from slimrank.methods import TABLE
from slimrank.records import METHODS, PRUNING, Curve, Method, Setting, replaces_groups


def test_one_method_replaces_groups_and_the_table_says_so() -> None:
    assert get_args(Method) == tuple(TABLE)
    assert [method for method in METHODS if replaces_groups(method)] == [PRUNING]
    assert [row.name for row in TABLE.values() if row.replaces == "group"] == [PRUNING]
    # What replaces a layer says how it is built; what replaces a group has nothing to build.
    assert all((row.functions is None) == (row.replaces == "group") for row in TABLE.values())
    assert all(bool(row.forms) == (row.replaces == "layer") for row in TABLE.values())


def test_a_setting_of_one_rank_is_written_as_ever() -> None:
    one = Setting(method="weight_svd", form="kxk_1x1", rank=8)
    # Plan files and runs hold checksums of this text.
    assert repr(one) == "Setting(method='weight_svd', form='kxk_1x1', rank=8)"
    assert (one.ranks, one.rank_text) == ((8,), "8")
    both = Setting(method="tucker2", form="1x1_kxk_1x1", rank=8, rank_in=6)
    assert repr(both) == "Setting(method='tucker2', form='1x1_kxk_1x1', rank=8, rank_in=6)"
    assert (both.ranks, both.rank_text) == ((6, 8), "6, 8")


@pytest.mark.parametrize(
    ("rank_in", "rank", "damage"),
    [(2, 1, 4.0), (2, 3, 3.0), (5, 6, 1.0), (3, 6, 3.0), (9, 9, 1.0), (1, 9, None), (5, 4, 3.0)],
)
def test_a_curve_bounds_the_damage_of_ranks_beside_its_path(
    rank_in: int, rank: int, damage: float | None
) -> None:
    ranks, ranks_in = np.array([1, 3, 6]), np.array([2, 2, 5])
    falling = np.array([4.0, 3.0, 1.0])
    curve = Curve(
        layer="a",
        method="tucker2",
        form="1x1_kxk_1x1",
        ranks=ranks,
        macs=ranks,
        params=ranks,
        bytes=ranks,
        error=falling,
        damage=falling,
        ranks_in=ranks_in,
    )
    setting = Setting(method="tucker2", form="1x1_kxk_1x1", rank=rank, rank_in=rank_in)
    assert curve.damage_of(setting) == damage
    assert curve.setting(3).ranks == (2, 3)
