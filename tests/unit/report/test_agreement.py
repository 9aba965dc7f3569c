# SPDX-License-Identifier: Apache-2.0
"""Agreements in one line, in a table, element by element."""

import math
from dataclasses import replace

import pytest

from seams import agreement_lines, divergence_text, element_lists, has_elements, output_table, output_unit
from slimrank.calibrate import Likelihood, OutputModel
from slimrank.records import Agreement, OutputAgreement, Summary
from slimrank.report import agreement_text
from specs import BOX, TOKENS

LABEL = OutputAgreement(
    family="categorical", shape=(10,), positions=1, divergence=0.0123, lost=0.01, top1=0.99999
)
TAGS = replace(BOX, family="bernoulli", shape=(6,), positions=6, divergence=0.3, by_element=(), elements=())


def _agreement(*outputs: OutputAgreement, divergence: float = 2.48) -> Agreement:
    names = ("logits", "box", "label")
    paths = names[: len(outputs)] if len(outputs) > 1 else ("",)
    return Agreement(dict(zip(paths, outputs, strict=True)), divergence)


@pytest.mark.parametrize(
    ("outputs", "text", "brief"),
    [
        ((TOKENS,), "98.91 % same top-1", "agreement 98.9 % top-1"),
        ((BOX,), "cosine 0.9981, relative error 0.064", "cosine 0.998, relative error 0.064"),
        (
            (TOKENS, BOX),
            "98.91 % same top-1; cosine 0.9981, relative error 0.064",
            "agreement 98.9 % top-1, cosine 0.998, relative error 0.064",
        ),
        # Not all of them are the same, however few are not.
        ((LABEL,), "99.99 % same top-1", "agreement 99.9 % top-1"),
        ((replace(LABEL, top1=1.0),), "100.00 % same top-1", "agreement 100.0 % top-1"),
        (
            (replace(BOX, cosine=0.0, relative_error=math.inf),),
            "cosine 0.0000, relative error inf",
            "cosine 0.000, relative error inf",
        ),
    ],
)
def test_an_agreement_in_one_line(outputs: tuple[OutputAgreement, ...], text: str, brief: str) -> None:
    agreement = _agreement(*outputs)
    assert agreement_text(agreement) == text
    assert agreement_text(agreement, brief=True) == brief


@pytest.mark.parametrize(
    ("outputs", "divergence", "unit", "text"),
    [
        ((TOKENS,), 2.48, "nats per sample", "2.48 nats per sample, 0.62 per position (4)"),
        # The weight of an output counts in the divergence, so also in that of a position.
        ((TOKENS,), 4.96, "nats per sample", "4.96 nats per sample, 1.2 per position (4)"),
        ((TAGS,), 0.3, "nats per sample", "0.300 nats per sample, 0.050 per position (6)"),
        ((LABEL,), 0.0123, "nats per sample", "0.0123 nats per sample"),
        ((BOX,), 0.0041, "relative squared error", "0.00410 relative squared error"),
        ((TOKENS, BOX), 2.48, "nats per sample", "2.48 nats per sample"),
        # A loss of the caller's is no sum over positions.
        ((TOKENS,), 2.48, "loss per sample", "2.48 loss per sample"),
        ((TOKENS,), math.inf, "nats per sample", "inf nats per sample"),
        ((), 2.48, "nats per sample", "2.48 nats per sample"),
        ((), None, "", "not measured"),
    ],
)
def test_a_divergence_is_told_per_position_where_there_are_several(
    summary: Summary,
    outputs: tuple[OutputAgreement, ...],
    divergence: float | None,
    unit: str,
    text: str,
) -> None:
    agreement = _agreement(*outputs) if outputs else None
    assert divergence_text(replace(summary, divergence=divergence, unit=unit, agreement=agreement)) == text


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (TOKENS, "98.91 % same top-1, lowest 91.2 % at position 2"),
        (BOX, "cosine 0.9981, relative error 0.064, largest error 0.12 at element [3]"),
        (LABEL, "99.99 % same top-1"),
        # Equal everywhere: none is the worst.
        (replace(TOKENS, top1=1.0, by_element=(1.0,) * 4), "100.00 % same top-1"),
        (
            replace(TOKENS, shape=(3, 2, 2), elements=(2, 2), by_element=(1.0, 1.0, 0.5, 1.0)),
            "98.91 % same top-1, lowest 50.0 % at position [1, 0]",
        ),
        (
            replace(BOX, shape=(4, 8, 8)),
            "cosine 0.9981, relative error 0.064, largest error 0.12 at channel 3",
        ),
        (
            replace(BOX, by_element=(0.1, math.inf), elements=(2,)),
            "cosine 0.9981, relative error 0.064, largest error inf at element [1]",
        ),
    ],
)
def test_of_one_output_the_worst_element_is_told(
    summary: Summary, output: OutputAgreement, text: str
) -> None:
    assert agreement_lines(replace(summary, agreement=_agreement(output))) == [("Held-out agreement", text)]


def test_of_several_outputs_means_are_told(summary: Summary) -> None:
    lines = agreement_lines(replace(summary, agreement=_agreement(TOKENS, BOX, LABEL)))
    assert lines == [
        (
            "Held-out agreement, mean over 3 outputs",
            "99.45 % same top-1; cosine 0.9981, relative error 0.064",
        )
    ]
    assert agreement_lines(summary) == []


def test_a_table_of_outputs_has_the_columns_that_it_needs() -> None:
    columns, rows = output_table(_agreement(TOKENS, BOX, LABEL))
    assert columns == (
        *("output", "shape", "read as", ">divergence", ">per position", ">same top-1"),
        *(">cosine", ">relative error", "worst"),
    )
    assert rows == [
        (
            *("logits", "4x50", "categorical", "2.48 nats", "0.62 (4)", "98.91 %", "-", "-"),
            "91.2 % at position 2",
        ),
        (
            *("box", "4", "gaussian", "0.00410 relative", "-", "-", "0.9981", "0.064"),
            "0.12 at element [3]",
        ),
        ("label", "10", "categorical", "0.0123 nats", "-", "99.99 %", "-", "-", "-"),
    ]
    columns, rows = output_table(_agreement(LABEL))
    assert columns == ("output", "shape", "read as", ">divergence", ">same top-1")
    assert rows == [("(output)", "10", "categorical", "0.0123 nats", "99.99 %")]
    # What is not finite has no share for each position.
    broken = replace(TOKENS, divergence=math.inf)
    assert output_table(_agreement(broken))[1][0][3:5] == ("inf nats", "98.91 %")


def test_few_elements_are_listed_in_order_and_of_many_the_worst() -> None:
    agreement = _agreement(TOKENS, BOX, LABEL)
    assert list(element_lists(agreement, all_up_to=4, most=2)) == [
        (
            "logits: same top-1 at each position",
            [("0", "100.0 %"), ("1", "99.0 %"), ("2", "91.2 %"), ("3", "100.0 %")],
        ),
        (
            "box: relative error of each element",
            [("[0]", "0.010"), ("[1]", "0.020"), ("[2]", "0.030"), ("[3]", "0.12")],
        ),
    ]
    assert list(element_lists(agreement, all_up_to=3, most=2)) == [
        (
            "logits: same top-1 at the 2 positions of 4 that agree least",
            [("2", "91.2 %"), ("1", "99.0 %")],
        ),
        (
            "box: relative error of the 2 elements of 4 that agree least",
            [("[3]", "0.12"), ("[2]", "0.030")],
        ),
    ]
    grid = replace(TOKENS, shape=(9, 2, 3), elements=(2, 3), by_element=(1.0, 1.0, 1.0, 1.0, 0.5, 1.0))
    ((_, listed),) = element_lists(_agreement(grid), all_up_to=2, most=1)
    assert listed == [("[1, 1]", "50.0 %")]


def test_whether_there_are_elements() -> None:
    assert has_elements(_agreement(LABEL, BOX))
    assert not has_elements(_agreement(LABEL))


@pytest.mark.parametrize("output", [TOKENS, TAGS, BOX], ids=lambda output: output.family)
def test_units_are_those_of_the_study(output: OutputAgreement) -> None:
    """Report and study are rooms apart, so each has its own words for it."""
    model = OutputModel(family=output.family, dim=-1, is_probability=False, scale=None)
    assert output_unit(output) == Likelihood(outputs={"": model}).unit
