# SPDX-License-Identifier: Apache-2.0
"""Kinds that forecast: load in kWh, quantiles of sales, several standardised series, tides."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import random_walk, uniform


def _load(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hourly load of buildings in kWh: two days known (N, 48), the next one asked for (N, 24)."""
    hours = uniform((n_samples, 1), 0, 168, generator).floor() + torch.arange(72)
    day = (hours % 24) / 24 * 2 * math.pi
    workday = ((hours // 24) % 7 < 5).float()
    size = uniform((n_samples, 1), 180, 520, generator)
    morning = uniform((n_samples, 1), 0.1, 0.4, generator) * workday * (day - 0.9).sin()
    evening = uniform((n_samples, 1), 0.05, 0.25, generator) * (2 * day - 2.1).cos()
    weather = 0.06 * random_walk(n_samples, 72, 0.98, generator)
    noise = 0.02 * torch.randn(n_samples, 72, generator=generator)
    load = size * (1 + morning + evening + weather + noise).clamp_min(0.1)
    return load[:, :48], load[:, 48:]


class LoadForecast(nn.Module):
    """A multilayer perceptron on the load of two days, scaled inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU()
        )
        self.head = nn.Linear(64, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 24) in kWh, from (N, 48) in kWh."""
        return x[:, -24:] + 100 * self.head(self.body((x - 350) / 150))


def _load_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, y = _load(size, generator)
    return functional.smooth_l1_loss(model(x), y, beta=10.0)


def _load_error(model: nn.Module, generator: torch.Generator) -> float:
    x, y = _load(6000, generator)
    return float((model(x) - y).abs().mean())


KINDS: tuple[Kind, ...] = (
    Kind(
        name="load-forecast",
        build=LoadForecast,
        loss=_load_loss,
        inputs=lambda n, generator: _load(n, generator)[0],
        measure=_load_error,
        measured="mean absolute error, kWh",
        higher_is_better=False,
        right={"": "gaussian"},
        steps=8000,
        batch=64,
        macs=0.3,
    ),
)
