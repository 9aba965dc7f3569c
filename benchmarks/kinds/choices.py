# SPDX-License-Identifier: Apache-2.0
"""Kinds on what people do and what happens to them: clicks, hazards over time, rankings."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import area_under_curve, fixed, uniform

_N_IDS, _N_FIELDS = 40, 8
_N_INTERVALS, _N_CANDIDATES = 10, 20


def _visits(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight categories of each visit (N, 8), each of 40, and whether it ended in a click (N, 1)."""
    popular = (1.2 * fixed(_N_FIELDS, _N_IDS, seed=74)).softmax(-1)
    ids = torch.multinomial(popular, n_samples, replacement=True, generator=generator).T
    vectors = 0.9 * fixed(_N_FIELDS, _N_IDS, 4, seed=75)
    single = 0.5 * fixed(_N_FIELDS, _N_IDS, seed=76)
    fields = torch.arange(_N_FIELDS)
    drawn = vectors[fields, ids]  # (N, 8, 4)
    pairs = (drawn.sum(1).square() - drawn.square().sum(1)).sum(1) / 2
    logit = single[fields, ids].sum(1) + 0.35 * pairs - 4.4
    return ids, (uniform((n_samples,), 0, 1, generator) < logit.sigmoid()).float().unsqueeze(1)


class Click(nn.Module):
    """Embedded categories into dense layers, the probability of a click at the end."""

    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_N_FIELDS * _N_IDS, 8)
        self.register_buffer("offsets", torch.arange(_N_FIELDS) * _N_IDS)
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.more = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, 1) probabilities."""
        x = self.embedding(ids + self.offsets).flatten(1)
        return self.head(self.more(self.body(x))).sigmoid()


def _visits_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    ids, clicked = _visits(size, generator)
    return functional.binary_cross_entropy(model(ids), clicked)


def _visits_score(model: nn.Module, generator: torch.Generator) -> float:
    ids, clicked = _visits(60000, generator)
    return area_under_curve(model(ids).squeeze(1), clicked.squeeze(1) > 0)


def _patients(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, 15), the interval of the event or of the last visit (N,), whether the event was seen (N,)."""
    x = torch.randn(n_samples, 15, generator=generator)
    risk = 1.3 * (x @ (0.4 * fixed(15, 8, seed=80))).tanh() @ (0.6 * fixed(8, seed=81))
    early = (x[:, :3].sum(1) > 0).float().unsqueeze(1)
    times = torch.arange(_N_INTERVALS)
    hazard = (-3 + risk.unsqueeze(1) + 0.25 * times * (1 - 2 * early) + 1.5 * early).sigmoid()
    happens = uniform((n_samples, _N_INTERVALS), 0, 1, generator) < hazard
    event = torch.where(happens.any(1), happens.float().argmax(1), _N_INTERVALS)
    leaves = torch.randint(2, 2 * _N_INTERVALS, (n_samples,), generator=generator)
    last = torch.minimum(event, leaves).clamp_max(_N_INTERVALS - 1)
    return x, last, (event <= leaves) & (event < _N_INTERVALS)


class Hazard(nn.Module):
    """Dense layers to a logit for every interval: the event in it, if not before."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(15, 80), nn.LayerNorm(80), nn.ReLU(), nn.Linear(80, 80), nn.LayerNorm(80), nn.ReLU()
        )
        self.more, self.head = nn.Linear(80, 48), nn.Linear(48, _N_INTERVALS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 10) logits."""
        return self.head(self.more(self.body(x)).relu())


def _hazard_terms(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of every patient (N,), over the intervals in which the patient was seen."""
    x, last, is_event = _patients(size, generator)
    times = torch.arange(_N_INTERVALS)
    target = ((times == last.unsqueeze(1)) & is_event.unsqueeze(1)).float()
    terms = functional.binary_cross_entropy_with_logits(model(x), target, reduction="none")
    return (terms * (times <= last.unsqueeze(1))).sum(1)


def _hazard_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    return _hazard_terms(model, size, generator).mean()


def _hazard_score(model: nn.Module, generator: torch.Generator) -> float:
    return float(_hazard_terms(model, 40000, generator).mean())


def _queries(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Candidates of queries (N, 20, 16), and their relevance (N, 20), 0 to 4."""
    x = torch.randn(n_samples, _N_CANDIDATES, 16, generator=generator)
    query = torch.randn(n_samples, 1, 6, generator=generator).expand(-1, _N_CANDIDATES, -1)
    match = (x[..., :6] * query).sum(-1) + 1.5 * (x @ (0.5 * fixed(16, 10, seed=82))).sin().sum(-1) / 2
    match = match + 0.3 * torch.randn(match.shape, generator=generator)
    relevance = (1.3 * match - 0.8).clamp(0, 4).round()
    return torch.cat([x, query], -1), relevance


class Ranking(nn.Module):
    """The same dense layers for every candidate, a score at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(22, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU()
        )
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 20) scores."""
        return self.head(self.body(x)).squeeze(-1)


def _queries_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, relevance = _queries(size, generator)
    return functional.cross_entropy(
        model(x), (2**relevance - 1 + 1e-3) / (2**relevance - 1 + 1e-3).sum(1, True)
    )


def _queries_score(model: nn.Module, generator: torch.Generator) -> float:
    x, relevance = _queries(6000, generator)
    gains, discounts = 2**relevance - 1, 1 / (torch.arange(10) + 2.0).log2()
    found = gains.gather(1, model(x).argsort(1, descending=True)[:, :10]) @ discounts
    best = gains.sort(1, descending=True).values[:, :10] @ discounts
    return float(100 * (found / best.clamp_min(1e-6))[best > 0].mean())


KINDS: tuple[Kind, ...] = (
    Kind(
        name="click",
        build=Click,
        loss=_visits_loss,
        inputs=lambda n, generator: _visits(n, generator)[0],
        measure=_visits_score,
        measured="area under the ROC curve, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("gaussian",)},
        steps=4000,
        batch=256,
        macs=0.2,
    ),
    Kind(
        name="hazard",
        build=Hazard,
        loss=_hazard_loss,
        inputs=lambda n, generator: _patients(n, generator)[0],
        measure=_hazard_score,
        measured="negative log-likelihood of a patient, nats",
        higher_is_better=False,
        right={"": "bernoulli"},
        harmless={"": ("categorical", "gaussian")},
        steps=3000,
        batch=128,
        macs=0.15,
    ),
    Kind(
        name="ranking",
        build=Ranking,
        loss=_queries_loss,
        inputs=lambda n, generator: _queries(n, generator)[0],
        measure=_queries_score,
        measured="normalised discounted cumulative gain at 10, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=2500,
        batch=32,
        macs=0.2,
    ),
)
