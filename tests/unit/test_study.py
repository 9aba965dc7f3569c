# SPDX-License-Identifier: Apache-2.0
"""What a study says of itself, before any plan."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


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
    assert "rows per column for 2 of 2 layers ('0', '2'); their fits" in study.notes[-1].text


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


class _Upsampled(nn.Module):
    """A transposed convolution, which no pair replaces and whose channels may go; a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(2, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.tail = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.stem(x).relu()).relu()
        return self.tail(x).relu().mean((2, 3)) @ self.mix


@pytest.fixture(scope="module")
def upsampled() -> sr.Study:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sr.study(_Upsampled().eval(), [torch.randn(6, 2, 6, 6) for _ in range(4)], progress=False)


def test_results_tell_the_reasons_of_the_study(upsampled: sr.Study, tmp_path: Path) -> None:
    result = upsampled.apply(sr.Plan.manual(upsampled, {"stem": ("weight_svd", 0.5)}))
    told = {layer.name: layer.reason for layer in result.layers}
    assert [(spec.name, spec.reason) for spec in upsampled.layers if spec.methods and told[spec.name]] == [
        ("up", None),
        ("tail", None),
    ]
    assert told["up"] == told["tail"] == "left alone by the plan"
    assert told[""] == upsampled.structure.layers[""].reason == "no method for _Upsampled"
    assert "no method for ConvTranspose2d" not in upsampled.summary() + result.summary()
    for text in (upsampled.summary(), result.summary()):
        assert " - (model): no method for _Upsampled\n" in text
    result.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "no method for ConvTranspose2d" not in page
    assert "<dt>(model)</dt>" in page


def test_names_of_channels_that_no_fit_makes_up_for(upsampled: sr.Study) -> None:
    (note,) = [note.text for note in upsampled.notes if note.where == "groups"]
    assert note == (
        "no layer that reads them can be fitted, so channels go by the norms of weights in 1 of 3 groups: "
        "'tail'"
    )
    (line,) = [line for line in upsampled.groups().splitlines() if line.startswith("tail ")]
    assert line.split()[3:5] == ["tail", "(model)"]


def test_a_result_knows_the_damages_of_its_groups_and_blocks(upsampled: sr.Study) -> None:
    plan = sr.Plan.manual(upsampled, {"up": ("channel_pruning", 0.5), "stem": ("weight_svd", 0.5)})
    result = upsampled.apply(plan)
    (curve,) = [curve for curve in upsampled.group_curves if curve.group == "up"]
    assert result.group_damages == {"up": curve.damage[list(curve.kept).index(4)]}
    assert result.block_damages == {}
    told = sum(layer.damage or 0 for layer in result.layers) + result.group_damages["up"]
    assert told == pytest.approx(plan.damage)
    (line,) = [line for line in result.summary().splitlines() if line.startswith("up ") and "4 of 8" in line]
    assert line.split()[-1] == f"{result.group_damages['up']:#.3g}"
    # Units that the curve does not offer have none.
    other = upsampled.apply(sr.Plan.manual(upsampled, {"up": ("channel_pruning", {"channels_kept": [0]})}))
    known = curve.channels_kept(1) == (0,)
    assert list(other.group_damages) == ["up"] * known
