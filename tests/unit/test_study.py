# SPDX-License-Identifier: Apache-2.0
"""What a study says of itself, before any plan."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import slimrank as sr


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study() -> sr.Study:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    return sr.study(model, [torch.randn(6, 12, generator=generator)] * 2, progress=False)


def test_facts(study: sr.Study) -> None:
    assert repr(study) == "Study(2 of 2 layers compressible, 672 MACs, 712 params)"
    assert [spec.name for spec in study.layers] == ["0", "2"]
    assert study.before.bytes == 4 * 712
    assert study.methods == sr.METHODS
    assert study.has_bias
    assert set(study.fingerprint) >= {"structure", "weights", "inputs", "options"}
    assert {note.where for note in study.notes} == {"outputs", "calibrate"}


def test_curves_fall_with_rank_and_rise_in_cost(study: sr.Study) -> None:
    assert {curve.layer for curve in study.curves} == {"0", "2"}
    for curve in study.curves:
        assert (curve.damage[1:] <= curve.damage[:-1] * (1 + 1e-12)).all()
        assert (curve.error[1:] <= curve.error[:-1] * (1 + 1e-12)).all()
        assert (curve.macs[1:] > curve.macs[:-1]).all()
        assert (curve.ranks >= 1).all()
        assert (curve.damage > 0).all()


def test_gradients_have_the_size_of_the_outputs(study: sr.Study) -> None:
    assert {name: tuple(gram.shape) for name, gram in study.grams.items()} == {"0": (24, 24), "2": (16, 16)}
    for gram in study.grams.values():
        torch.testing.assert_close(gram, gram.T)


def test_a_plan_of_everything_is_empty(study: sr.Study) -> None:
    plan = study.plan(macs=1.0)
    assert plan.settings == {}
    assert plan.damage == 0
