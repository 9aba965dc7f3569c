# SPDX-License-Identifier: Apache-2.0
"""Networks that give pictures back: sharper, cleaner, coloured, drawn anew."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    N_SHAPES,
    Residual,
    UNet,
    colours,
    conv,
    inputs_of,
    loss_of,
    measure_of,
    paint,
    photos,
    psnr,
    shape_masks,
    smooth,
    uniform,
)


class SuperResolution(nn.Module):
    """EDSR in small: RGB in 0 to 255 in, twice the size out."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(Residual(channels, norm=False), Residual(channels, norm=False))
        self.up = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 2 H, 2 W)."""
        x = self.head((x - 127.5) / 127.5)
        x = functional.pixel_shuffle(self.up(x + self.body(x)), 2)
        return self.tail(x) * 127.5 + 127.5


def _small_and_large(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    large = 255 * functional.avg_pool2d(photos(n, 64, generator), 2)
    return functional.avg_pool2d(large, 2), large


class Denoise(nn.Module):
    """DnCNN in small: what it predicts is the noise, which it takes off; RGB in 0 to 1."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.noise = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ReLU(),
            conv(channels, channels),
            conv(channels, channels),
            conv(channels, channels),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return x - self.noise(x)


def _noisy_and_clean(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = photos(n, 28, generator)
    return clean + 0.15 * torch.randn(clean.shape, generator=generator), clean


class Diffusion(nn.Module):
    """A U-Net of one level that predicts the noise in a picture at a time of 0 to 999."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 2 * width))
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = nn.Sequential(
            nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        )
        self.up = nn.Conv2d(2 * width, width, 1)
        self.leave = nn.Sequential(
            nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(N, 3, H, W) from x of that shape and t of shape (N,)."""
        waves = t[:, None].float() * torch.exp(-torch.arange(8) * 1.0)
        a = self.enter(x)
        b = self.down(a) + self.time(torch.cat([waves.sin(), waves.cos()], 1))[:, :, None, None]
        b = functional.interpolate(self.up(b + self.middle(b)), scale_factor=2.0)
        return self.leave(torch.cat([a, b], 1))


def _diffused(n: int, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Pictures at a drawn time of the cosine schedule (Nichol & Dhariwal 2021), and the noise in them."""
    clean = 2 * photos(n, 16, generator, n_shapes=2) - 1
    t = torch.randint(1000, (n,), generator=generator)
    angle = ((t + 1) / 1000 * math.pi / 2)[:, None, None, None]
    noise = torch.randn(clean.shape, generator=generator)
    return (angle.cos() * clean + angle.sin() * noise, t), noise


def _mean_squared_error(output: Tensor, target: Tensor) -> float:
    return float(functional.mse_loss(output, target))


class Vae(nn.Module):
    """A variational autoencoder of grey pictures in 0 to 1, 16 pixels a side."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU())
        self.fc_mu, self.fc_logvar = nn.Linear(512, latent), nn.Linear(512, latent)
        self.fc = nn.Linear(latent, 512)
        self.dec1, self.dec2 = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 24, 3, padding=1)
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (N, 1, 16, 16) in 0 to 1."""
        x = functional.relu(self.fc(z)).unflatten(1, (32, 4, 4))
        x = functional.interpolate(functional.relu(self.dec1(x)), scale_factor=2.0)
        x = functional.interpolate(functional.relu(self.dec2(x)), scale_factor=2.0)
        return self.out(x).sigmoid()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Picture, mean and log variance of the latent; without noise (N, latent) the picture of the mean."""
        x = self.enc(x).flatten(1)
        mu, logvar = self.fc_mu(x), self.fc_logvar(x)
        z = mu if noise is None else mu + noise * (logvar / 2).exp()
        return self.decode(z), mu, logvar


def _grey_shapes(n: int, generator: torch.Generator) -> Tensor:
    """One turned shape each, light on dark, with soft edges."""
    mask = shape_masks(
        torch.randint(4, (n,), generator=generator),
        uniform((n, 2), 12, 20, generator),
        uniform((n, 1), 6, 12, generator).expand(n, 2),
        32,
        uniform((n,), 0, math.pi / 2, generator),
    )
    light = uniform((n, 1, 1, 1), 0.6, 1, generator)
    return light * functional.avg_pool2d(mask[:, None], 2)


def _negative_elbo(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    x = _grey_shapes(n, generator)
    picture, mu, logvar = model(x, torch.randn(n, 8, generator=generator))
    divergence = (mu.square() + logvar.exp() - 1 - logvar).sum() / 2
    return (functional.binary_cross_entropy(picture, x, reduction="sum") + divergence) / n


class Autoencoder(nn.Module):
    """Pictures in -1 to 1 through a bottleneck of 48 numbers; tanh at the end, as generators have it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.2)
        self.enc = nn.Sequential(
            conv(3, width, act, 5, 2), conv(width, width, act, stride=2), conv(width, 3, act, stride=2)
        )
        self.dec = nn.Sequential(
            conv(3, 2 * width),
            nn.Upsample(scale_factor=2),
            conv(2 * width, width),
            nn.Upsample(scale_factor=2),
            conv(width, width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 3, 5, padding=2),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return self.dec(self.enc(x))


def _strong_pictures(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures in -1 to 1 of strong contrast; the target is the input."""
    picture = torch.tanh(smooth(n, 3, 32, generator, coarse=2) * 1.5)
    mask = shape_masks(
        torch.randint(2, (n,), generator=generator),
        uniform((n, 2), 8, 24, generator),
        uniform((n, 2), 6, 12, generator),
        32,
    )
    picture = paint(picture, mask, 4 * colours(n, 3, generator) - 2).clamp(-1, 1)
    return picture, picture


# Hue of a shape by its type, in radians in the plane of a and b.
_HUES = torch.arange(N_SHAPES) * 2 * math.pi / N_SHAPES


class Colour(nn.Module):
    """Lightness of 0 to 100 in, a and b of Lab out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(1, 2, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W), about -110 to 110."""
        return self.net((x - 50) / 100) * 110


def _light_and_colour(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shapes of which each type has its hue, before a ground whose colour goes with its lightness."""
    light = 50 + 12 * smooth(n, 1, 32, generator)
    ab = torch.cat([-0.5 * (light - 30), 60 - light], 1)
    for _ in range(2):
        index = torch.tensor([0, 1, 2, 3, 6])[torch.randint(5, (n,), generator=generator)]
        mask = shape_masks(index, uniform((n, 2), 5, 27, generator), uniform((n, 2), 5, 8, generator), 32)
        bright = 100 * colours(n, 1, generator)
        chroma = 40 + 0.3 * bright[:, 0]
        light = paint(light, mask, bright)
        ab = paint(ab, mask, chroma[:, None] * torch.stack([_HUES[index].cos(), _HUES[index].sin()], 1))
    return light + 1.5 * torch.randn(light.shape, generator=generator), ab


def _mean_distance(output: Tensor, target: Tensor) -> float:
    return float((output - target).norm(dim=1).mean())


KINDS = (
    Kind(
        name="super-resolution",
        build=SuperResolution,
        loss=loss_of(_small_and_large, functional.l1_loss),
        inputs=inputs_of(_small_and_large),
        measure=measure_of(_small_and_large, psnr(255), 500),
        measured="PSNR, dB",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=700,
        batch=16,
        lr=3e-3,
        macs=0.25,
    ),
    Kind(
        name="denoise",
        build=Denoise,
        loss=loss_of(_noisy_and_clean, functional.mse_loss),
        inputs=inputs_of(_noisy_and_clean),
        measure=measure_of(_noisy_and_clean, psnr(1), 400),
        measured="PSNR, dB",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=500,
        batch=16,
        lr=3e-3,
        macs=0.3,
    ),
    Kind(
        name="diffusion",
        build=Diffusion,
        loss=loss_of(_diffused, functional.mse_loss),
        inputs=inputs_of(_diffused),
        measure=measure_of(_diffused, _mean_squared_error, 2000),
        measured="mean squared error of the noise",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=1500,
        lr=3e-3,
        macs=0.4,
    ),
    Kind(
        name="vae",
        build=Vae,
        loss=_negative_elbo,
        inputs=_grey_shapes,
        measure=lambda model, generator: float(_negative_elbo(model, 2000, generator)),
        measured="negative evidence bound, nats a picture",
        higher_is_better=False,
        right={"0": "bernoulli", "1": "gaussian", "2": "gaussian"},
        harmless={"0": ("gaussian",), "1": ("categorical", "bernoulli"), "2": ("categorical", "bernoulli")},
        steps=1500,
        lr=3e-3,
        macs=0.15,
    ),
    Kind(
        name="tanh-pictures",
        build=Autoencoder,
        loss=loss_of(_strong_pictures, functional.l1_loss),
        inputs=inputs_of(_strong_pictures),
        measure=measure_of(_strong_pictures, psnr(2), 400),
        measured="PSNR, dB",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=600,
        batch=16,
        lr=4e-3,
        macs=0.15,
    ),
    Kind(
        name="colour",
        build=Colour,
        loss=loss_of(_light_and_colour, functional.smooth_l1_loss),
        inputs=inputs_of(_light_and_colour),
        measure=measure_of(_light_and_colour, _mean_distance, 300),
        measured="mean distance in a and b, Lab units",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=500,
        batch=16,
        lr=4e-3,
        macs=0.3,
    ),
)
