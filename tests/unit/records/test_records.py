# SPDX-License-Identifier: Apache-2.0
from dataclasses import FrozenInstanceError

import pytest

from slimrank.records import METRICS, Cost, Note, OutputAgreement, Summary
from specs import other


def test_costs_add_and_subtract_metric_by_metric() -> None:
    a, b = Cost(macs=10, params=4, bytes=16), Cost(macs=3, params=1, bytes=4)
    assert a + b == Cost(macs=13, params=5, bytes=20)
    assert a - b == Cost(macs=7, params=3, bytes=12)


def test_metric_gives_the_number_of_that_name() -> None:
    cost = Cost(macs=1, params=2, bytes=3)
    assert [cost.metric(name) for name in METRICS] == [1, 2, 3]


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Cost(macs=1, params=2, bytes=3).macs = 4  # type: ignore[misc]


@pytest.mark.parametrize(("shape", "kernel"), [((8, 4), ()), ((8, 4, 3), (3,)), ((8, 4, 3, 5), (3, 5))])
def test_kernel_is_what_follows_the_channels(shape: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    assert other("x", "X", shape).kernel == kernel


def test_a_note_reads_as_place_and_remark() -> None:
    assert str(Note(where="conv1", text="left alone")) == "conv1: left alone"


def test_an_agreement_does_not_print_thousands_of_figures() -> None:
    output = OutputAgreement(
        family="gaussian",
        shape=(64, 64),
        positions=1,
        divergence=0.1,
        lost=0.1,
        cosine=0.9,
        relative_error=0.3,
        by_element=(0.3,) * 4096,
        elements=(64, 64),
    )
    assert "relative_error=0.3, elements=(64, 64))" in repr(output)
    assert len(repr(output)) < 300


def test_summaries_share_no_default() -> None:
    zero = Cost(macs=0, params=0, bytes=0)
    one, two = (
        Summary(
            title="",
            before=zero,
            after=zero,
            start=zero,
            layers=(),
            divergence=None,
            damage=None,
            unit="",
            damage_unit="",
        )
        for _ in range(2)
    )
    assert one.seconds is not two.seconds
