# SPDX-License-Identifier: Apache-2.0
"""Paths of the tensors that are picked."""

import pytest
import torch

from slimrank.forward import OutputChoice, path_within, pick_outputs

_RESULT = (torch.zeros(2), {"a": torch.zeros(2), "b": [torch.zeros(2)]})


@pytest.mark.parametrize(
    ("choice", "paths", "within"),
    [
        (None, ["0", "1.a", "1.b.0"], ["0", "1.a", "1.b.0"]),
        (0, ["0"], [""]),
        (-1, ["1.a", "1.b.0"], ["a", "b.0"]),
        ("1.b", ["1.b.0"], ["0"]),
        ([0, "1.a"], ["0", "1.a"], ["0", "1.a"]),
    ],
)
def test_paths_within_what_was_picked(choice: OutputChoice, paths: list[str], within: list[str]) -> None:
    assert list(pick_outputs(_RESULT, choice)) == paths
    assert [path_within(path, choice) for path in paths] == within
