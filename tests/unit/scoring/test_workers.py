# SPDX-License-Identifier: Apache-2.0
import sys
import threading

import joblib
import pytest
import torch
from torch import nn

from slimrank import OptionError, ScoreError
from slimrank.capture import describe_layers
from slimrank.methods import fit_pair, weights_target
from slimrank.scoring import Evaluator, LayerTrial, count_workers, evaluate_with_workers
from slimrank.surgery import dense_weight

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return model.eval().requires_grad_(requires_grad=False)


def trials(model: nn.Module) -> list[LayerTrial]:
    found = []
    for spec in describe_layers(model):
        layer = model.get_submodule(spec.name)
        target = weights_target(dense_weight(layer))
        for rank in (1, 2, 3):
            pair = fit_pair(spec, "linear", rank, target, alternations=0)
            bias = layer.bias.detach().double()
            found.append(LayerTrial(spec=spec, method="weight_svd", keep_ratio=0.1, pair=pair, bias=bias))
    return found


def total(model: nn.Module) -> float:
    return float(model(X).sum())


def test_workers_are_counted() -> None:
    assert count_workers(1) == 1
    assert count_workers(3) == 3
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert count_workers(1) == 2
        assert count_workers(3) == 3


def test_one_worker_needs_no_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    # What import finds there is an ImportError.
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert count_workers(1) == 1
    with pytest.raises(OptionError, match=r"need joblib, which is not installed; pip install slimrank\[par"):
        count_workers(2)


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_threads_share_a_model_and_give_the_same(max_bytes: int) -> None:
    model = net()
    evaluator = Evaluator(model, total, max_bytes=0)
    expected = {str(trial): evaluator.score(trial) for trial in trials(model)}
    with joblib.parallel_config(backend="threading", n_jobs=3):
        results = evaluate_with_workers(model, total, iter(trials(model)), workers=1, max_bytes=max_bytes)
        found = {str(trial): score for trial, score in results}
    assert found == expected


class _Listing(joblib.parallel.ThreadingBackend):  # type: ignore[misc]
    """A backend that gives all results at once, as Ray's does."""

    supports_return_generator = False


def test_backends_that_give_results_at_once_work_in_groups() -> None:
    joblib.register_parallel_backend("listing", _Listing)
    model = net()
    drawn: list[int] = []

    def watched() -> object:
        for number, trial in enumerate(trials(model)):
            drawn.append(number)
            yield trial

    with joblib.parallel_config(backend="listing", n_jobs=2):
        results = evaluate_with_workers(model, total, watched(), workers=1, max_bytes=0)  # type: ignore[arg-type]
        next(results)
        assert drawn == [0, 1]
        assert len(list(results)) == 5


def test_an_error_while_trials_are_made_comes_out() -> None:
    model = net()

    def failing() -> object:
        yield trials(model)[0]
        raise LookupError("no moments")

    with joblib.parallel_config(backend="threading", n_jobs=2):
        results = evaluate_with_workers(model, total, failing(), workers=1, max_bytes=0)  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="no moments"):
            list(results)


def test_an_error_of_the_function_comes_out_of_a_worker() -> None:
    model = net()

    def score(model: nn.Module) -> float:
        raise LookupError("no labels")

    with joblib.parallel_config(backend="threading", n_jobs=2):
        results = evaluate_with_workers(model, score, iter(trials(model)), workers=1, max_bytes=0)
        with pytest.raises(ScoreError, match=r"layer '\d'.*LookupError: no labels"):
            list(results)


def test_what_cannot_be_sent_is_told() -> None:
    lock = threading.Lock()

    def score(model: nn.Module) -> float:
        with lock:
            return 1.0

    results = evaluate_with_workers(net(), score, iter(()), workers=2, max_bytes=0)
    with pytest.raises(OptionError, match=r"cannot be sent to another process .*or take workers=1"):
        next(results)
