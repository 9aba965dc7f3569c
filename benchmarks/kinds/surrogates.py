# SPDX-License-Identifier: Apache-2.0
"""Kinds that stand in for a computation: the pressure of a flow."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import uniform

_SIDE, _DENSITY = 24, 1.2


def _flows(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Velocities in m/s (N, 2, 24, 24) of air that is not compressed, and its pressure in Pa (N, 1, 24, 24).

    The square is one metre wide and repeats itself; the pressure keeps the flow free of sources.
    """
    waves = 2 * math.pi * torch.fft.fftfreq(_SIDE, 1 / _SIDE)
    k_y, k_x = waves.reshape(-1, 1), waves.reshape(1, -1)
    square = k_x.square() + k_y.square()
    reach = uniform((n_samples, 1, 1), 2.0, 3.0, generator)
    noise = torch.fft.fft2(torch.randn(n_samples, _SIDE, _SIDE, generator=generator))
    stream = noise * (-square / (2 * math.pi * reach).square()).exp()
    u, v = 1j * k_y * stream, -1j * k_x * stream
    slopes = [torch.fft.ifft2(1j * k * part).real for part in (u, v) for k in (k_x, k_y)]
    flow = torch.stack([torch.fft.ifft2(part).real for part in (u, v)], 1)
    speed = uniform((n_samples, 1, 1), 8, 25, generator)
    scale = speed / flow.square().sum(1).mean((1, 2), keepdim=True).sqrt()
    u_x, u_y, v_x, v_y = (scale * slope for slope in slopes)
    source = torch.fft.fft2(-_DENSITY * (u_x.square() + 2 * u_y * v_x + v_y.square()))
    pressure = torch.fft.ifft2(-source / square.clamp_min(1)).real
    return scale.unsqueeze(1) * flow, (pressure - pressure.mean((1, 2), keepdim=True)).unsqueeze(1)


class PressureField(nn.Module):
    """A U-shaped network whose convolutions go round the edges."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 24, 3, padding=1, padding_mode="circular")
        self.down = nn.Conv2d(24, 32, 3, padding=1, padding_mode="circular")
        self.middle1 = nn.Conv2d(32, 48, 3, padding=1, padding_mode="circular")
        self.middle2 = nn.Conv2d(48, 32, 3, padding=1, padding_mode="circular")
        self.up = nn.Conv2d(64, 24, 3, padding=1, padding_mode="circular")
        self.head = nn.Conv2d(48, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in Pa."""
        first = functional.gelu(self.enter(x / 10))
        second = functional.gelu(self.down(functional.avg_pool2d(first, 2)))
        x = functional.gelu(self.middle1(functional.avg_pool2d(second, 3)))
        x = functional.interpolate(functional.gelu(self.middle2(x)), scale_factor=3.0, mode="bilinear")
        x = functional.interpolate(self.up(torch.cat([x, second], 1)), scale_factor=2.0, mode="bilinear")
        return 100 * self.head(torch.cat([functional.gelu(x), first], 1))


def _flows_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, pressure = _flows(size, generator)
    return functional.mse_loss(model(x) / 100, pressure / 100)


def _flows_score(model: nn.Module, generator: torch.Generator) -> float:
    x, pressure = _flows(800, generator)
    return float(100 * ((model(x) - pressure).square().sum() / pressure.square().sum()).sqrt())


KINDS: tuple[Kind, ...] = (
    Kind(
        name="pressure-field",
        build=PressureField,
        loss=_flows_loss,
        inputs=lambda n, generator: _flows(n, generator)[0],
        measure=_flows_score,
        measured="relative error of the pressure, %",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=1000,
        batch=24,
        lr=4e-3,
        macs=0.2,
    ),
)
