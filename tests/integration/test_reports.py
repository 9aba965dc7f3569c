# SPDX-License-Identifier: Apache-2.0
"""Pages of studies and results that were measured: what stands in their data, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_net
import torch
from torch import nn

import slimrank as sr


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)).eval()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports") / "run"


@pytest.fixture(scope="module")
def study(run_dir: Path) -> sr.Study:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 16, generator=generator) for _ in range(4)]
    return sr.study(build(), batches, run_dir=run_dir, progress=False)


def data_of(page: Path) -> dict[str, Any]:
    """What was written beside a page."""
    data: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return data


def test_measured_divergences_are_kept_with_the_curves(study: sr.Study, run_dir: Path) -> None:
    curves = [*study.curves, *study.group_curves]
    assert {curve.layer for curve in study.curves if curve.anchors} == {"0", "2", "4"}
    assert all(curve.anchors for curve in study.group_curves)
    again = sr.Study.load(run_dir)
    assert [dict(curve.anchors) for curve in (*again.curves, *again.group_curves)] == [
        dict(curve.anchors) for curve in curves
    ]
    for curve in study.group_curves:
        # Never below what was measured there.
        for kept, divergence in curve.anchors.items():
            assert curve.damage[np.searchsorted(curve.kept, kept)] >= divergence * (1 - 1e-9)


def test_a_report_draws_what_was_measured(study: sr.Study, tmp_path: Path) -> None:
    study.report(tmp_path / "study.html")
    data = data_of(tmp_path / "study.html")
    measured = [
        anchor for row in data["layers"] for curve in row["curves"] for anchor in curve["anchors"]
    ] + [anchor for group in data["groups"] for anchor in group["anchors"]]
    curves = [*study.curves, *study.group_curves]
    assert len(measured) == sum(len(curve.anchors) for curve in curves) > 4
    assert (tmp_path / "study.html").read_text().count('<circle class="m"') == len(measured)


def test_a_study_of_an_older_version_has_curves_without_dots(tmp_path: Path) -> None:
    study = sr.Study.load(stored_net.STORED / "run")
    assert not any(curve.anchors for curve in (*study.curves, *study.group_curves))
    study.report(tmp_path / "old.html")
    html = (tmp_path / "old.html").read_text()
    assert "<polyline" in html
    assert '<circle class="m"' not in html
