# SPDX-License-Identifier: Apache-2.0
"""Kinds that act: a policy with a value, values of actions, a policy of continuous actions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import uniform

# Up, down, left, right; the grids of the values also have "stay".
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_MAZE, _ROOM = 8, 7


def _neighbours(values: Tensor) -> Tensor:
    """Values of the fields that moves lead to (N, 4, H, W); edges lead back to the field itself."""
    padded = functional.pad(values.unsqueeze(1), (1, 1, 1, 1), "replicate").squeeze(1)
    height, width = values.shape[1:]
    return torch.stack([padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in _MOVES], 1)


def _one_hot(index: Tensor, side: int) -> Tensor:
    """Grids (N, side, side) with a one at a flat index (N,)."""
    return functional.one_hot(index, side * side).float().reshape(-1, side, side)


def _at(fields: Tensor, agent: Tensor) -> Tensor:
    """Values (N, A) of fields (N, A, H, W) where the agent (N, H, W) stands."""
    return (fields * agent.unsqueeze(1)).sum((2, 3))


def _mazes(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mazes (N, 3, 8, 8) of walls, goal and agent; which moves are best (N, 4), as shares; values (N, 1).

    The goal pays 10, every step costs 0.5; what lies behind no path is worth nothing.
    """
    walls = (torch.rand(n_samples, _MAZE, _MAZE, generator=generator) < 0.2).float()
    goal = _one_hot(torch.randint(0, _MAZE**2, (n_samples,), generator=generator), _MAZE)
    agent = _one_hot(torch.randint(0, _MAZE**2, (n_samples,), generator=generator), _MAZE)
    walls = walls * (1 - goal) * (1 - agent)
    values = 10 * goal
    for _ in range(24):
        reached = _neighbours(values * (1 - walls))
        values = torch.where(goal > 0, 10.0, (reached.amax(1) - 0.5).clamp_min(0.0))
    after = _at(_neighbours(values * (1 - walls)), agent)
    best = (after >= after.amax(1, keepdim=True) - 1e-4).float()
    value = _at(values.unsqueeze(1), agent)
    return torch.stack([walls, goal, agent], 1), best / best.sum(1, keepdim=True), value


class PolicyAndValue(nn.Module):
    """Residual convolutions over the maze, then a head for the moves and one for the value."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 32, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))
        self.reduce = nn.Conv2d(32, 4, 1)
        self.dense = nn.Linear(4 * _MAZE**2, 48)
        self.policy, self.value = nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the moves (N, 4) and values (N, 1)."""
        agent = x[:, 2:]
        x = self.enter(x).relu()
        for conv in self.convs:
            x = x + conv(x).relu()
        # What is known where the agent stands counts most.
        x = self.reduce(x) * (0.2 + agent)
        x = self.dense(x.flatten(1)).relu()
        return self.policy(x), self.value(x)


def _mazes_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, best, value = _mazes(size, generator)
    logits, found = model(x)
    return functional.cross_entropy(logits, best) + 0.1 * functional.mse_loss(found, value)


def _mazes_score(model: nn.Module, generator: torch.Generator) -> float:
    x, best, value = _mazes(3000, generator)
    logits, found = model(x)
    chosen = best.gather(1, logits.argmax(1, keepdim=True)) > 0
    explained = 1 - (found - value).square().mean() / value.var()
    return float(50 * chosen.float().mean() + 50 * explained)


def _rooms(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rooms (N, 3, 7, 7) of pits, coin and agent, and the exact values of the five actions (N, 5).

    The coin pays 1 and ends, a pit pays -1 and ends, a move slips to a side every fifth time; steps discount
    by 0.95.
    """
    pits = (torch.rand(n_samples, _ROOM, _ROOM, generator=generator) < 0.15).float()
    coin = _one_hot(torch.randint(0, _ROOM**2, (n_samples,), generator=generator), _ROOM)
    agent = _one_hot(torch.randint(0, _ROOM**2, (n_samples,), generator=generator), _ROOM)
    agent = torch.where((agent * coin).sum((1, 2), keepdim=True) > 0, agent.flip(1), agent)
    pits = pits * (1 - coin) * (1 - agent)
    values, actions = coin - pits, coin
    for _ in range(20):
        up, down, left, right = _neighbours(values).unbind(1)
        aside, upright = 0.1 * (left + right), 0.1 * (up + down)
        moves = [0.8 * up + aside, 0.8 * down + aside, 0.8 * left + upright, 0.8 * right + upright, values]
        actions = 0.95 * torch.stack(moves, 1)
        values = torch.where(coin + pits > 0, coin - pits, actions.amax(1))
    return torch.stack([pits, coin, agent], 1), _at(actions, agent)


class ActionValues(nn.Module):
    """Convolutions and two dense layers, as networks that learn from values have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 24, 3, stride=2, padding=1)
        self.dense, self.head = nn.Linear(24 * 16, 80), nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) discounted returns."""
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.conv3(x).relu()
        return self.head(self.dense(x.flatten(1)).relu())


def _rooms_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, returns = _rooms(size, generator)
    return functional.smooth_l1_loss(model(x), returns, beta=0.1)


def _rooms_score(model: nn.Module, generator: torch.Generator) -> float:
    x, returns = _rooms(5000, generator)
    chosen = returns.gather(1, model(x).argmax(1, keepdim=True))
    best, chance = returns.amax(1).mean(), returns.mean()
    return float(100 * (chosen.mean() - chance) / (best - chance))


def _arms(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """States (N, 13) of a robot's arm, and an expert's torques (N, 3), who is less exact far from the goal.

    States are sines and cosines of three angles, three speeds, two coordinates of the goal, two of the tip.
    """
    angles = uniform((n_samples, 3), -1.6, 1.6, generator)
    speeds = 1.5 * torch.randn(n_samples, 3, generator=generator)
    goal = uniform((n_samples, 2), -2, 2, generator)
    sums = angles.cumsum(1)
    lengths = torch.tensor([1.0, 0.8, 0.5])
    tip = torch.stack([(lengths * sums.cos()).sum(1), (lengths * sums.sin()).sum(1)], 1)
    away = goal - tip
    # Torques along the gradient of the distance (the transposed Jacobian), against the speeds.
    behind = (lengths * sums.sin()).flip(1).cumsum(1).flip(1)
    beside = (lengths * sums.cos()).flip(1).cumsum(1).flip(1)
    torques = 3 * (away[:, :1] * -behind + away[:, 1:] * beside) - 1.5 * speeds
    mean = 2 * (torques / 4).tanh()
    spread = 0.08 + 0.12 * away.norm(dim=1, keepdim=True) * torch.tensor([1.0, 0.6, 0.4])
    states = torch.cat([angles.sin(), angles.cos(), speeds, goal, tip], 1)
    return states, mean + spread * torch.randn(n_samples, 3, generator=generator)


class GaussianPolicy(nn.Module):
    """A body of dense layers with two heads: mean and logarithm of the spread."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(13, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh()
        )
        self.mean, self.log_std = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, 3) and logarithm of the standard deviation (N, 3)."""
        x = self.body(x)
        return self.mean(x), self.log_std(x).clamp(-5, 2)


def _unlikelihood(model: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
    mean, log_std = model(states)
    return (0.5 * ((actions - mean) * (-log_std).exp()).square() + log_std).sum(1).mean()


def _arms_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    return _unlikelihood(model, *_arms(size, generator))


def _arms_score(model: nn.Module, generator: torch.Generator) -> float:
    return float(_unlikelihood(model, *_arms(20000, generator)))


KINDS: tuple[Kind, ...] = (
    Kind(
        name="policy-value",
        build=PolicyAndValue,
        loss=_mazes_loss,
        inputs=lambda n, generator: _mazes(n, generator)[0],
        measure=_mazes_score,
        measured="mean of best moves and explained variance of values, %",
        higher_is_better=True,
        right={"0": "categorical", "1": "gaussian"},
        harmless={"0": ("bernoulli", "gaussian"), "1": ("bernoulli",)},
        steps=2500,
        batch=64,
        macs=0.1,
    ),
    Kind(
        name="q-values",
        build=ActionValues,
        loss=_rooms_loss,
        inputs=lambda n, generator: _rooms(n, generator)[0],
        measure=_rooms_score,
        measured="return of the best action found, from chance 0 to 100",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=1500,
        batch=64,
        macs=0.15,
    ),
    Kind(
        name="gaussian-policy",
        build=GaussianPolicy,
        loss=_arms_loss,
        inputs=lambda n, generator: _arms(n, generator)[0],
        measure=_arms_score,
        measured="negative log-likelihood of the expert's actions, nats",
        higher_is_better=False,
        right={"0": "gaussian", "1": "gaussian"},
        harmless={"0": ("categorical", "bernoulli"), "1": ("categorical", "bernoulli")},
        steps=6000,
        batch=128,
        macs=0.3,
    ),
)
