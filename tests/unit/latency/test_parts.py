# SPDX-License-Identifier: Apache-2.0
"""Nodes of a file to layers, groups and blocks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.deploy import NodeTime, TimedFile
from slimrank.plan import Step, step_of
from slimrank.records import Setting


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(self.one(x).relu())


@pytest.fixture(scope="module")
def study() -> sr.Study:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 4)).eval()
    return sr.study(model, [torch.randn(8, 8)], data_free=True, effort="fast", progress=False)


def node(module: str, time: float, *sources: str) -> NodeTime:
    return NodeTime(name=module, kind="Op", module=module, sources=sources, nanoseconds=time)


def test_every_node_is_somewhere(study: sr.Study) -> None:
    assert set(study.structure.channels.blocks) == {"1", "2"}
    pair = Setting(method="weight_svd", form="linear", rank=4)
    variant = step_of(study.structure, {"1.two": pair})
    nodes = [
        node("0", 1.0),
        node("1.one", 2.0),
        # A bias is a node of its own in some runtimes.
        node("1.one", 0.5),
        node("1", 4.0, "1.one"),
        node("1.two.0", 8.0),
        node("1.two.1", 16.0),
        node("1", 32.0, "1.two.1", "0"),
        node("2.one", 64.0),
        node("2", 128.0, "2.one"),
        node("", 256.0, "3"),
        node("", 512.0),
    ]
    parts = seams.parts_of(nodes, variant)
    assert parts.factors == {"0": (1.0,), "1.one": (2.5,), "1.two": (8.0, 16.0), "2.one": (64.0,)}
    groups = {place: time for place, time in parts.others.items() if place.block == "1"}
    assert groups == {
        seams.Place(block="1", groups=("1.one",)): 4.0,
        # The sum reads channels that other blocks read too: it goes with the block alone.
        seams.Place(block="1", groups=()): 32.0,
    }
    assert parts.others[seams.Place(block="2", groups=("2.one",))] == 128.0
    assert parts.total == 1023.5 + 0.0
    assert parts.scaled(2.0).total == 2 * parts.total


def test_what_is_beside_a_layer_is_in_none_of_its_factors(study: sr.Study) -> None:
    pair = Setting(method="weight_svd", form="linear", rank=4)
    variant = step_of(study.structure, {"1.one": pair})
    nodes = [
        node("1.one.0", 1.0),
        node("1.one.1", 2.0),
        replace(node("1.one.1", 4.0, "1.one.1"), is_beside=True),
        replace(node("2.two", 8.0, "2.two"), is_beside=True),
    ]
    parts = seams.parts_of(nodes, variant)
    assert parts.factors == {"1.one": (1.0, 2.0)}
    assert parts.others == {
        seams.Place(block="1", groups=("1.one",)): 4.0,
        seams.Place(block="2", groups=()): 8.0,
    }


def test_a_plan_without_changes_has_layers_in_one_piece(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    parts = seams.parts_of([node("1.two", 3.0), node("3", 4.0)], untouched)
    assert parts.factors == {"1.two": (3.0,), "3": (4.0,)}


def test_a_profile_that_other_work_stretched_is_taken_again(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    # A run takes 10 ns. The first two profiles were disturbed, each in another node.
    profiles = [
        [node("0", 90.0), node("3", 4.0), node("", 1.0)],
        [node("0", 5.0), node("3", 40.0), node("", 0.5)],
        [node("0", 1.0), node("3", 1.0), node("", 0.1)],
    ]
    taken: list[int] = []

    def nodes() -> tuple[NodeTime, ...]:
        taken.append(len(taken))
        return tuple(profiles[len(taken) - 1])

    file = TimedFile(run=lambda: None, batch=1, nodes=nodes)
    parts = seams.profiled_parts(file, untouched, 10e-6, 4)
    assert len(taken) == 2
    assert parts.factors == {"0": (5.0,), "3": (4.0,)}
    assert parts.others == {seams.Place(block="", groups=()): 0.5}


def test_a_part_that_one_profile_does_not_have_has_the_time_of_the_other(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    one = seams.parts_of([node("0", 5.0), node("3", 4.0), node("", 1.0)], untouched)
    other = seams.parts_of([node("0", 6.0), node("1.two", 2.0)], untouched)
    both = one.least(other)
    assert both.factors == {"0": (5.0,), "1.two": (2.0,), "3": (4.0,)}
    assert both.others == {seams.Place(block="", groups=()): 1.0}
    assert other.least(one) == both


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (140_000.0, (100_000.0, 40_000.0, 5_000.0)),
        # 2 us for each of five nodes, of which two parts have two.
        (135_000.0, (98_000.0, 36_000.0, 1_250.0)),
        # Other work, beyond what a profile takes.
        (50_000.0, (97_500.0, 35_000.0, 1_250.0)),
    ],
)
def test_a_profile_takes_time_of_its_own_at_each_node(
    study: sr.Study, whole: float, expected: tuple[float, ...]
) -> None:
    untouched = Step(structure=study.structure, layers={})
    nodes = [
        node("0", 100_000.0), node("3", 15_000.0), node("3", 25_000.0), node("", 2_000.0), node("", 3_000.0)
    ]  # fmt: skip
    parts = seams.parts_of(nodes, untouched)
    if whole == 140_000.0:
        whole = parts.total
    found = seams.without_overhead(parts, seams.node_counts(nodes, untouched), whole)
    assert (*found.factors["0"], *found.factors["3"]) == pytest.approx(expected[:2])
    assert sum(found.others.values()) == pytest.approx(expected[2])
    file = TimedFile(run=lambda: None, batch=1, nodes=lambda: tuple(nodes))
    assert seams.profiled_parts(file, untouched, whole / 1e6, 2) == found
    # Of a runtime whose parts are another's, the whole time says nothing of the profile.
    assert seams.profiled_parts(file, untouched, whole / 1e6, 1) == parts


def test_a_profile_is_taken_four_times_at_most(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    taken: list[int] = []

    def nodes() -> tuple[NodeTime, ...]:
        taken.append(len(taken))
        return (node("0", 50_000.0 + len(taken)),)

    file = TimedFile(run=lambda: None, batch=1, nodes=nodes)
    # Of the shortest, 2.5 us are the profile's.
    assert seams.profiled_parts(file, untouched, 10e-3, 4).factors == {"0": (47_501.0,)}
    assert len(taken) == 4
