# SPDX-License-Identifier: Apache-2.0
"""Figures of a study, by matplotlib."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import slimrank as sr


@pytest.fixture(scope="module")
def study() -> sr.Study:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    return sr.study(model, [torch.randn(64, 16)], progress=False)


def test_a_picture_for_each_layer_and_group(study: sr.Study) -> None:
    pytest.importorskip("matplotlib")
    figure: Any = study.plot("damage")
    titles = [axes.get_title() for axes in figure.axes]
    assert {"0", "2", "0 (group)", "2 (group)"} <= set(titles)
    some: Any = study.plot("damage", names=["2"])
    assert [axes.get_title() for axes in some.axes] == ["2", "2 (group)"]
    assert {axes.get_yscale() for axes in some.axes} == {"log"}
    costs: Any = study.plot("costs")
    (bars,) = costs.axes
    assert len(bars.patches) == 3
    assert max(patch.get_width() for patch in bars.patches) == 1024


def test_what_cannot_be_drawn_is_refused(study: sr.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sr.UnknownNameError, match=r"plot 'damages'; did you mean 'damage'"):
        study.plot("damages")
    with pytest.raises(sr.UnknownNameError, match=r"no layer or group 'fc'"):
        study.plot("damage", names=["fc"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sr.MissingPackageError, match=r"pip install 'slimrank\[plot\]'"):
        study.plot("costs")
