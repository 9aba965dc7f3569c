# SPDX-License-Identifier: Apache-2.0
"""To how many samples layers are fitted, where maps wait for a late layer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr

# Bytes of one channel of 8 by 8 numbers.
MAP = 4 * 64
# Of one sample in both networks, at the last layer: inputs, what waits, both maps that are joined, the two
# joined, the output.
MOST = 2 * (2 + 16 + 16 + 32 + 2) * MAP


class Skip(nn.Module):
    """A map that nothing but functions touch waits for the last layer.

    Args:
        tidies_up: it keeps the size on itself during a forward.
    """

    def __init__(self, *, tidies_up: bool = False) -> None:
        super().__init__()
        self.tidies_up = tidies_up
        self.factor: float | None = None
        self.down = nn.Conv2d(2, 16, 3, padding=1)
        self.deep = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)))
        self.up = nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.factor = 2.0
        try:
            kept = torch.relu(self.down(x))
            deep = self.deep(torch.max_pool2d(kept, 2))
            deep = nn.functional.interpolate(deep, scale_factor=self.factor)
            result: Tensor = self.up(torch.cat([kept, deep], 1))
            return result
        finally:
            if self.tidies_up:
                self.factor = None


def study_of(*, tidies_up: bool = False, run_dir: Path | None = None) -> sr.Study:
    torch.manual_seed(0)
    batches = list(torch.randn(80, 2, 8, 8).split(16))
    model = Skip(tidies_up=tidies_up).eval()
    return sr.study(model, batches, methods=["spatial_svd"], effort="fast", run_dir=run_dir, progress=False)


def plan_of(study: sr.Study) -> sr.Plan:
    return study.plan(
        macs=0.9, fixed={name: ("spatial_svd", {"rank": 2}) for name in ("down", "deep.1", "deep.3", "up")}
    )


def told(result: sr.Result) -> list[str]:
    """Notes about samples, and about how batches were run."""
    texts = [note.text for note in result.notes if note.where == "apply"]
    return [text.partition(", ")[0] for text in texts]


def assert_same(result: sr.Result, other: sr.Result) -> None:
    weights, others = result.model.state_dict(), other.model.state_dict()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert result.divergence == other.divergence


@pytest.mark.parametrize(("n_alive", "notes"), [(80, []), (40, ["layers were fitted to 64"])])
def test_samples_that_are_fitted_to_follow_what_is_alive(
    n_alive: int, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.limit_alive(monkeypatch, n_bytes=n_alive * MOST)
    study = study_of()
    result = study.apply(plan_of(study))
    assert told(result) == notes
    if notes:
        text = "layers were fitted to 64, later 32, of 64 samples"
        assert any(note.text.startswith(text) for note in result.notes)


def test_it_does_not_matter_how_batches_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.limit_alive(monkeypatch, n_bytes=40 * MOST)
    study, other = study_of(), study_of(tidies_up=True)
    together, apart = study.apply(plan_of(study)), other.apply(plan_of(other))
    assert told(together) == ["layers were fitted to 64"]
    # A forward that is given up would take from the others what it tidies up.
    assert told(apart) == ["layers were fitted to 64", "the model keeps state on itself during a forward"]
    assert_same(together, apart)


def test_an_apply_that_goes_on_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seams.limit_alive(monkeypatch, n_bytes=40 * MOST)
    study = study_of(run_dir=tmp_path)
    whole = study.apply(plan_of(study))
    files = sorted(tmp_path.glob("apply/*/*.safetensors"))
    assert len(files) == 4
    for file in (files[0], files[-1]):
        file.unlink()
    assert_same(study.apply(plan_of(study)), whole)
