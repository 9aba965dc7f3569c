# SPDX-License-Identifier: Apache-2.0
"""Format numbers: what is read, and how others are refused."""

import pytest

from slimrank import FileError, PlanError
from slimrank.files import Json, check_format, spelled_number


@pytest.mark.parametrize(("found", "reads"), [(3, 3), (1, {1, 2}), (2, [2, 1])])
def test_a_known_number_comes_back(found: int, reads: int | set[int] | list[int]) -> None:
    assert check_format(found, reads, where="a.json", advice="") == found


@pytest.mark.parametrize("found", [None, True, "1", 1.0, 4, -1, [1]])
def test_others_are_refused(found: Json) -> None:
    with pytest.raises(FileError) as caught:
        check_format(found, {2, 1}, where="a.json", advice="save it again")
    assert str(caught.value) == f"a.json has format {found!r}, this version reads 1, 2; save it again"


def test_the_refusal_is_of_the_kind_that_the_caller_wants() -> None:
    with pytest.raises(PlanError, match=r"plan file p has format 7, this version reads 1; install a newer"):
        check_format(7, 1, where="plan file p", advice="install a newer slimrank", error=PlanError)


@pytest.mark.parametrize(
    ("found", "expected"), [("3", 3), ("x", "x"), ("", ""), ("-1", "-1"), (2, 2), (None, None)]
)
def test_numbers_that_are_spelled_out(found: Json, expected: Json) -> None:
    assert spelled_number(found) == expected
