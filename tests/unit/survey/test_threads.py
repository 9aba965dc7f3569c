# SPDX-License-Identifier: Apache-2.0
"""Other work on the machine is told where it slows a study down by more than its share."""

import pytest

import seams


@pytest.mark.parametrize(
    ("load", "threads", "policy", "is_told"),
    [
        (2.1, 2, "", True),
        (1.2, 2, "active", True),
        (0.3, 2, "", False),
        (2.1, 1, "", False),
        (2.1, 2, "passive", False),
    ],
)
def test_spinning_threads_are_told_on_a_busy_machine(
    load: float, threads: int, policy: str, is_told: bool
) -> None:
    text = seams.crowded_text(load=load, cores=2, threads=threads, policy=policy)
    assert (text is not None) == is_told
    if text is not None:
        assert f"torch's {threads} threads spin while they wait" in text
        assert "OMP_WAIT_POLICY=PASSIVE" in text
