# SPDX-License-Identifier: Apache-2.0
"""How many held-out samples each divergence of a study takes."""

from types import SimpleNamespace

import pytest

from seams import count_samples
from slimrank.calibrate import Likelihood, OutputModel
from slimrank.records import Cost, Family


def output(family: Family, shape: tuple[int, ...], positions: int = 1) -> OutputModel:
    return OutputModel(
        family=family, dim=1, is_probability=False, scale=None, shape=shape, positions=positions
    )


CLASSES, LABELS = output("categorical", (10,)), output("bernoulli", (100,), positions=100)
PYRAMID = [output("gaussian", (8, size, size)) for size in (56, 7, 4)]
PIXELS = output("categorical", (5, 16, 16), positions=256)
PICTURE, FEW_PLACES = output("gaussian", (3, 16, 16)), output("gaussian", (256, 3, 3))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([CLASSES], 16),
        ([LABELS], 16),
        ([FEW_PLACES], 16),
        ([PIXELS], 4),
        ([PICTURE], 4),
        ([PICTURE, PIXELS], 4),
        (PYRAMID, 4),
        # The class is one term however many pixels stand beside it.
        ([CLASSES, PIXELS], 16),
    ],
)
def test_costly_divergences_take_fewer_samples_of_maps(outputs: list[OutputModel], expected: int) -> None:
    session = SimpleNamespace(
        captured=SimpleNamespace(before=Cost(macs=10**12, params=0, bytes=0)),
        likelihood=Likelihood(outputs={str(place): one for place, one in enumerate(outputs)}),
        feed=SimpleNamespace(fit=range(100), held_out=range(30)),
    )
    assert count_samples(session, 1000) == expected
    assert count_samples(session, 0) == 0
    session.captured.before = Cost(macs=1000, params=0, bytes=0)
    assert count_samples(session, 1000) == 30
