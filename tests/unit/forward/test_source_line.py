# SPDX-License-Identifier: Apache-2.0
"""The line of the user's code in an error, where there is one."""

from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank
from slimrank.forward import error_with_source_line, is_users_code

_PACKAGE = Path(slimrank.__file__).parent


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (__file__, True),
        (str(_PACKAGE / "demo" / "_net.py"), True),
        (str(_PACKAGE / "_study.py"), False),
        (str(_PACKAGE / "channels" / "trial" / "_compare.py"), False),
        (str(Path(torch.__file__).parent / "nn" / "modules" / "linear.py"), False),
        ("<string>", False),
    ],
)
def test_users_code_is_neither_torchs_nor_of_the_package(file: str, expected: bool) -> None:
    assert is_users_code(file) is expected


def test_an_error_inside_torch_names_the_line_that_called_it() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError) as caught:
        layer(torch.ones(1, 3))  # the user's line
    text = error_with_source_line(caught.value)
    assert text.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    line = caught.traceback[0].lineno + 1
    assert text.endswith(f" at {Path(__file__).name}:{line} `layer(torch.ones(1, 3))  # the user's line`")


def test_only_the_first_line_of_a_message_is_told() -> None:
    assert error_with_source_line(ValueError("first\nsecond")) == "ValueError: first"
