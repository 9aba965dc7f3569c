# SPDX-License-Identifier: Apache-2.0
"""The estimate of time and memory: what it counts, and when it is told."""

import re
from io import StringIO

import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.cost import budgets_within, moment_bytes, working_bytes
from slimrank.records import Call, LayerSpec


def _linear(width: int, n_outputs: int, n_positions: int = 1) -> LayerSpec:
    call = Call(input_shape=(1, n_positions, width), output_shape=(1, n_positions, n_outputs))
    return LayerSpec(
        name=f"l{width}",
        kind="linear",
        class_name="Linear",
        weight_shape=(n_outputs, width),
        has_bias=True,
        dtype="float32",
        itemsize=4,
        calls=(call,),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (7.4, "7 s"), (41.0, "40 s"), (99.0, "100 s"), (110.0, "2 min"), (3000.0, "50 min")],
)
def test_an_estimate_is_one_line(seconds: float, text: str) -> None:
    estimate = seams.Estimate(seconds=seconds, n_bytes=600_000_000)
    assert str(estimate) == f"study: about {text} and 600 MB beside the model (estimated)"


def test_few_rows_take_the_place_of_moments() -> None:
    spec = _linear(4000, 10)
    assert moment_bytes(spec) == (4 + 1) * 4000**2
    assert moment_bytes(spec, 2001) == (4 + 1) * 4000**2
    assert moment_bytes(spec, 2000) == 4 * 2000 * 4000
    assert working_bytes(spec, 100) < working_bytes(spec) / 10


def test_budgets_of_nothing_cut_everything() -> None:
    budgets = budgets_within(0, fits=7)
    assert (budgets.layer_moments, budgets.group_moments, budgets.replay, budgets.fits) == (0, 0, 0, 7)


def _told(model: nn.Module, stream: StringIO, *, progress: bool = True, **others: object) -> str:
    batches = list(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).split(8))
    sr.study(model, batches, progress=progress, **others)  # type: ignore[arg-type]
    lines = [line for line in stream.getvalue().splitlines() if "beside the model (estimated)" in line]
    stream.truncate(0)
    assert len(lines) <= 1
    return lines[0] if lines else ""


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def test_it_is_told_where_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    assert "study: about 1 s and 2" in _told(_net(), shown)
    assert not _told(_net(), shown, progress=False)
    assert not _told(_net(), shown, data_free=True)


def test_the_whole_is_told_beside_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    events: list[dict[str, object]] = []
    batches = list(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).split(8))
    sr.study(_net(), batches, callback=events.append)
    shares = [event["overall"] for event in events if "overall" in event]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1
    assert all(event["seconds_left"] >= 0 for event in events if "overall" in event)
    assert re.search(r"\(study \d+%, about \d+ s left, estimated\)", shown.getvalue())
    events.clear()
    sr.study(_net(), batches, progress=False, callback=events.append)
    assert not any("overall" in event for event in events)


def test_a_study_that_is_done_needs_no_estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    torch.manual_seed(0)
    model = _net()
    assert _told(model, shown, run_dir=tmp_path)
    assert not _told(model, shown, run_dir=tmp_path)


@pytest.mark.slow
def test_larger_networks_and_more_samples_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[seams.Estimate] = []
    seams.watch_estimates(monkeypatch, found.append, sample=1e-3, products=1e9)
    for width, n_samples in ((32, 16), (32, 64), (256, 64)):
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 4))
        seams.show_progress_on(monkeypatch, StringIO())
        sr.study(model.eval(), list(torch.randn(n_samples, 6).split(16)))
    seconds = [estimate.seconds for estimate in found]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[1] < seconds[2]
    assert found[2].n_bytes > found[1].n_bytes


def test_a_model_that_draws_gives_the_same_numbers_with_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.01 * torch.rand(())

    torch.manual_seed(0)
    model = nn.Sequential(Noisy(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    batches = list(torch.randn(24, 6).split(8))
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    damages = []
    for progress in (False, True):
        torch.manual_seed(1)
        study = sr.study(model, batches, progress=progress)
        damages.append([curve.damage.tolist() for curve in study.curves])
    assert "estimated" in shown.getvalue()
    assert damages[0] == damages[1]
