# SPDX-License-Identifier: Apache-2.0
"""The main way on a CUDA device."""

from pathlib import Path

import pytest
import torch
from torch import nn

import seams
import slimrank as sr

pytestmark = pytest.mark.gpu


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_main_way(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build().to("cuda", dtype)
    batches = [torch.randn(16, 3, 16, 16, device="cuda", dtype=dtype) for _ in range(4)]
    state = torch.cuda.get_rng_state()
    study = sr.study(model, batches, run_dir=tmp_path / "run", progress=False)
    result = study.apply(study.plan(macs=0.6))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert result.keep_ratio("macs") <= 0.6
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    result.save(tmp_path / "small")
    loaded = sr.load(tmp_path / "small", model=build().to("cuda"))
    with torch.no_grad():
        assert torch.equal(loaded(batches[0]), result.model(batches[0]))
    again = sr.Study.load(tmp_path / "run", model=model, progress=False)
    assert again.apply(study.plan(macs=0.6)).divergence == pytest.approx(result.divergence, rel=1e-2)


def test_times_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.measure_fewer_variants(monkeypatch)
    study = sr.study(build(), [torch.randn(16, 3, 16, 16)], data_free=True, progress=False)
    table = sr.measure_latency(study, backend="cuda", batch=16, progress=False)
    assert torch.cuda.get_device_name() in table.machine
    assert set(table.times.layers) == {"0", "3", "7"}
    assert all(sum(times) > 0 for times in seams.record_of(table).original.factors.values())
    result = sr.meet_latency(study, 0.99, latencies=table, rounds=1)
    assert result.latency is not None
    assert 0 < result.latency.measured < 2
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cpu"}


def test_a_model_that_waits_for_the_gpu_is_told() -> None:
    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fc(x)
            return y if y.sum().item() > 0 else -y

    study = sr.study(Waiting().eval(), [torch.randn(4, 8)], data_free=True, progress=False)
    with pytest.raises(
        sr.LatencyError, match=r"Waiting cannot be captured as a CUDA graph .* out of forward"
    ):
        sr.measure_latency(study, backend="cuda", progress=False)
