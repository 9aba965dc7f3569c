# SPDX-License-Identifier: Apache-2.0
"""Kinds on rows of tables: several targets, classes, many heads, mixtures."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import cross_entropy, fixed, uniform

_N_COMPONENTS, _N_HEADS = 5, 16


def _houses(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of twelve features, and five targets (N, 5).

    They are price in dollars, energy in kWh per square metre and year, rent in dollars per month, days on the
    market, share of the ground that is built on.
    """
    area = (4.7 + 0.4 * torch.randn(n_samples, generator=generator)).exp()
    rooms = (area / 25 + 0.7 * torch.randn(n_samples, generator=generator)).round().clamp(1, 9)
    age, distance = uniform((n_samples,), 0, 110, generator), uniform((n_samples,), 0.5, 35, generator)
    place = torch.randn(n_samples, 3, generator=generator)
    is_flat = (uniform((n_samples,), 0, 1, generator) < 0.4).float()
    heating, floor, garden = (
        uniform((n_samples,), 0, 1, generator),
        torch.randint(0, 12, (n_samples,), generator=generator) * is_flat,
        uniform((n_samples,), 0, 900, generator) * (1 - is_flat),
    )
    season = uniform((n_samples,), 0, 12, generator)
    quality = (place @ fixed(3, 6, seed=71)).tanh().mean(1)
    square_metre = 4200 * (-distance / 22).exp() * (1 + 0.6 * quality) * (1.15 - 0.3 * (age / 60 - 1).tanh())
    price = area * square_metre + 90 * garden + 6000 * floor
    energy = 45 + 1.1 * age * (1.3 - heating) + 25 * (1 - is_flat) + 900 / area
    rent = price**0.7 / 9 * (1 + 0.2 * is_flat) + 30 * rooms
    days = 12 + 50 * (price / 3e5) * (1 - 0.6 * quality) * (1.2 + (season / 12 * 2 * math.pi).cos())
    built = area / (1 + 2 * is_flat) / (area / (1 + 2 * is_flat) + garden + 60)
    targets = torch.stack([price, energy, rent, days, built], 1)
    targets = targets * (1 + 0.03 * torch.randn(targets.shape, generator=generator))
    columns = [area, rooms, age, distance, *place.unbind(1), is_flat, heating, floor, garden, season]
    return torch.stack(columns, 1), targets


class TabularRegression(nn.Module):
    """A multilayer perceptron with the scales of features and targets inside."""

    features: Tensor
    targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        x, y = _houses(4000, torch.Generator().manual_seed(3))
        self.register_buffer("features", torch.stack([x.mean(0), x.std(0)]))
        # Prices in thousands, since float16 ends at 65504.
        self.register_buffer("targets", torch.stack([y.mean(0), y.std(0)]) / 1000)
        self.body = nn.Sequential(
            nn.Linear(12, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 64), nn.SiLU()
        )
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) in the units of the targets."""
        mean, spread = self.targets * 1000
        return mean + spread * self.head(self.body((x - self.features[0]) / self.features[1]))


def _houses_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, y = _houses(size, generator)
    return functional.mse_loss((model(x) - y) / (model.targets[1] * 1000), torch.zeros_like(y))


def _houses_score(model: nn.Module, generator: torch.Generator) -> float:
    x, y = _houses(20000, generator)
    return float((100 * (1 - (model(x) - y).square().mean(0) / y.var(0))).mean())


def _plants(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of ten measured lengths in millimetres, and one of three species (N,), the last one rare."""
    shares = torch.tensor([0.55, 0.35, 0.10])
    species = torch.multinomial(shares, n_samples, replacement=True, generator=generator)
    hidden = torch.randn(n_samples, 4, generator=generator) + 0.9 * fixed(3, 4, seed=72)[species]
    bent = torch.cat([hidden, hidden.square() * 0.5, (2 * hidden).sin()], 1)
    noise = 2.0 * torch.randn(n_samples, 10, generator=generator)
    return 40 + 4 * bent @ fixed(12, 10, seed=73) * 0.5 + noise, species


class TabularClasses(nn.Module):
    """Dense layers with batch norm and dropout, as for small tables."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)
        self.body = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2)
        )
        self.more = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        return self.head(self.more(self.body(self.norm(x))))


def _plants_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    # All there is to learn from are the same two thousand rows.
    x, species = _plants(2000, torch.Generator().manual_seed(5))
    rows = torch.randint(0, 2000, (size,), generator=generator)
    return cross_entropy(model(x[rows]), species[rows])


def _plants_score(model: nn.Module, generator: torch.Generator) -> float:
    x, species = _plants(40000, generator)
    found = model(x).argmax(1)
    recalls = [float((found[species == index] == index).float().mean()) for index in range(3)]
    return 100 * sum(recalls) / 3


def _sensors(n_samples: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """Rows of 32 readings, and sixteen targets (N, 1) of different sizes."""
    x = torch.randn(n_samples, 32, generator=generator)
    x = x @ (0.2 * fixed(32, 32, seed=77)) + x
    hidden = (x @ (0.25 * fixed(32, 20, seed=78))).sin()
    targets = hidden @ (0.5 * fixed(20, _N_HEADS, seed=79)) + 0.3 * (x[:, :_N_HEADS] * x[:, _N_HEADS:])
    targets = targets + 0.1 * torch.randn(n_samples, _N_HEADS, generator=generator)
    sizes = torch.logspace(-1, 2, _N_HEADS)
    return x, list((3 * sizes + sizes * targets).split(1, 1))


class ManyHeads(nn.Module):
    """One body and a head of its own for every target, each with the target's size inside."""

    sizes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.last = nn.Linear(32, 160), nn.Linear(160, 128), nn.Linear(128, 96)
        self.heads = nn.ModuleList(nn.Linear(96, 1) for _ in range(_N_HEADS))
        self.register_buffer("sizes", torch.logspace(-1, 2, _N_HEADS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Sixteen times (N, 1)."""
        x = functional.gelu(self.enter(x))
        x = functional.gelu(self.last(functional.gelu(self.middle(x))))
        return [size * head(x) for size, head in zip(self.sizes, self.heads, strict=True)]


def _sensors_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, targets = _sensors(size, generator)
    found = torch.cat(model(x), 1)
    return ((found - torch.cat(targets, 1)) / model.sizes).square().mean()


def _sensors_score(model: nn.Module, generator: torch.Generator) -> float:
    x, targets = _sensors(10000, generator)
    explained = [1 - (a - b).square().mean() / b.var() for a, b in zip(model(x), targets, strict=True)]
    return float(100 * sum(explained) / _N_HEADS)


def _throws(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is known of a throw (N, 8), and one of the places where it may land, in metres (N, 1)."""
    x = torch.randn(n_samples, 8, generator=generator)
    places = 12 + 6 * (x @ (0.4 * fixed(8, 3, seed=83))).sin() + torch.tensor([-6.0, 0.0, 7.0])
    chances = (2 * (x @ (0.5 * fixed(8, 3, seed=84))).tanh()).softmax(-1)
    chosen = torch.multinomial(chances, 1, generator=generator)
    spread = 0.3 + 0.5 * x[:, :1].sigmoid()
    return x, places.gather(1, chosen) + spread * torch.randn(n_samples, 1, generator=generator)


class Mixture(nn.Module):
    """Dense layers to the parameters of a mixture of normal distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 96), nn.ELU(), nn.Linear(96, 96), nn.ELU(), nn.Linear(96, 64), nn.ELU()
        )
        self.pi, self.mu = nn.Linear(64, _N_COMPONENTS), nn.Linear(64, _N_COMPONENTS)
        self.log_sigma = nn.Linear(64, _N_COMPONENTS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits ``pi``, means ``mu`` in metres, ``log_sigma``: (N, 5) each."""
        x = self.body(x)
        return {"pi": self.pi(x), "mu": 12 + 8 * self.mu(x), "log_sigma": self.log_sigma(x)}


def _throws_terms(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, place = _throws(size, generator)
    parts = model(x)
    log_sigma = parts["log_sigma"].clamp_min(-4)
    away = (place - parts["mu"]) * (-log_sigma).exp()
    log_p = parts["pi"].log_softmax(1) - away.square() / 2 - log_sigma - math.log(2 * math.pi) / 2
    return -log_p.logsumexp(1)


def _throws_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    return _throws_terms(model, size, generator).mean()


def _throws_score(model: nn.Module, generator: torch.Generator) -> float:
    return float(_throws_terms(model, 40000, generator).mean())


KINDS: tuple[Kind, ...] = (
    Kind(
        name="tabular-regression",
        build=TabularRegression,
        loss=_houses_loss,
        inputs=lambda n, generator: _houses(n, generator)[0],
        measure=_houses_score,
        measured="explained variance, mean of the five targets, %",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=5000,
        batch=64,
        macs=0.3,
    ),
    Kind(
        name="tabular-classes",
        build=TabularClasses,
        loss=_plants_loss,
        inputs=lambda n, generator: _plants(n, generator)[0],
        measure=_plants_score,
        measured="mean recall of the classes, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=2000,
        batch=64,
        lr=3e-3,
        macs=0.1,
    ),
    Kind(
        name="many-heads",
        build=ManyHeads,
        loss=_sensors_loss,
        inputs=lambda n, generator: _sensors(n, generator)[0],
        measure=_sensors_score,
        measured="explained variance, mean of the heads, %",
        higher_is_better=True,
        right={str(index): "gaussian" for index in range(_N_HEADS)},
        steps=4000,
        batch=64,
        macs=0.6,
    ),
    Kind(
        name="mixture",
        build=Mixture,
        loss=_throws_loss,
        inputs=lambda n, generator: _throws(n, generator)[0],
        measure=_throws_score,
        measured="negative log-likelihood, nats",
        higher_is_better=False,
        right={"pi": "categorical", "mu": "gaussian", "log_sigma": "gaussian"},
        harmless={
            "pi": ("bernoulli", "gaussian"),
            "mu": ("categorical",),
            "log_sigma": ("categorical", "bernoulli"),
        },
        steps=5000,
        batch=128,
        macs=0.1,
    ),
)
