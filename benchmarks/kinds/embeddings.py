# SPDX-License-Identifier: Apache-2.0
"""Kinds whose output is an embedding: of unit length, raw, from a layer norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import fixed, uniform

_N_WORDS, _N_THEMES = 160, 24


def _voices(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two recordings each (N, 40) of as many speakers: statistics of spectra, in dB."""
    speaker = torch.randn(n_samples, 10, generator=generator)
    recordings = []
    for _ in range(2):
        room = torch.randn(n_samples, 6, generator=generator)
        hidden = (speaker @ fixed(10, 30, seed=61) * 0.5 + room @ fixed(6, 30, seed=62) * 0.5).tanh()
        clear = 8 * hidden @ fixed(30, 40, seed=63) * 0.5
        recordings.append(clear - 30 + 2.0 * torch.randn(n_samples, 40, generator=generator))
    return recordings[0], recordings[1]


class UnitEmbedding(nn.Module):
    """A multilayer perceptron that ends on the unit sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(40, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, 96),
            nn.BatchNorm1d(96),
            nn.ReLU(),
        )
        self.projection = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 32))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 32) of unit length."""
        return functional.normalize(self.projection(self.body((x + 30) / 15)), dim=1)


def _contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Every first is to find its own second among all of the batch, and the other way round."""
    similarity = first @ second.T / temperature
    labels = torch.arange(len(first))
    return (functional.cross_entropy(similarity, labels) + functional.cross_entropy(similarity.T, labels)) / 2


def _recall(first: Tensor, second: Tensor, *, n_rivals: int) -> float:
    """Share of the first ones whose nearest second one is their own, in percent, among so many."""
    hits = []
    for start in range(0, len(first), n_rivals):
        distances = torch.cdist(first[start : start + n_rivals], second[start : start + n_rivals])
        hits.append(distances.argmin(1) == torch.arange(len(distances)))
    return float(torch.cat(hits).float().mean() * 100)


def _voices_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    first, second = _voices(size, generator)
    return _contrast(model(first), model(second), 0.07)


def _voices_score(model: nn.Module, generator: torch.Generator) -> float:
    first, second = _voices(10000, generator)
    return _recall(model(first), model(second), n_rivals=500)


def _marks(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two pictures each (N, 1, 20, 20) of as many marks: five spots, seen moved, paled and with noise."""
    places = uniform((n_samples, 5, 2), 5, 15, generator)
    widths = uniform((n_samples, 5, 1, 1), 1.0, 2.2, generator)
    signs = torch.where(uniform((n_samples, 5, 1, 1), 0, 1, generator) < 0.5, 1.0, -1.0)
    grid = torch.arange(20).float()
    pictures = []
    for _ in range(2):
        turn = 0.3 * torch.randn(n_samples, 1, 1, generator=generator)
        away = places - 10
        turned = torch.stack(
            [
                away[..., 0] * turn[..., 0].cos() - away[..., 1] * turn[..., 0].sin(),
                away[..., 0] * turn[..., 0].sin() + away[..., 1] * turn[..., 0].cos(),
            ],
            -1,
        )
        moved = turned + 10 + 1.2 * torch.randn(n_samples, 1, 2, generator=generator)
        down = (grid.reshape(1, 1, 20, 1) - moved[..., 0, None, None]) / widths
        across = (grid.reshape(1, 1, 1, 20) - moved[..., 1, None, None]) / widths
        picture = (signs * (-(down.square() + across.square()) / 2).exp()).sum(1, keepdim=True)
        picture = picture * uniform((n_samples, 1, 1, 1), 0.6, 1.2, generator)
        pictures.append(picture + 0.12 * torch.randn(picture.shape, generator=generator))
    return pictures[0], pictures[1]


class RawEmbedding(nn.Module):
    """Convolutions, then a linear layer whose output is used as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 5, padding=2),
            nn.PReLU(24),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 40, 3, padding=1),
            nn.PReLU(40),
            nn.MaxPool2d(2),
            nn.Conv2d(40, 48, 3, padding=1),
            nn.PReLU(48),
        )
        self.head = nn.Linear(48 * 25, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 24)."""
        return self.head(self.body(x).flatten(1))


def _marks_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    first, second = _marks(size, generator)
    anchors, positives = model(first), model(second)
    distances = torch.cdist(anchors, positives)
    own = distances.diagonal()
    # The hardest of the others is the negative.
    others = distances + 1e4 * torch.eye(size)
    return (own - others.amin(1) + 1).relu().mean() + (own - others.amin(0) + 1).relu().mean()


def _marks_score(model: nn.Module, generator: torch.Generator) -> float:
    first, second = _marks(3000, generator)
    return _recall(model(first), model(second), n_rivals=250)


def _paragraphs(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two paragraphs each (N, 24) about as many subjects: a subject is a mixture of a few themes."""
    themes = (3.0 * fixed(_N_THEMES, _N_WORDS, seed=64)).softmax(-1)
    mixture = (3.0 * torch.randn(n_samples, _N_THEMES, generator=generator)).softmax(-1)
    chances = 0.8 * mixture @ themes + 0.2 / _N_WORDS
    first, second = (torch.multinomial(chances, 24, replacement=True, generator=generator) for _ in range(2))
    return first, second


class NormEmbedding(nn.Module):
    """Embedded words through layers of their own, their mean, a layer norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_N_WORDS, 48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.pooled, self.out = nn.Linear(48, 96), nn.Linear(96, 40)
        self.norm = nn.LayerNorm(40)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, 40), each of mean 0 and spread 1 before the weights of the norm."""
        x = self.embedding(ids)
        x = (x + self.down(functional.gelu(self.up(x)))).mean(1)
        return self.norm(self.out(functional.gelu(self.pooled(x))))


def _paragraphs_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    first, second = _paragraphs(size, generator)
    return _contrast(functional.normalize(model(first)), functional.normalize(model(second)), 0.1)


def _paragraphs_score(model: nn.Module, generator: torch.Generator) -> float:
    first, second = _paragraphs(8000, generator)
    return _recall(functional.normalize(model(first)), functional.normalize(model(second)), n_rivals=100)


KINDS: tuple[Kind, ...] = (
    Kind(
        name="embedding-unit",
        build=UnitEmbedding,
        loss=_voices_loss,
        inputs=lambda n, generator: _voices(n, generator)[0],
        measure=_voices_score,
        measured="recall@1 among 500, %",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=2500,
        batch=128,
        macs=0.45,
    ),
    Kind(
        name="embedding-raw",
        build=RawEmbedding,
        loss=_marks_loss,
        inputs=lambda n, generator: _marks(n, generator)[0],
        measure=_marks_score,
        measured="recall@1 among 250, %",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=700,
        batch=48,
        macs=0.15,
    ),
    Kind(
        name="embedding-norm",
        build=NormEmbedding,
        loss=_paragraphs_loss,
        inputs=lambda n, generator: _paragraphs(n, generator)[0],
        measure=_paragraphs_score,
        measured="recall@1 among 100, %",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=2000,
        batch=96,
        macs=0.45,
    ),
)
