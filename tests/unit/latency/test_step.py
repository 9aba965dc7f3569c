# SPDX-License-Identifier: Apache-2.0
"""The step of the hardware, from times by width."""

import pytest

import seams
from slimrank.deploy import NodeTime

_WIDTHS = (12, 16, 20, 24, 28, 32, 36, 40, 44, 48)


@pytest.mark.parametrize("step", [16, 8, 4])
def test_the_stairs_tell_their_step(step: int) -> None:
    times = {width: 100.0 + 50.0 * -(-width // step) * step for width in _WIDTHS}
    assert seams.step_told(times) == step


def test_what_is_written_and_what_is_read_have_steps_of_their_own() -> None:
    """As in int8: kernels write 16 channels at a time, and read each by itself."""

    def nodes(kind: str, step: int) -> list[NodeTime]:
        return [
            NodeTime(
                name=f"{kind}{index}",
                kind="Conv",
                module=f"{kind}.{index}",
                sources=(),
                nanoseconds=100.0 + 50.0 * -(-width // step) * step,
            )
            for index, width in enumerate(_WIDTHS)
        ]

    makers = [*nodes("makers", 16), *nodes("", 16)]
    assert seams.steps_of_nodes([*nodes("rows", 16), *nodes("columns", 4), *makers]) == (16, 4)
    assert seams.steps_of_nodes([*nodes("rows", 8), *nodes("columns", 16), *makers]) == (8, 8)


def test_one_width_that_was_disturbed_does_not_hide_the_stairs() -> None:
    times = {width: 50.0 * -(-width // 8) * 8 for width in _WIDTHS}
    times[24] *= 1.5
    assert seams.step_told(times) == 8
