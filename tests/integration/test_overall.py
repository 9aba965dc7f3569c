# SPDX-License-Identifier: Apache-2.0
"""Calls that build several models tell how far they are while these are built."""

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr


class Net(nn.Module):
    """Three layers, of which two can be slimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x).relu()).relu().mean((2, 3)))


def _net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


_BATCHES = [torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def _shares(events: list[dict[str, object]]) -> list[float]:
    """How far the call was at each step of a model that was built."""
    built = [event for event in events if event["event"] == "step" and event["phase"] in ("apply", "verify")]
    assert built
    assert all(isinstance(event["seconds_left"], float) for event in built)
    return [float(event["overall"]) for event in built]  # type: ignore[arg-type]


@pytest.mark.parametrize("effort", ["fast", "normal", "thorough"])
def test_compress_tells_how_far_its_models_are(effort: str) -> None:
    events: list[dict[str, object]] = []
    result = sr.compress(
        _net(),
        _BATCHES,
        macs=0.5,
        effort=effort,
        progress=False,
        callback=events.append,  # type: ignore[arg-type]
    )
    shares = _shares(events)
    tried = [note for note in result.notes if note.where == "compete"]
    assert (len(tried) > 1) == (effort != "fast")
    assert 0 < shares[0] < 1
    assert all(0 < share <= 1 for share in shares)
    assert shares == sorted(shares)
    # Models that would be worse for certain are not built, so others may be the last.
    assert shares[-1] == 1.0 if effort == "fast" else shares[-1] > 0.4


@pytest.mark.slow
def test_smallest_tells_how_far_its_models_are() -> None:
    events: list[dict[str, object]] = []
    study = sr.study(_net(), _BATCHES, effort="fast", progress=False, callback=events.append)
    events.clear()
    result = sr.smallest(study, max_drop=0.05, tolerance=0.05)
    shares = _shares(events)
    n_models = sum(event["event"] == "phase" and event["phase"] == "verify" for event in events)
    assert n_models == sum(note.where == "smallest" for note in result.notes)
    assert shares[0] < 0.5
    assert max(shares) > 0.7
    # What is built from the study by itself is no part of that call.
    events.clear()
    study.apply(study.plan(macs=0.6))
    assert not [event for event in events if "overall" in event]


def test_expectations_may_change_and_what_is_done_stays() -> None:
    overall = seams.Overall("compress", {"apply": seams.Expected(seconds=10, steps=10)})
    overall.add("apply", 5)
    assert overall.share == 0.5
    overall.expect(
        {"apply": seams.Expected(seconds=20, steps=20), "verify": seams.Expected(seconds=20, steps=1)}
    )
    # An eighth is done now, but who has read a half is not told less.
    assert overall.share == 0.5
    assert overall.steps == {"apply": 5, "verify": 0}
    overall.add("apply", 15)
    assert str(overall).startswith("compress 50%, about ")
    overall.add("verify", 1)
    assert str(overall) == "compress 100%"
