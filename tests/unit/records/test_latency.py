# SPDX-License-Identifier: Apache-2.0
"""``records/_latency.py``: times as formulas."""

from dataclasses import replace

import numpy as np
import pytest

from slimrank import SlimrankError
from slimrank.records import DenseTime, LayerTimes, NetworkTimes, PairTime, Steps

DENSE = DenseTime(fixed=100.0, per_row=2.0, per_column=3.0, per_product=0.5)
PAIR = PairTime(fixed=50.0, per_rank=7.0, per_row=0.25, per_column=0.125, any_row=0.5, any_column=2.0)
# One layer of 10 outputs and 20 inputs, one group of 10 units, one block.
TIMES = NetworkTimes(
    layers={"conv": LayerTimes(dense=DENSE, pairs={"v_h": PAIR})},
    groups={"conv": 4.0},
    blocks={"block": 30.0},
    fixed=1000.0,
    before=1000.0 + (100 + 20 + 60 + 100) + 40 + 30,
    reference=2000.0,
    step=8,
)


def test_a_dense_layer_takes_what_the_formula_says_at_every_size() -> None:
    rows, columns = np.array([[8], [16]]), np.array([4, 12, 20])
    expected = [[100 + 2 * r + 3 * c + 0.5 * r * c for c in (4, 12, 20)] for r in (8, 16)]
    np.testing.assert_array_equal(DENSE.time(rows, columns), expected)


def test_a_pair_takes_what_the_formula_says_at_every_rank_and_size() -> None:
    ranks = np.array([1, 8, 16])
    expected = [50 + 0.5 * 10 + 2.0 * 20 + r * (7 + 0.25 * 10 + 0.125 * 20) for r in (1, 8, 16)]
    np.testing.assert_array_equal(PAIR.time(ranks, 10, 20), expected)
    assert float(PAIR.time(8, 16, 8)) == 50 + 8 + 16 + 8 * (7 + 4 + 1)


def test_scaled_times_keep_what_is_fixed_and_what_ratios_are_shares_of() -> None:
    scaled = TIMES.scaled(1.5)
    assert scaled.fixed == 1000.0
    assert scaled.reference == 2000.0
    assert scaled.step == 8
    assert scaled.before == 1000.0 + 1.5 * (280 + 40 + 30)
    assert scaled.groups == {"conv": 6.0}
    assert scaled.blocks == {"block": 45.0}
    layer = scaled.layers["conv"]
    assert float(layer.dense.time(10, 20)) == 1.5 * float(DENSE.time(10, 20))
    assert float(layer.pairs["v_h"].time(8, 10, 20)) == 1.5 * float(PAIR.time(8, 10, 20))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "4", True])
@pytest.mark.parametrize("name", ["fixed", "per_row", "per_column"])
def test_times_that_cannot_be_are_refused_by_name(name: str, wrong: float) -> None:
    with pytest.raises(SlimrankError, match=rf"DenseTime\.{name} is .*measure anew"):
        replace(DENSE, **{name: wrong})
    with pytest.raises(SlimrankError, match=rf"PairTime\.{name} is .*measure anew"):
        replace(PAIR, **{name: wrong})


def test_a_network_without_a_time_is_refused() -> None:
    with pytest.raises(SlimrankError, match=r"before is 0\.0; give ns, above 0"):
        replace(TIMES, before=0.0)
    with pytest.raises(SlimrankError, match="reference is nan"):
        replace(TIMES, reference=float("nan"))
    with pytest.raises(SlimrankError, match=r"groups\['conv'\] is -2\.0"):
        replace(TIMES, groups={"conv": -2.0})
    with pytest.raises(SlimrankError, match=r"blocks\['block'\] is -2\.0"):
        replace(TIMES, blocks={"block": -2.0})


@pytest.mark.parametrize("name", ["step", "column_step"])
@pytest.mark.parametrize("step", [0, -8, 1.5, True])
def test_a_step_is_a_whole_number(name: str, step: int) -> None:
    with pytest.raises(SlimrankError, match=rf"times: {name} is .*at least 1, e\.g\. 8"):
        replace(TIMES, **{name: step})


def test_what_is_read_counts_in_the_steps_of_what_is_written_unless_told() -> None:
    assert TIMES.steps == Steps(rows=8, columns=8)
    assert replace(TIMES, column_step=4).steps == Steps(rows=8, columns=4)
