# SPDX-License-Identifier: Apache-2.0
from typing import get_args

from slimrank.methods import METHODS, TABLE
from slimrank.records import PRUNING, Method, replaces_groups


def test_one_method_replaces_groups_and_the_table_says_so() -> None:
    assert get_args(Method) == METHODS
    assert [method for method in METHODS if replaces_groups(method)] == [PRUNING]
    assert [row.name for row in TABLE.values() if row.replaces == "group"] == [PRUNING]
    # What replaces a layer says how it is built; what replaces a group has nothing to build.
    assert all((row.functions is None) == (row.replaces == "group") for row in TABLE.values())
    assert all(bool(row.forms) == (row.replaces == "layer") for row in TABLE.values())
