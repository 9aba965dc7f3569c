# SPDX-License-Identifier: Apache-2.0
import pytest

from seams import nearest

STAGES = (
    "stem.0",
    "stage1.0.conv1",
    "stage1.1.conv1",
    "stage10.conv",
    "stage3.1.conv1",
    "stage3.1.conv2",
    "head",
)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        # What is in a module comes before what only begins alike, and both before what looks alike.
        ("stage1", "did you mean 'stage1.0.conv1' or 'stage1.1.conv1' or 'stage10.conv'?"),
        ("stage3.1", "did you mean 'stage3.1.conv1' or 'stage3.1.conv2' or 'stage1.1.conv1'?"),
        ("st", "did you mean 'stem.0' or 'stage1.0.conv1' or 'stage1.1.conv1'?"),
        ("haed", "did you mean 'head'?"),
    ],
)
def test_names_that_begin_with_what_was_typed_come_first(typed: str, told: str) -> None:
    assert nearest(typed, STAGES) == told


@pytest.mark.parametrize("typed", ["", "xyz"])
def test_without_a_close_name_the_known_are_listed(typed: str) -> None:
    assert nearest(typed, ("a", "b")) == "known are 'a', 'b'"
