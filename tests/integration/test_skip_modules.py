# SPDX-License-Identifier: Apache-2.0
"""Modules in place of names: what ``skip=`` takes in a study, a plan and ``compress``."""

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import slimrank as sr


@pytest.fixture(scope="module")
def model(nets: ModuleType) -> nn.Module:
    return nets.cnn()


@pytest.fixture(scope="module")
def study(nets: ModuleType, model: nn.Module) -> sr.Study:
    return sr.study(model, nets.noise(1, 8, 8), skip=[model.stem, "fc"], progress=False)


def test_a_study_leaves_modules_alone(study: sr.Study) -> None:
    assert {spec.name for spec in study.layers if spec.methods} == {"conv", "last"}


def test_a_study_by_modules_is_one_by_names(nets: ModuleType, model: nn.Module, study: sr.Study) -> None:
    by_names = sr.study(model, nets.noise(1, 8, 8), skip=("stem", "fc"), progress=False)
    assert by_names.fingerprint == study.fingerprint


def test_a_plan_leaves_modules_alone(study: sr.Study, model: nn.Module) -> None:
    plan = study.plan(macs=0.9, methods=("weight_svd",), skip=(model.last,))
    assert set(plan.settings) == {"conv"}
    assert study.plan(macs=0.9, methods=("weight_svd",), skip="last").steps == plan.steps
    # A single module is one, though it may be iterable.
    assert study.plan(macs=0.9, methods=("weight_svd",), skip=model.last).steps == plan.steps


def test_a_container_stands_for_the_layers_in_it(nets: ModuleType) -> None:
    model = nn.Sequential(nets.mlp(), nn.ReLU(), nn.Linear(10, 12))
    study = sr.study(model, nets.noise(24), skip=model[0], progress=False)
    assert {spec.name for spec in study.layers if spec.methods} == {"2"}
    study = sr.study(model, nets.noise(24), progress=False)
    assert set(study.plan(macs=0.98, skip=[model[0]]).settings) <= {"2"}


def test_compress_leaves_modules_alone(nets: ModuleType, model: nn.Module) -> None:
    result = sr.compress(
        model, nets.noise(1, 8, 8), macs=0.6, skip=[model.conv], effort="fast", progress=False
    )
    torch.testing.assert_close(result.model.conv.weight, model.conv.weight)


def test_the_smallest_model_leaves_modules_alone(study: sr.Study, model: nn.Module) -> None:
    result = sr.smallest(study, max_drop=0.5, methods=("weight_svd",), skip=[model.last], multiple_of=1)
    assert set(result.plan.settings) == {"conv"}


def test_modules_of_a_result_can_be_named(nets: ModuleType, study: sr.Study) -> None:
    result = study.apply(study.plan(macs=0.8, methods=("weight_svd",)))
    again = sr.study(result, nets.noise(1, 8, 8), skip=[result.model.fc], progress=False)
    assert "fc" not in {spec.name for spec in again.layers if spec.methods}


def test_a_loaded_study_knows_the_modules_of_its_model(
    study: sr.Study, model: nn.Module, tmp_path: Path
) -> None:
    study.save(tmp_path)
    loaded = sr.Study.load(tmp_path, model=model)
    assert set(loaded.plan(macs=0.9, methods=("weight_svd",), skip=[model.last]).settings) == {"conv"}
    without = sr.Study.load(tmp_path)
    with pytest.raises(sr.StudyError, match=r"skip holds a Conv2d, and this study has no model.*'stem'"):
        without.plan(macs=0.6, skip=[model.last])


def test_modules_that_mean_nothing(study: sr.Study, model: nn.Module, nets: ModuleType) -> None:
    with pytest.raises(sr.OptionError, match="skip holds a Conv2d that is no module of the model"):
        study.plan(macs=0.6, skip=[copy.deepcopy(model).last])
    with pytest.raises(sr.OptionError, match="skip holds the BatchNorm2d 'bn', which is no layer"):
        study.plan(macs=0.6, skip=[model.bn])
    with pytest.raises(sr.OptionError, match="skip holds a int; give globs or modules"):
        study.plan(macs=0.6, skip=[3])
    with pytest.raises(sr.OptionError, match="skip=3; give globs or modules"):
        sr.study(model, nets.noise(1, 8, 8), skip=3, progress=False)
