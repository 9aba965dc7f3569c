# SPDX-License-Identifier: Apache-2.0
"""A study's directory: what is written comes back, and what it lacks is said."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import slimrank as sr
import specs
from slimrank.files import Store
from slimrank.measured import StudyRecord, check_fingerprint, read_study
from slimrank.plan import structure_of
from slimrank.records import Cost, Curve, Note
from slimrank.survey import check_saved_loss, saved_grams, saved_outputs, saved_source, write_study

_LAYER = specs.linear("fc", 8, 8)
_CURVE = Curve(
    layer="fc",
    method="weight_svd",
    form="linear",
    ranks=np.array([1, 2]),
    macs=np.array([16, 32]),
    params=np.array([24, 40]),
    bytes=np.array([96, 160]),
    error=np.array([0.5, 0.25]),
    damage=np.array([0.2, 0.1]),
    anchors={2: 0.11, 1: 0.19},
)
_RECORD = StudyRecord(
    structure=structure_of([_LAYER]),
    before=Cost(macs=64, params=72, bytes=288),
    has_bias=True,
    curves=(_CURVE,),
    group_curves=(),
    block_damages=(),
    methods=("weight_svd",),
    unit="nats per sample",
    notes=(Note(where="outputs", text="read as categorical"),),
    seconds={"capture": 0.5, "curves": 1.5},
    fingerprint={"structure": "1", "weights": "2"},
    previous=None,
)
_GRAMS = {"fc": torch.eye(8)}


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_study(Store(tmp_path), _RECORD, _GRAMS, None)
    found = read_study(Store(tmp_path))
    names = [field.name for field in fields(StudyRecord)]
    # Arrays are compared one by one below.
    plain = [name for name in names if name not in ("curves", "no_inputs")]
    assert {name: getattr(found, name) for name in plain} == {name: getattr(_RECORD, name) for name in plain}
    (curve,) = found.curves
    assert curve.damage.tolist() == [0.2, 0.1]
    assert curve.anchors == {2: 0.11, 1: 0.19}
    assert torch.equal(saved_grams(Store(tmp_path))["fc"], torch.eye(8))
    assert found.no_inputs == "the study has no data"


def test_the_structure_is_kept_as_a_plan_that_changes_nothing(tmp_path: Path) -> None:
    write_study(Store(tmp_path), _RECORD, _GRAMS, None)
    plan = sr.Plan.load(tmp_path / "untouched_plan.json")
    assert plan.steps[0].structure == _RECORD.structure
    assert (plan.before, plan.after, plan.settings) == (_RECORD.before, _RECORD.before, {})


def test_measurements_of_another_study_go(tmp_path: Path) -> None:
    write_study(Store(tmp_path), _RECORD, _GRAMS, None)
    other = replace(_RECORD, curves=(), fingerprint={"structure": "1", "weights": "3"})
    write_study(Store(tmp_path), other, _GRAMS, None)
    assert not list(tmp_path.glob("curves-*"))
    assert json.loads((tmp_path / "run.json").read_text()) == {"format": "3", **other.fingerprint}


def test_what_was_not_kept_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(sr.StudyError, match=r"holds no inputs \(the study has no data\); pass batches= to"):
        saved_source(
            store, replace(_RECORD, no_inputs="the study has no data"), None, None, torch.device("cpu")
        )
    function = replace(_RECORD, outputs="function")
    with pytest.raises(sr.StudyError, match=r"made with outputs= as a function.*pass the same outputs="):
        saved_outputs(function, None)
    assert saved_outputs(function, 0) == 0
    assert saved_outputs(replace(_RECORD, outputs="logits"), None) == "logits"
    assert saved_outputs(replace(_RECORD, outputs=["mask", 1]), None) == ("mask", 1)
    assert saved_outputs(_RECORD, None) is None
    check_saved_loss(_RECORD, None)
    with pytest.raises(
        sr.StudyError, match=r"made with loss=, a function that no file can keep; pass the same"
    ):
        check_saved_loss(replace(_RECORD, has_loss=True), None)
    check_saved_loss(replace(_RECORD, has_loss=True), lambda _out, _original: torch.zeros(1))


def test_other_models_and_data_are_refused_by_name(tmp_path: Path) -> None:
    check_fingerprint(_RECORD.fingerprint, _RECORD, Store(tmp_path))
    with pytest.raises(sr.StudyError, match=r"was made of other weights; pass the same model and data"):
        check_fingerprint({"structure": "1", "weights": "4"}, _RECORD, Store(tmp_path))


def test_a_study_saved_without_its_model_cannot_be_applied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    batches = [torch.randn(4, 8, generator=torch.Generator().manual_seed(0))] * 2
    sr.study(model, batches, data_free=True, run_dir=tmp_path / "first", progress=False)
    sr.Study.load(tmp_path / "first").save(tmp_path / "second")
    assert sr.Study.load(tmp_path / "second").plan(macs=0.9).settings
    with pytest.raises(sr.FileError, match=r"second keeps no options, since the study was saved without its"):
        sr.Study.load(tmp_path / "second", model=model)
