# SPDX-License-Identifier: Apache-2.0
"""What each effort measures of networks of some depth."""

import pytest

from seams import EFFORT_ROWS
from slimrank.records import Effort


@pytest.mark.parametrize(
    ("effort", "few", "some", "many"), [("fast", 1, 1, 1), ("normal", 4, 2, 1), ("thorough", 4, 4, 4)]
)
def test_the_deeper_a_network_the_fewer_costs_each_layer_is_measured_at(
    effort: Effort, few: int, some: int, many: int
) -> None:
    row = EFFORT_ROWS[effort]
    assert [len(row.ratios_for(n)) for n in (1, 10, 11, 100, 101, 500)] == [few, few, some, some, many, many]
