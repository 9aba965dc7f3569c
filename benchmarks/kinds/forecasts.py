# SPDX-License-Identifier: Apache-2.0
"""Kinds that forecast: load in kWh, quantiles of sales, several standardised series, tides."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import CausalConv, fixed, random_walk, uniform


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


def _sales(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pieces sold on 42 days (N, 42), and on the 14 days after them (N, 14)."""
    days = torch.arange(56) + torch.randint(0, 7, (n_samples, 1), generator=generator)
    size = (3.5 + 1.0 * torch.randn(n_samples, 1, generator=generator)).exp()
    week = (0.5 * torch.randn(n_samples, 7, generator=generator)).gather(1, days % 7)
    trend = 0.015 * torch.randn(n_samples, 1, generator=generator) * torch.arange(56)
    mean = size * (week + trend + 0.1 * random_walk(n_samples, 56, 0.9, generator)).exp()
    # Counts with more spread than a Poisson distribution has.
    factor = (0.18 * torch.randn(n_samples, 56, generator=generator)).exp()
    sold = torch.poisson(mean * factor, generator=generator)
    return sold[:, :42], sold[:, 42:]


class Quantiles(nn.Module):
    """Causal convolutions over the days before, three quantiles for each of the days to come."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 40, 1)
        self.blocks = nn.ModuleList(CausalConv(40, dilation) for dilation in (1, 2, 7))
        self.dense, self.head = nn.Linear(40 * 7, 64), nn.Linear(64, 14 * 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 14, 3) pieces: the 10 %, 50 % and 90 % quantiles."""
        level = x.mean(1, keepdim=True) + 1
        x = self.enter((x / level).log1p().unsqueeze(1))
        for block in self.blocks:
            x = block(x)
        x = functional.gelu(self.dense(x[..., -7:].flatten(1)))
        return level.unsqueeze(2) * functional.softplus(self.head(x).unflatten(1, (14, 3)))


def _pinball(found: Tensor, sold: Tensor) -> Tensor:
    """(N, 14, 3) pieces."""
    levels = torch.tensor([0.1, 0.5, 0.9])
    error = sold.unsqueeze(2) - found
    return torch.maximum(levels * error, (levels - 1) * error)


def _quantiles_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, sold = _sales(size, generator)
    # Every shop counts alike.
    return (_pinball(model(x), sold).mean((1, 2)) / (x.mean(1) + 1)).mean()


def _quantiles_score(model: nn.Module, generator: torch.Generator) -> float:
    x, sold = _sales(5000, generator)
    return float(100 * _pinball(model(x), sold).sum() / (3 * sold.sum()))


def _plant(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seven standardised readings of a plant (N, 36, 7), and the twelve steps after them (N, 12, 7)."""
    noise = torch.stack([random_walk(n_samples, 48, 0.3, generator) for _ in range(7)], -1)
    mixing = 0.45 * fixed(7, 7, seed=91)
    swing = 0.35 * (fixed(7, 7, seed=92) - fixed(7, 7, seed=92).T)
    state = torch.randn(n_samples, 7, generator=generator)
    states = []
    for step in range(48):
        state = 0.93 * state + 0.2 * ((state @ mixing).tanh() + state @ swing) + 0.06 * noise[:, step]
        states.append(state)
    readings = torch.stack(states, 1) / 1.3
    return readings[:, :36], readings[:, 36:]


class ForecastMany(nn.Module):
    """A patch of time each to a linear layer, mixed over patches and widths, all readings at once."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(42, 48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.mix1, self.mix2 = nn.Linear(6, 24), nn.Linear(24, 6)
        self.head = nn.Linear(6 * 48, 84)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 12, 7), as the input is standardised."""
        x = self.patch(x.unflatten(1, (6, 6)).flatten(2))
        x = x + self.mix2(functional.gelu(self.mix1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x.flatten(1)).unflatten(1, (12, 7))


def _plant_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, y = _plant(size, generator)
    return functional.mse_loss(model(x), y)


def _plant_score(model: nn.Module, generator: torch.Generator) -> float:
    x, y = _plant(3000, generator)
    return float((model(x) - y).square().mean())


def _tides(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sea levels in decimetres around the mean: two days known (N, 60), one period to come (N, 24).

    Every tide has whole periods in the window that is asked for, so that its levels there sum to zero.
    """
    steps = torch.arange(84)
    size = uniform((n_samples, 1), 9, 14, generator)
    phase = uniform((n_samples, 3, 1), 0, 2 * math.pi, generator)
    levels = size * (2 * math.pi * steps / 12 + phase[:, 0]).cos()
    levels = (
        levels + uniform((n_samples, 1), 0, 4, generator) * (2 * math.pi * steps / 24 + phase[:, 1]).cos()
    )
    levels = levels + 0.1 * size * (2 * math.pi * steps / 6 + phase[:, 2]).cos()
    noise = 1.5 * torch.randn(n_samples, 60, generator=generator)
    surge = 2.0 * random_walk(n_samples, 60, 0.95, generator)
    return levels[:, :60] + noise + surge, levels[:, 60:]


class Tides(nn.Module):
    """Convolutions over the levels, then dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 24, 9, stride=3), nn.Conv1d(24, 32, 5)
        self.dense1, self.dense2 = nn.Linear(32 * 14, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 24) in decimetres."""
        x = functional.silu(self.conv1(x.unsqueeze(1) / 10))
        x = functional.silu(self.conv2(x)).flatten(1)
        x = functional.silu(self.dense2(functional.silu(self.dense1(x))))
        return 10 * self.head(x)


def _tides_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, y = _tides(size, generator)
    return functional.mse_loss(model(x), y)


def _tides_score(model: nn.Module, generator: torch.Generator) -> float:
    x, y = _tides(8000, generator)
    return float((model(x) - y).square().mean().sqrt())


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
        harmless={"": ("categorical",)},
        steps=8000,
        batch=64,
        macs=0.3,
    ),
    Kind(
        name="quantiles",
        build=Quantiles,
        loss=_quantiles_loss,
        inputs=lambda n, generator: _sales(n, generator)[0],
        measure=_quantiles_score,
        measured="pinball loss, % of the pieces sold",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=1800,
        batch=48,
        macs=0.01,
    ),
    Kind(
        name="forecast-many",
        build=ForecastMany,
        loss=_plant_loss,
        inputs=lambda n, generator: _plant(n, generator)[0],
        measure=_plant_score,
        measured="mean squared error of standardised readings",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=2500,
        batch=48,
        macs=0.1,
    ),
    Kind(
        name="tides",
        build=Tides,
        loss=_tides_loss,
        inputs=lambda n, generator: _tides(n, generator)[0],
        measure=_tides_score,
        measured="root mean squared error, dm",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=4000,
        batch=64,
        macs=0.06,
    ),
)
