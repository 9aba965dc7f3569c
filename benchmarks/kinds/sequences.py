# SPDX-License-Identifier: Apache-2.0
"""Kinds that read a sequence of symbols out of pictures or sound: classes for every position."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import accuracy, cross_entropy, fixed, random_walk, uniform

# The words of the text recogniser: 36 signs and the end.
_N_SIGNS, _LONGEST, _PITCH = 36, 20, 5
_N_SYMBOLS, _N_FRAMES, _N_BANDS = 14, 64, 24
_N_PHONEMES = 39


def _strips(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strips of text (N, 1, 16, 100), grey values in 0..1, and their signs (N, 20), ended by sign 36."""
    glyphs = (fixed(_N_SIGNS, 10, 5, seed=11) > 0.1).float()
    glyphs = torch.cat([glyphs, torch.zeros(1, 10, 5)])
    lengths = torch.randint(3, 13, (n_samples, 1), generator=generator)
    # Some signs are far more common than others.
    common = (fixed(_N_SIGNS, seed=12)).softmax(0)
    signs = torch.multinomial(common, n_samples * _LONGEST, replacement=True, generator=generator)
    signs = signs.reshape(n_samples, _LONGEST)
    signs = torch.where(torch.arange(_LONGEST) < lengths, signs, _N_SIGNS)
    ink = glyphs[signs].permute(0, 2, 1, 3).flatten(2)  # (N, 10, 100)
    strips = functional.pad(ink, (0, 0, 3, 3))
    # Every strip moves as one, by up to two pixels down and one to the side.
    down = torch.randint(-2, 3, (n_samples, 1, 1), generator=generator)
    side = torch.randint(-1, 2, (n_samples, 1, 1), generator=generator)
    rows = (torch.arange(16).reshape(1, 16, 1) + down) % 16
    columns = (torch.arange(100).reshape(1, 1, 100) + side) % 100
    strips = strips[torch.arange(n_samples).reshape(-1, 1, 1), rows, columns]
    contrast = uniform((n_samples, 1, 1), 0.4, 0.8, generator)
    paper = uniform((n_samples, 1, 1), 0.8, 1.0, generator)
    noise = 0.1 * torch.randn(strips.shape, generator=generator)
    return (paper - contrast * strips + noise).clamp(0, 1).unsqueeze(1), signs


class TextRecogniser(nn.Module):
    """Convolutions down to one row of columns, a layer over neighbours, classes for 20 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.norm2 = nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.columns = nn.Conv2d(32, 56, (4, 5), stride=(4, 5))
        self.around = nn.Conv1d(56, 56, 3, padding=1)
        self.head = nn.Linear(56, _N_SIGNS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 20, 37) logits."""
        x = functional.max_pool2d(self.norm1(self.conv1(x)).relu(), (2, 1))
        x = functional.max_pool2d(self.norm2(self.conv2(x)).relu(), (2, 1))
        x = self.columns(x).squeeze(2).relu()
        x = x + self.around(x).relu()
        return self.head(x.transpose(1, 2))


def _strips_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, signs = _strips(size, generator)
    return cross_entropy(model(x), signs)


def _strips_score(model: nn.Module, generator: torch.Generator) -> float:
    x, signs = _strips(2000, generator)
    return float((model(x).argmax(-1) == signs).all(1).float().mean() * 100)


def _utterances(n_samples: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Log spectra (N, 64, 24), the symbols said (N, 10) from 1 on, and how many they are (N,)."""
    sounds = 1.5 * fixed(_N_SYMBOLS + 1, 2, _N_BANDS, seed=21)
    sounds[0] = -2.0
    counts = torch.randint(5, 11, (n_samples,), generator=generator)
    symbols = torch.randint(1, _N_SYMBOLS + 1, (n_samples, 10), generator=generator)
    lengths = torch.randint(3, 7, (n_samples, 10), generator=generator)
    starts = lengths.cumsum(1) - lengths + torch.randint(0, 5, (n_samples, 1), generator=generator)
    frames = torch.arange(_N_FRAMES).reshape(1, -1, 1)
    since = frames - starts.unsqueeze(1)  # (N, T, 10)
    inside = (since >= 0) & (since < lengths.unsqueeze(1)) & (torch.arange(10) < counts.reshape(-1, 1, 1))
    said = (inside * symbols.unsqueeze(1)).sum(-1)
    progress = (inside * since / lengths.unsqueeze(1)).sum(-1, keepdim=True)
    spectra = sounds[said, 0] * (1 - progress) + sounds[said, 1] * progress
    speaker = 0.4 * torch.randn(n_samples, 1, _N_BANDS, generator=generator)
    return spectra + speaker + noise * torch.randn(spectra.shape, generator=generator), symbols, counts


def _ctc_loss(log_p: Tensor, symbols: Tensor, counts: Tensor) -> Tensor:
    """Connectionist temporal classification; ``log_p`` is (T, N, C), the blank comes first."""
    lengths = torch.full((log_p.shape[1],), log_p.shape[0])
    return functional.ctc_loss(log_p, symbols, lengths, counts, zero_infinity=True)


def _read_right(best: Tensor, symbols: Tensor, counts: Tensor) -> float:
    """Share of the sequences read without a fault, in percent; ``best`` is (N, T), the best symbols."""
    right = 0
    for row, said, count in zip(best, symbols, counts, strict=True):
        read = row.unique_consecutive()
        right += read[read > 0].tolist() == said[:count].tolist()
    return 100 * right / len(best)


class ConvolutionCtc(nn.Module):
    """Convolutions over time, two frames in one, log-probabilities with the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(_N_BANDS, 48, 5, padding=2),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Conv1d(48, 64, 5, padding=2),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Conv1d(64, 64, 3, padding=1),
            nn.BatchNorm1d(64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, _N_SYMBOLS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) logarithms of probabilities."""
        return self.head(self.body(x.transpose(1, 2)).transpose(1, 2)).log_softmax(-1)


def _ctc_convolution_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, symbols, counts = _utterances(size, 0.8, generator)
    return _ctc_loss(model(x).transpose(0, 1), symbols, counts)


def _ctc_convolution_score(model: nn.Module, generator: torch.Generator) -> float:
    x, symbols, counts = _utterances(2500, 0.8, generator)
    return _read_right(model(x).argmax(-1), symbols, counts)


class RecurrentCtc(nn.Module):
    """Linear layers and a recurrent one in both directions; time comes first, as the loss takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(_N_BANDS, 96), nn.LayerNorm(96)
        self.mix = nn.Linear(96, 48)
        self.recurrent = nn.GRU(48, 20, bidirectional=True)
        self.out = nn.Linear(40, 96)
        self.head = nn.Linear(96, _N_SYMBOLS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, C) logits."""
        x = self.mix(functional.gelu(self.norm(self.up(x)))).transpose(0, 1)
        x, _ = self.recurrent(functional.gelu(x))
        return self.head(functional.gelu(self.out(x)))


def _ctc_recurrent_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, symbols, counts = _utterances(size, 1.2, generator)
    return _ctc_loss(model(x).log_softmax(-1), symbols, counts)


def _ctc_recurrent_score(model: nn.Module, generator: torch.Generator) -> float:
    x, symbols, counts = _utterances(2500, 1.2, generator)
    return _read_right(model(x).argmax(-1).T, symbols, counts)


def _speech_frames(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (N, 40, 20) and the phoneme of every frame (N, 40), from 39."""
    chances = (2 * fixed(_N_PHONEMES, _N_PHONEMES, seed=31)).softmax(1)
    means = 1.2 * fixed(_N_PHONEMES, 20, seed=32)
    # Neighbours sound alike: an s and a z, an m and an n.
    means[1::2] = means[:-1:2] + 0.4 * means[1::2]
    state = torch.randint(0, _N_PHONEMES, (n_samples,), generator=generator)
    states = []
    for _ in range(40):
        stays = torch.rand(n_samples, generator=generator) < 0.75
        following = torch.multinomial(chances[state], 1, generator=generator).squeeze(1)
        state = torch.where(stays, state, following)
        states.append(state)
    labels = torch.stack(states, 1)
    clear = functional.avg_pool1d(
        functional.pad(means[labels].transpose(1, 2), (1, 1), "replicate"), 3, stride=1
    )
    wander = random_walk(n_samples * 20, 40, 0.7, generator).reshape(n_samples, 20, 40)
    return (clear + 0.7 * wander).transpose(1, 2), labels


class Phonemes(nn.Module):
    """A time-delay network that ends in probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(20, 56, 5, padding=2), nn.Conv1d(56, 56, 3, padding=2, dilation=2)
        self.conv3 = nn.Conv1d(56, 56, 3, padding=3, dilation=3)
        self.norm = nn.LayerNorm(56)
        self.head = nn.Linear(56, _N_PHONEMES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) probabilities."""
        x = self.conv1(x.transpose(1, 2)).relu()
        x = x + self.conv2(x).relu()
        x = x + self.conv3(x).relu()
        return self.head(self.norm(x.transpose(1, 2))).softmax(-1)


def _phonemes_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, labels = _speech_frames(size, generator)
    return functional.nll_loss(model(x).clamp_min(1e-8).log().flatten(0, 1), labels.flatten())


def _phonemes_score(model: nn.Module, generator: torch.Generator) -> float:
    x, labels = _speech_frames(1500, generator)
    return accuracy(model(x), labels)


KINDS: tuple[Kind, ...] = (
    Kind(
        name="text-recogniser",
        build=TextRecogniser,
        loss=_strips_loss,
        inputs=lambda n, generator: _strips(n, generator)[0],
        measure=_strips_score,
        measured="words read without a fault, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=900,
        batch=32,
        macs=0.45,
    ),
    Kind(
        name="ctc",
        build=ConvolutionCtc,
        loss=_ctc_convolution_loss,
        inputs=lambda n, generator: _utterances(n, 0.8, generator)[0],
        measure=_ctc_convolution_score,
        measured="utterances read without a fault, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1500,
        batch=32,
        macs=0.2,
    ),
    Kind(
        name="ctc-time-first",
        build=RecurrentCtc,
        loss=_ctc_recurrent_loss,
        inputs=lambda n, generator: _utterances(n, 1.2, generator)[0],
        measure=_ctc_recurrent_score,
        measured="utterances read without a fault, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1800,
        batch=32,
        lr=4e-3,
        macs=0.6,
    ),
    Kind(
        name="phonemes",
        build=Phonemes,
        loss=_phonemes_loss,
        inputs=lambda n, generator: _speech_frames(n, generator)[0],
        measure=_phonemes_score,
        measured="frames of the right phoneme, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1500,
        batch=32,
        macs=0.45,
    ),
)
