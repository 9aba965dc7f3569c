# SPDX-License-Identifier: Apache-2.0
"""Evaluations in other processes: the same table, whoever computed it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cloudpickle
import joblib
import pytest
import torch
from torch import nn

import slimrank as sr
from slimrank import measure_scores
from slimrank.scores import Scores


def scorer(nets: ModuleType) -> Callable[[nn.Module], float]:
    x = torch.cat(nets.noise(1, 8, 8, seed=3))

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(x).square().sum())

    return score


@pytest.mark.slow
def test_processes_give_the_same_table(cnn_study: sr.Study, nets: ModuleType, tmp_path: Path) -> None:
    # The net's class comes from a file that another process cannot import by name.
    study = cnn_study
    score, file = scorer(nets), tmp_path / "scores.json"
    alone = measure_scores(study, score, candidates=4, progress=False)
    first = measure_scores(study, score, candidates=4, layers=["fc"], path=file, workers=2, progress=False)
    assert list(first.entries) == ["fc"]
    assert measure_scores(study, score, candidates=4, path=file, workers=2, progress=False) == alone
    assert Scores.load(file) == alone
    assert not cloudpickle.list_registry_pickle_by_value()

    def failing(model: nn.Module) -> float:
        if isinstance(model.conv, nn.Sequential):
            raise LookupError("no labels")
        return score(model)

    kept = tmp_path / "failed.json"
    with pytest.raises(sr.ScoreError, match=r"layer 'conv', .*score_fn failed with LookupError: no labels"):
        measure_scores(study, failing, candidates=4, path=kept, workers=2, progress=False)
    assert "conv" not in Scores.load(kept).entries
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


def test_a_backend_that_is_active_is_taken(cnn_study: sr.Study, nets: ModuleType) -> None:
    score = scorer(nets)
    alone = measure_scores(cnn_study, score, candidates=4, progress=False)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert measure_scores(cnn_study, score, candidates=4, progress=False) == alone


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_same_table(python: Callable[..., object], tmp_path: Path) -> None:
    # In a process of its own: Ray leaves threads and open sockets behind, which are warnings here.
    python(
        """
import warnings
import nets
import joblib, ray
from ray.util.joblib import register_ray
import slimrank as sr
from slimrank import measure_scores

study = sr.study(nets.cnn(), nets.noise(1, 8, 8), progress=False)
x = torch.cat(nets.noise(1, 8, 8, seed=3))

def score(model):
    with torch.no_grad():
        return float(model(x).square().sum())

alone = measure_scores(study, score, candidates=3, progress=False)
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
register_ray()
with joblib.parallel_config(backend="ray", n_jobs=2):
    spread = measure_scores(study, score, candidates=3, path="scores.json", progress=False)
assert spread == alone
ray.shutdown()
""",
        timeout=240,
    )
    assert (tmp_path / "scores.json").is_file()
