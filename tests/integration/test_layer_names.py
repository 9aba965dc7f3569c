# SPDX-License-Identifier: Apache-2.0
"""Plan files and saved models with names of layers that cannot be, or that the model lacks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank as sr

_IMPOSSIBLE = ("../../etc", "a..b", "a b/..", ".a", "a.")


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def _renamed(path: Path, old: str, new: str) -> None:
    """Another name for a layer wherever the plan file has one; the fingerprint stays."""
    content = json.loads(path.read_text())
    step = content["steps"][0]
    step["structure"]["order"] = [new if name == old else name for name in step["structure"]["order"]]
    for table in (step["structure"]["layers"], step["layers"]):
        table[new] = table.pop(old)
    path.write_text(json.dumps(content))


def test_impossible_and_unknown_names_are_refused(tmp_path: Path, rng: torch.Generator) -> None:
    model = _net().eval()
    batches = [torch.randn(32, 8, generator=rng)]
    study = sr.study(model, batches, methods=("weight_svd",), effort="fast", progress=False)
    plan = sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 2}), "2": ("weight_svd", {"rank": 2})})
    study.apply(plan).save(tmp_path / "saved")
    files = {"plan": tmp_path / "plan.json", "saved": tmp_path / "saved" / "plan.json"}
    plan.save(files["plan"])
    texts = {key: path.read_text() for key, path in files.items()}

    def rename(name: str) -> None:
        for key, path in files.items():
            path.write_text(texts[key])
            _renamed(path, "2", name)

    for name in _IMPOSSIBLE:
        rename(name)
        with pytest.raises(sr.PlanError, match="cannot be the name of a layer") as error:
            sr.Plan.load(files["plan"])
        assert repr(name) in str(error.value)
        with pytest.raises(sr.PlanError, match="cannot be the name of a layer"):
            sr.load(tmp_path / "saved", model=_net())
    rename("")
    with pytest.raises(sr.PlanError, match="'' is the model itself"):
        sr.load(tmp_path / "saved", model=_net())
    rename("second")
    with pytest.raises(sr.PlanError, match="1 missing in the model: 'second'"):
        sr.apply(_net(), sr.Plan.load(files["plan"]))
    with pytest.raises(sr.PlanError, match="1 missing in the model: 'second'"):
        sr.load(tmp_path / "saved", model=_net())


def test_a_layer_that_only_a_later_step_names_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    batches = [torch.randn(32, 8, generator=rng)]
    options = {"methods": ("weight_svd",), "effort": "fast", "progress": False}
    study = sr.study(_net().eval(), batches, **options)
    first = study.apply(sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 2})}))
    again = sr.study(first, batches, **options)
    again.apply(sr.Plan.manual(again, {"2": ("weight_svd", {"rank": 2})})).save(tmp_path / "saved")
    path = tmp_path / "saved" / "plan.json"
    content = json.loads(path.read_text())
    step = content["steps"][1]
    step["structure"]["order"] = ["else" if name == "2" else name for name in step["structure"]["order"]]
    for table in (step["structure"]["layers"], step["layers"]):
        table["else"] = table.pop("2")
    path.write_text(json.dumps(content))
    with pytest.raises(sr.UnknownNameError, match="no layer 'else' that the plan names"):
        sr.load(tmp_path / "saved", model=_net())
