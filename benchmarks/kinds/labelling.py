# SPDX-License-Identifier: Apache-2.0
"""Networks that say something about a picture as a whole: labels, any number of them; rare classes; ages."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    Residual,
    conv,
    inputs_of,
    loss_of,
    mean_average_precision,
    measure_of,
    paint,
    shape_masks,
    smooth,
    uniform,
)


def _parts(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to four things of six types, light or dark: twelve labels (N, 12)."""
    picture, labels = 0.3 * smooth(n, 1, 32, generator), torch.zeros(n, 12)
    for centre in ((8, 8), (24, 8), (8, 24), (24, 24)):
        index = torch.randint(6, (n,), generator=generator)
        tone = torch.randint(2, (n,), generator=generator)
        there = torch.rand(n, generator=generator) < 0.6
        at = torch.tensor(centre) + uniform((n, 2), -2, 2, generator)
        turn = uniform((n,), -0.4, 0.4, generator)
        mask = shape_masks(index, at, uniform((n, 2), 4.5, 7, generator), 32, turn) * there[:, None, None]
        picture = paint(picture, mask, (2.0 * tone - 1)[:, None] * uniform((n, 1), 0.7, 1.5, generator))
        labels[torch.arange(n), 2 * index + tone] += there.float()
    return picture + 0.5 * torch.randn(picture.shape, generator=generator), labels.clamp_max(1)


def _label_net() -> nn.Module:
    return nn.Sequential(
        conv(1, 24),
        conv(24, 32, stride=2),
        Residual(32),
        nn.ReLU(),
        conv(32, 48, stride=2),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 12),
    )


def _rare(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Things of ten types, red or blue, each of them seldom: twenty labels (N, 20)."""
    picture, labels = 0.5 + 0.1 * smooth(n, 3, 24, generator), torch.zeros(n, 20)
    share = torch.linspace(1, 0.25, 10)
    for centre in ((7, 12), (17, 12)):
        index = torch.multinomial(share, n, replacement=True, generator=generator)
        blue = torch.randint(2, (n,), generator=generator)
        there = torch.rand(n, generator=generator) < 0.45
        at = torch.tensor(centre) + uniform((n, 2), -2, 2, generator)
        mask = shape_masks(index, at, uniform((n, 2), 4, 6, generator), 24) * there[:, None, None]
        colour = torch.tensor([[0.9, 0.2, 0.3], [0.2, 0.3, 0.9]])[blue]
        picture = paint(picture, mask, colour + 0.1 * torch.randn(n, 3, generator=generator))
        labels[torch.arange(n), 2 * index + blue] += there.float()
    return picture + 0.05 * torch.randn(picture.shape, generator=generator), labels.clamp_max(1)


def _tag_net() -> nn.Module:
    act = nn.Mish()
    return nn.Sequential(
        conv(3, 24, act),
        nn.AvgPool2d(2),
        conv(24, 40, act),
        nn.AvgPool2d(2),
        conv(40, 32, act),
        nn.Flatten(),
        nn.Linear(32 * 36, 24),
        nn.LayerNorm(24),
        act,
        nn.Linear(24, 20),
        nn.Sigmoid(),
    )


class Attention(nn.Module):
    """A transformer block, normalised before each part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input, (N, T, C)."""
        # (3, N, heads, T, C / heads)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """A vision transformer over 5 x 5 patches, with a token for the class."""

    def __init__(self, width: int = 40, n_classes: int = 7) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, 26, width))
        self.blocks = nn.Sequential(Attention(width, 4), Attention(width, 4), Attention(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 7) logits from (N, 3, 20, 20)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x)[:, 0]))


_SHARES = torch.tensor([0.55, 0.2, 0.1, 0.06, 0.04, 0.03, 0.02])


def _imbalanced(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seven types of shapes, of which the first is more than half."""
    target = torch.multinomial(_SHARES, n, replacement=True, generator=generator)
    types = torch.tensor([0, 1, 2, 3, 5, 6, 8])
    mask = shape_masks(types[target], uniform((n, 2), 9, 11, generator), uniform((n, 2), 6, 8, generator), 20)
    picture = paint(0.3 * smooth(n, 3, 20, generator), mask, uniform((n, 3), 0.5, 1.5, generator))
    return picture + 0.2 * torch.randn(picture.shape, generator=generator), target


def _balanced_accuracy(logits: Tensor, target: Tensor) -> float:
    right = (logits.argmax(1) == target).float()
    return 100 * sum(float(right[target == k].mean()) for k in range(7)) / 7


def _portraits(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A face that greys and wrinkles with age; years (N,), 0 to 80 (in practice more of the young)."""
    age = 80 * torch.rand(n, generator=generator).pow(1.3)
    share = (age / 80)[:, None]
    disc = torch.zeros(n, dtype=torch.long)
    centre, radius = uniform((n, 2), 15, 17, generator), uniform((n, 2), 9, 11, generator)
    picture = 0.4 + 0.1 * smooth(n, 3, 32, generator)
    hair = torch.lerp(torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.8, 0.8, 0.8]), share)
    hair = hair + 0.08 * torch.randn(n, 1, generator=generator)
    picture = paint(picture, shape_masks(disc, centre - torch.tensor([0.0, 2.0]), radius * 1.2, 32), hair)
    skin = torch.tensor([0.85, 0.65, 0.5]) * uniform((n, 1), 0.6, 1.1, generator)
    face = shape_masks(disc, centre, radius, 32)
    picture = paint(picture, face, skin)
    wrinkles = smooth(n, 1, 32, generator, coarse=14) * face[:, None] * 0.12 * share[:, :, None, None]
    for side in (-1, 1):
        eye = centre + radius * torch.tensor([0.4 * side, -0.2])
        # Children have large eyes.
        picture = paint(picture, shape_masks(disc, eye, radius * (0.24 - 0.1 * share), 32), skin * 0.3)
    return (picture + wrinkles + 0.03 * torch.randn(picture.shape, generator=generator)) * 255, age


class AgeNet(nn.Module):
    """Logits of 40 bins of two years each; the age is their expectation (DEX, Rothe et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 40, 3, 2, 1),
            nn.ReLU(),
        )
        self.fc6, self.fc8 = nn.Linear(640, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 40)."""
        return self.fc8(functional.relu(self.fc6(self.features((x - 120) / 60).flatten(1))))


def _bin_loss(logits: Tensor, age: Tensor) -> Tensor:
    return functional.cross_entropy(logits, (age / 2).long().clamp_max(39))


def _years_off(logits: Tensor, age: Tensor) -> float:
    expected = logits.softmax(1) @ (2.0 * torch.arange(40) + 1)
    return float((expected - age).abs().mean())


KINDS = (
    Kind(
        name="multi-label",
        build=_label_net,
        loss=loss_of(_parts, functional.binary_cross_entropy_with_logits),
        inputs=inputs_of(_parts),
        measure=measure_of(_parts, mean_average_precision, 1500),
        measured="mean average precision of the labels, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("categorical", "gaussian")},
        steps=900,
        lr=5e-3,
        macs=0.2,
    ),
    Kind(
        name="tags",
        build=_tag_net,
        loss=loss_of(_rare, functional.binary_cross_entropy),
        inputs=inputs_of(_rare),
        measure=measure_of(_rare, mean_average_precision, 3000),
        measured="mean average precision of the labels, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("categorical", "gaussian")},
        steps=1000,
        lr=4e-3,
        macs=0.35,
    ),
    Kind(
        name="vit-classifier",
        build=Vit,
        loss=loss_of(_imbalanced, functional.cross_entropy),
        inputs=inputs_of(_imbalanced),
        measure=measure_of(_imbalanced, _balanced_accuracy, 4000),
        measured="balanced accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1500,
        lr=2e-3,
        macs=0.25,
    ),
    Kind(
        name="age-bins",
        build=AgeNet,
        loss=loss_of(_portraits, _bin_loss),
        inputs=inputs_of(_portraits),
        measure=measure_of(_portraits, _years_off, 1500),
        measured="mean error, years",
        higher_is_better=False,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1200,
        lr=2e-3,
        macs=0.4,
    ),
)
