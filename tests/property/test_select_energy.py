# SPDX-License-Identifier: Apache-2.0
"""What the search adds up for many layers and choices at once is what each of them costs alone."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from select_nets import NETS, Builder, invented_times, with_costs

from seams import Hulls, Joint, Priced, Shapes, State, joint_of, normalised, shapes_of
from slimrank.plan import Rounding
from slimrank.records import AxisUnits, Limited, NetworkTimes
from specs import Source


def joined(seed: int) -> Source:
    """Layers that read three groups side by side, and one whose inputs are of a unit of each of three."""
    net = Builder(seed, few=3)
    net.layer("a", [("", 3)], [("g", 6)], 8)
    net.layer("b", [("g", 6)], [("h", 8)], 8)
    net.layer("c", [("h", 8)], [("i", 4)], 8)
    net.layer("block.d", [("g", 6), ("h", 8), ("i", 4), ("", 2)], [("k", 8)], 8)
    net.layer("block.e", [("i", 4), ("k", 8), ("h", 8)], [("", 24)], 8)
    net.layer("f", [("", 24)], [("g", 6)], 8)
    # Each of the 24 is there as long as its units of three groups are.
    axes = tuple(
        AxisUnits(group=group, dim=1, role="input", units=tuple(at // step % units for at in range(24)))
        for group, units, step in (("x", 2, 12), ("y", 3, 4), ("z", 4, 1))
    )
    (into,) = (spec for spec in net.specs if spec.name == "f")
    rows = net.tensors["f.weight"].axes
    net.tensor("f.weight", into.weight_shape, (*rows, *axes), 64)
    net.units |= {"x": 2, "y": 3, "z": 4}
    for group in "xyz":
        net.made[group], net.read[group] = ["block.e"], ["f"]
    return with_costs(net.source(blocks=("block",)))


CASES = {**NETS, "joined": joined}


def a_joint(make: Callable[[int], Source], seed: int, step: int | None) -> Joint:
    net = make(seed)
    times: NetworkTimes | None = None
    limits: dict[Limited, float] = {"macs": 1.0, "params": 1.0}
    if step is not None:
        times = invented_times(net, seed, step)
        limits = {"macs": 1.0, "latency": 1.0}
    return joint_of(
        net,
        limits,
        methods=net.methods,
        skipped=(),
        rounding=Rounding(ranks=1, widths=1),
        times=times,
    )


def some_states(joint: Joint, rng: np.random.Generator, many: int = 12) -> list[State]:
    blocks = range(len(joint.blocks))
    return [
        normalised(
            joint,
            [int(rng.integers(len(group.kept))) for group in joint.widths],
            [block for block in blocks if rng.integers(2)],
        )
        for _ in range(many)
    ]


@pytest.mark.parametrize("step", [None, 1, 4])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_shapes_of_all_layers_are_those_of_each(make: Callable[[int], Source], step: int | None) -> None:
    for seed in range(2):
        joint = a_joint(make, seed, step)
        grids = joint.grids
        for state in some_states(joint, np.random.default_rng(seed)):
            every = grids.at(state.widths, np.arange(len(joint.layers)))
            for index, layer in enumerate(joint.layers):
                assert_same(every.of(np.array(index)), shapes_of(layer, state.widths))
            for group, wide in grids.reading.items():
                along = list(state.widths)
                along[group] = np.arange(len(joint.widths[group].kept))
                found = wide.along(state.widths, group)
                for place, index in enumerate(wide.index.tolist()):
                    assert_same(found.of(np.array(place)), shapes_of(joint.layers[index], along))
    assert make is not joined or joint.grids.reading


def assert_same(found: Shapes, expected: Shapes) -> None:
    for field in fields(found):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("step", [None, 4])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_energies_differ_as_those_along_a_group_do(make: Callable[[int], Source], step: int | None) -> None:
    for seed in range(2):
        joint = a_joint(make, seed, step)
        rng = np.random.default_rng([seed, 1])
        priced = Priced(joint, Hulls(joint), rng.exponential(size=len(joint.metrics)) / joint.scale)
        states = some_states(joint, rng)
        together = priced.energies(states)
        for state, energy in zip(states, together.tolist(), strict=True):
            assert energy == pytest.approx(priced.energy(state), rel=1e-12)
            for group in joint.standing.without(state.dropped).groups:
                moved = [
                    State(
                        widths=(*state.widths[:group], width, *state.widths[group + 1 :]),
                        dropped=state.dropped,
                    )
                    for width in range(len(joint.widths[group].kept))
                ]
                along = priced.energy_by_width(state, group)
                differences = priced.energies(moved) - energy
                np.testing.assert_allclose(
                    along - along[state.widths[group]], differences, rtol=1e-9, atol=1e-12 * abs(energy)
                )
