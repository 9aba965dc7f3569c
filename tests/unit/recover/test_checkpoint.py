# SPDX-License-Identifier: Apache-2.0
"""A run in a directory: there and back, and what is refused."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank as sr
from seams import (
    Checkpoint,
    TrainingState,
    load_optimizer_,
    optimizer_state,
    restore_,
    snapshot,
)


def _state(value: float, *, best: float | None = None) -> TrainingState:
    model = {"a.weight": torch.full((2, 3), value), "b": torch.tensor(4)}
    return TrainingState(
        model=model,
        best=model if best is None else {**model, "b": torch.tensor(best)},
        tensors={"0.exp_avg": torch.ones(2)},
        numbers={"0.flag": True, "0.none": None},
        facts={"before": 1.5, "history": []},
    )


@pytest.mark.parametrize("best", [None, 9.0])
def test_what_was_kept_comes_back(best: float | None, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"weights": "1"})
    assert checkpoint.load() is None
    checkpoint.store(_state(0.0), 1)
    checkpoint.store(_state(1.0, best=best), 2)
    found = Checkpoint(tmp_path, {"weights": "1"}).load()
    assert found is not None
    assert torch.equal(found.model["a.weight"], torch.ones(2, 3))
    assert float(found.best["b"]) == (best or 4)
    assert found.numbers == {"0.flag": True, "0.none": None}
    assert found.facts == {"before": 1.5, "history": []}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "recover-2.safetensors",
        "recover-state.json",
        "recover.json",
    ]


def test_the_epoch_before_holds_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path, {})
    checkpoint.store(_state(0.0), 1)

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimrank.files.Store.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.store(_state(1.0), 2)
    found = checkpoint.load()
    assert found is not None
    assert float(found.model["a.weight"].sum()) == 0


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    Checkpoint(tmp_path, {"weights": "1", "data": "2", "options": "3"})
    with pytest.raises(sr.StudyError, match="training run of other data and options; give another run_dir"):
        Checkpoint(tmp_path, {"weights": "1", "data": "0", "options": "0"})


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, {"weights": "1"})
    path = tmp_path / "recover.json"
    path.write_text(path.read_text().replace('"format": "1"', '"format": "2"'))
    with pytest.raises(sr.StudyError, match=r"recover\.json has format 2, this version reads 1; give"):
        Checkpoint(tmp_path, {"weights": "1"})


def test_an_altered_state_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {})
    checkpoint.store(_state(0.0), 1)
    (tmp_path / "recover-state.json").write_text(json.dumps({"tensors": 3}))
    with pytest.raises(sr.FileError, match=r"recover-state.json was altered; delete the directory"):
        checkpoint.load()


def test_a_snapshot_goes_back_into_the_same_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].register_buffer("cache", torch.zeros(2), persistent=False)
    before = snapshot(model)
    tensors = [*model.parameters()]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    model[0].cache = torch.ones(5)
    restore_(model, before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        torch.optim.SGD,
        functools.partial(torch.optim.SGD, momentum=0.9),
        functools.partial(torch.optim.RMSprop, centered=True),
    ],
)
def test_an_optimizer_goes_on_as_if_nothing_had_happened(make: Callable[..., torch.optim.Optimizer]) -> None:
    def steps(p: nn.Parameter, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()

    whole, halved = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    steps(whole, make([whole], lr=0.01), 6)
    first = make([halved], lr=0.01)
    steps(halved, first, 3)
    second = make([halved], lr=0.01)
    load_optimizer_(second, *optimizer_state(first))
    steps(halved, second, 3)
    assert torch.equal(whole, halved)


def test_a_state_that_no_file_holds_is_refused() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    optimizer.state[p]["history"] = [torch.ones(2)]
    with pytest.raises(sr.OptionError, match="SGD keeps history as a list, which run_dir= cannot hold"):
        optimizer_state(optimizer)
