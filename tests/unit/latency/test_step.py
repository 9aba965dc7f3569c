# SPDX-License-Identifier: Apache-2.0
"""The step of the hardware, from times by width."""

import pytest

import seams

_WIDTHS = (12, 16, 20, 24, 28, 32, 36, 40, 44, 48)


@pytest.mark.parametrize("step", [16, 8, 4])
def test_the_stairs_tell_their_step(step: int) -> None:
    times = {width: 100.0 + 50.0 * -(-width // step) * step for width in _WIDTHS}
    assert seams.step_told(times) == step


def test_one_width_that_was_disturbed_does_not_hide_the_stairs() -> None:
    times = {width: 50.0 * -(-width // 8) * 8 for width in _WIDTHS}
    times[24] *= 1.5
    assert seams.step_told(times) == 8
