# SPDX-License-Identifier: Apache-2.0
"""Kinds on sound and other signals: pitch, clean waveforms, masks of spectrograms, parts of heartbeats."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import fixed, random_walk, uniform

# Pitch: samples per second, the lowest bin in Hz, cents between bins, as the pitch tracker CREPE has them.
_RATE, _LOWEST, _CENTS, _N_BINS = 8000, 40.0, 15.0, 360
_N_PARTS = 4


def _tones(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames of harmonic sounds (N, 512), each of mean 0 and spread 1, and their pitches in cents (N, 1)."""
    cents = uniform((n_samples, 1), 900, 4800, generator)
    hertz = _LOWEST * 2 ** (cents / 1200)
    time = torch.arange(512) / _RATE
    harmonics = torch.arange(1, 9).reshape(1, 8, 1)
    loudness = torch.randn(n_samples, 8, 1, generator=generator).exp() / harmonics
    phases = uniform((n_samples, 8, 1), 0, 2 * math.pi, generator)
    below_half_rate = hertz.unsqueeze(2) * harmonics < _RATE / 2
    waves = loudness * below_half_rate * (2 * math.pi * hertz.unsqueeze(2) * harmonics * time + phases).sin()
    sound = waves.sum(1)
    sound = sound / sound.std(1, keepdim=True)
    sound = sound + uniform((n_samples, 1), 0, 0.4, generator) * torch.randn(sound.shape, generator=generator)
    sound = sound - sound.mean(1, keepdim=True)
    return sound / sound.std(1, keepdim=True), cents


class Pitch(nn.Module):
    """Strided convolutions over a frame, then a probability for every bin of pitch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(1, 48, 128, stride=8, padding=64), nn.BatchNorm1d(48)
        self.conv2, self.norm2 = nn.Conv1d(48, 32, 9, stride=2, padding=4), nn.BatchNorm1d(32)
        self.conv3, self.norm3 = nn.Conv1d(32, 48, 5, stride=2, padding=2), nn.BatchNorm1d(48)
        self.head = nn.Linear(48, _N_BINS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 360) probabilities, from (N, 512)."""
        x = self.norm1(self.conv1(x.unsqueeze(1)).relu())
        x = self.norm2(self.conv2(x).relu())
        x = self.norm3(self.conv3(x).relu())
        return self.head(x.amax(-1)).sigmoid()


def _pitch_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, cents = _tones(size, generator)
    bins = torch.arange(_N_BINS) * _CENTS
    target = (-((bins - cents) ** 2) / (2 * 25.0**2)).exp()
    return functional.binary_cross_entropy(model(x), target)


def _pitch_score(model: nn.Module, generator: torch.Generator) -> float:
    x, cents = _tones(6000, generator)
    probabilities = model(x)
    best = probabilities.argmax(1, keepdim=True)
    near = (torch.arange(_N_BINS) - best).abs() <= 4
    weights = probabilities * near
    found = (weights * torch.arange(_N_BINS) * _CENTS).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return float(((found - cents).abs() < 50).float().mean() * 100)


def _noisy_sounds(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy and clean waveforms (N, 1, 400) in -1..1: plucked strings that start within the window."""
    time = torch.arange(400) / _RATE
    starts = uniform((n_samples, 3, 1), -0.03, 0.035, generator)
    since = time - starts
    hertz = 2 ** uniform((n_samples, 3, 1), math.log2(110), math.log2(880), generator)
    decay = uniform((n_samples, 3, 1), 20, 90, generator)
    plucks = (since > 0) * (-decay * since.clamp_min(0)).exp() * (2 * math.pi * hertz * since).sin()
    bright = (since > 0) * (-3 * decay * since.clamp_min(0)).exp() * (4 * math.pi * hertz * since).sin()
    loudness = uniform((n_samples, 1, 1), 0.1, 0.35, generator)
    clean = (loudness * (plucks + 0.5 * bright)).sum(1, keepdim=True).clamp(-1, 1)
    return clean + 0.08 * torch.randn(clean.shape, generator=generator), clean


class WaveformDenoiser(nn.Module):
    """An autoencoder over time: two steps down, two up, with skips, a tanh at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv1d(1, 24, 15, padding=7), nn.Conv1d(24, 40, 9, stride=2, padding=4)
        self.down3, self.middle = nn.Conv1d(40, 48, 9, stride=2, padding=4), nn.Conv1d(48, 48, 5, padding=2)
        self.up1, self.up2 = nn.Conv1d(48, 40, 5, padding=2), nn.Conv1d(40, 24, 9, padding=4)
        self.head = nn.Conv1d(24, 1, 15, padding=7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, L) in -1..1."""
        first = functional.leaky_relu(self.down1(x), 0.1)
        second = functional.leaky_relu(self.down2(first), 0.1)
        x = functional.leaky_relu(self.down3(second), 0.1)
        x = functional.leaky_relu(self.middle(x), 0.1)
        x = functional.leaky_relu(self.up1(functional.interpolate(x, scale_factor=2)), 0.1) + second
        x = functional.leaky_relu(self.up2(functional.interpolate(x, scale_factor=2)), 0.1) + first
        return self.head(x).tanh()


def _waveform_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    noisy, clean = _noisy_sounds(size, generator)
    return functional.mse_loss(model(noisy), clean)


def _signal_to_noise(estimate: Tensor, clean: Tensor) -> float:
    """Of all samples together, in dB."""
    return float(10 * (clean.square().sum() / (estimate - clean).square().sum()).log10())


def _waveform_score(model: nn.Module, generator: torch.Generator) -> float:
    noisy, clean = _noisy_sounds(600, generator)
    return _signal_to_noise(model(noisy), clean)


def _mixtures(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Magnitude spectrograms (N, 40, 32) of a voice with noise, and of the voice alone."""
    bands = torch.arange(40).reshape(1, 40, 1)
    pitch = 4.5 + 1.2 * random_walk(n_samples, 32, 0.95, generator).tanh().unsqueeze(1)
    pitch = pitch + uniform((n_samples, 1, 1), -0.6, 2.0, generator)
    comb = (4 * ((2 * math.pi * bands / pitch).cos() - 1)).exp()
    formant = uniform((n_samples, 1, 1), 6, 30, generator) + 3 * random_walk(
        n_samples, 32, 0.9, generator
    ).unsqueeze(1)
    envelope = (-((bands - formant) ** 2) / 160).exp()
    is_voiced = (random_walk(n_samples, 32, 0.9, generator) > -0.5).unsqueeze(1)
    voice = 3 * is_voiced * comb * envelope * uniform((n_samples, 1, 1), 0.4, 1.6, generator)
    colour = (0.8 * fixed(6, 40, seed=41))[torch.randint(0, 6, (n_samples,), generator=generator)]
    spread = torch.randn(n_samples, 2, 40, 32, generator=generator).square().sum(1).sqrt()
    noise = 0.25 * uniform((n_samples, 1, 1), 0.5, 1.8, generator) * colour.exp().unsqueeze(2) * spread
    return (voice.square() + noise.square()).sqrt(), voice


class SpectrogramMask(nn.Module):
    """Convolutions over time on all bands, a mask in 0..1 for every band and frame."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(40, 72, 3, padding=1)
        self.norm = nn.GroupNorm(1, 72)
        self.conv1 = nn.Conv1d(72, 72, 3, padding=1)
        self.conv2 = nn.Conv1d(72, 72, 3, padding=2, dilation=2)
        self.head = nn.Conv1d(72, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, T), as the input."""
        x = self.norm(self.enter((x + 1e-3).log()))
        x = x + functional.silu(self.conv1(functional.silu(x)))
        x = x + functional.silu(self.conv2(x))
        return self.head(x).sigmoid()


def _mask_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    mixture, voice = _mixtures(size, generator)
    return functional.mse_loss(model(mixture) * mixture, voice)


def _mask_score(model: nn.Module, generator: torch.Generator) -> float:
    mixture, voice = _mixtures(2500, generator)
    return _signal_to_noise(model(mixture) * mixture, voice)


def _heartbeats(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Electrocardiograms in millivolts (N, 1, 250), and the part of every step (N, 250).

    Parts are 0 rest, 1 the P wave, 2 the QRS complex, 3 the T wave.
    """
    time = torch.arange(250).float()
    period = uniform((n_samples, 1), 70, 130, generator)
    signal, labels = torch.zeros(n_samples, 250), torch.zeros(n_samples, 250, dtype=torch.long)
    start = uniform((n_samples, 1), -1, 0, generator) * period
    qrs_width = uniform((n_samples, 1), 5, 11, generator)
    has_p = uniform((n_samples, 1), 0, 1, generator) > 0.1
    heights = uniform((3, n_samples, 1), 0.5, 1.5, generator)
    flips = torch.where(uniform((n_samples, 1), 0, 1, generator) > 0.2, 1.0, -0.6)
    for _ in range(5):
        beat = start + 3 * torch.randn(n_samples, 1, generator=generator)
        parts = (
            (1, beat - 0.17 * period, 9.0, 0.14 * heights[0] * has_p, has_p),
            (2, beat, qrs_width, 1.1 * heights[1], True),
            (3, beat + 0.3 * period, 17.0, 0.25 * heights[2] * flips, True),
        )
        for part, middle, width, height, is_there in parts:
            away = (time - middle) / (width / 2)
            shape = (-2 * away**2).exp()
            if part == 2:
                shape = (-4 * away**2).exp() - 0.35 * (-6 * (away - 0.8) ** 2).exp()
            signal = signal + height * shape
            labels = torch.where((away.abs() < 1) & is_there, part, labels)
        start = start + period
    drift = 0.15 * (time / uniform((n_samples, 1), 20, 90, generator)).sin()
    noise = 0.04 * random_walk(n_samples, 250, 0.5, generator)
    return (signal + drift + noise).unsqueeze(1), labels


class SignalSegmentation(nn.Module):
    """A U-shaped network over time."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv1d(1, 24, 9, padding=4), nn.BatchNorm1d(24)
        self.down2, self.norm2 = nn.Conv1d(24, 32, 7, padding=3), nn.BatchNorm1d(32)
        self.down3, self.norm3 = nn.Conv1d(32, 40, 5, padding=2), nn.BatchNorm1d(40)
        self.up2, self.norm4 = nn.Conv1d(72, 32, 5, padding=2), nn.BatchNorm1d(32)
        self.up1, self.norm5 = nn.Conv1d(56, 24, 5, padding=2), nn.BatchNorm1d(24)
        self.head = nn.Conv1d(24, _N_PARTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) logits."""
        first = self.norm1(self.down1(x)).relu()
        second = self.norm2(self.down2(functional.max_pool1d(first, 2))).relu()
        x = self.norm3(self.down3(functional.max_pool1d(second, 5))).relu()
        x = self.norm4(self.up2(torch.cat([functional.interpolate(x, scale_factor=5.0), second], 1))).relu()
        x = self.norm5(self.up1(torch.cat([functional.interpolate(x, scale_factor=2.0), first], 1))).relu()
        return self.head(x)


def _heartbeats_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, labels = _heartbeats(size, generator)
    return functional.cross_entropy(model(x), labels)


def _heartbeats_score(model: nn.Module, generator: torch.Generator) -> float:
    x, labels = _heartbeats(1000, generator)
    found = model(x).argmax(1)
    shares = []
    for part in range(_N_PARTS):
        both = ((found == part) & (labels == part)).sum()
        shares.append(float(both / ((found == part) | (labels == part)).sum()))
    return 100 * sum(shares) / _N_PARTS


KINDS: tuple[Kind, ...] = (
    Kind(
        name="pitch",
        build=Pitch,
        loss=_pitch_loss,
        inputs=lambda n, generator: _tones(n, generator)[0],
        measure=_pitch_score,
        measured="frames within 50 cents, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("categorical",)},
        steps=2500,
        batch=48,
        lr=4e-3,
        macs=0.45,
    ),
    Kind(
        name="waveform",
        build=WaveformDenoiser,
        loss=_waveform_loss,
        inputs=lambda n, generator: _noisy_sounds(n, generator)[0],
        measure=_waveform_score,
        measured="signal to noise, dB",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=1200,
        batch=16,
        macs=0.1,
    ),
    Kind(
        name="spectrogram-mask",
        build=SpectrogramMask,
        loss=_mask_loss,
        inputs=lambda n, generator: _mixtures(n, generator)[0],
        measure=_mask_score,
        measured="signal to noise, dB",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("categorical", "gaussian")},
        steps=1200,
        batch=24,
        macs=0.45,
    ),
    Kind(
        name="signal-segmentation",
        build=SignalSegmentation,
        loss=_heartbeats_loss,
        inputs=lambda n, generator: _heartbeats(n, generator)[0],
        measure=_heartbeats_score,
        measured="mean intersection over union, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1000,
        batch=24,
        macs=0.1,
    ),
)
