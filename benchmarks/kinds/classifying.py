# SPDX-License-Identifier: Apache-2.0
"""Classifiers of pictures: one class each."""

import math
from functools import cache, partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    N_SHAPES,
    Residual,
    accuracy,
    conv,
    grid,
    inputs_of,
    loss_of,
    measure_of,
    paint,
    photos,
    shape_masks,
    smooth,
    uniform,
)


def _shape_net() -> nn.Module:
    return nn.Sequential(
        conv(3, 24),
        nn.MaxPool2d(2),
        conv(24, 32),
        conv(32, 32),
        nn.MaxPool2d(2),
        conv(32, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, N_SHAPES),
    )


def _shapes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One turned shape on a smooth ground, and noise; which of ten it is."""
    target = torch.randint(N_SHAPES, (n,), generator=generator)
    mask = shape_masks(
        target,
        uniform((n, 2), 9, 15, generator),
        uniform((n, 2), 6, 9, generator),
        24,
        uniform((n,), -math.pi / 5, math.pi / 5, generator),
    )
    picture = 0.4 * smooth(n, 3, 24, generator)
    picture = paint(picture, mask, uniform((n, 3), -1.5, 1.5, generator))
    return picture + 0.25 * torch.randn(picture.shape, generator=generator), target


def _spots(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tissue with or without a dark spot that has a rim: 1 of 4 has one; all have dark specks without."""
    ill = (torch.rand(n, generator=generator) < 0.25).long()
    picture = 120 + 18 * smooth(n, 1, 28, generator, coarse=7)
    for rim in (torch.zeros(n), torch.zeros(n), ill):
        centre, radius = uniform((n, 2), 5, 23, generator), uniform((n, 2), 3, 4.5, generator)
        index = torch.where(rim > 0, 4, 0)
        depth = uniform((n, 1, 1, 1), 25, 60, generator)
        picture = picture - depth * shape_masks(index, centre, radius, 28)[:, None]
        picture = (
            picture - 0.6 * depth * shape_masks(torch.zeros_like(index), centre, radius * 0.4, 28)[:, None]
        )
    return (picture + 5 * torch.randn(picture.shape, generator=generator)).clamp(0, 255), ill


class TwoClasses(nn.Module):
    """Grey values in 0 to 255 in, logits of two classes out; residual, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, nn.ELU(), stride=2)
        self.blocks = nn.Sequential(Residual(32, act=nn.ELU()), nn.MaxPool2d(2), Residual(32, act=nn.ELU()))
        self.fc1, self.fc2 = nn.Linear(32, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2)."""
        return self.fc2(functional.elu(self.fc1(self.blocks(self.stem((x - 110) / 30)).amax((2, 3)))))


def _hue_shapes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ten types of shapes in ten hues: a hundred classes."""
    index, hue = torch.randint(10, (2, n), generator=generator)
    mask = shape_masks(index, uniform((n, 2), 8, 12, generator), uniform((n, 2), 6, 9, generator), 20)
    phase = 2 * math.pi * hue[:, None] / 10 + torch.tensor([0, 2.1, 4.2])
    colour = 0.8 * torch.cos(phase) + 0.1 * torch.randn(n, 3, generator=generator)
    picture = paint(0.2 * smooth(n, 3, 20, generator), mask, colour)
    return picture + 0.35 * torch.randn(picture.shape, generator=generator), 10 * index + hue


def _hundred_net() -> nn.Module:
    act = nn.SiLU()
    return nn.Sequential(
        nn.Conv2d(3, 28, 3, padding=1),
        act,
        nn.MaxPool2d(2),
        nn.Conv2d(28, 40, 3, padding=1),
        act,
        nn.MaxPool2d(2),
        nn.Conv2d(40, 24, 3, padding=1),
        act,
        nn.Flatten(),
        nn.Linear(600, 32),
        act,
        nn.Linear(32, 100),
    )


@cache
def _written_digits(test: bool) -> tuple[Tensor, Tensor]:
    """Every third digit is for tests."""
    data = load_digits()
    rows = (torch.arange(len(data.target)) % 3 == 0) == test
    return torch.tensor(data.images)[rows].float(), torch.tensor(data.target)[rows]


def _digits(n: int, generator: torch.Generator, *, test: bool) -> tuple[Tensor, Tensor]:
    """Written digits, 8 pixels a side, in 0 to 16, with noise."""
    pictures, classes = _written_digits(test)
    chosen = torch.randint(len(classes), (n,), generator=generator)
    picture = pictures[chosen][:, None]
    return picture + 2 * torch.randn(picture.shape, generator=generator), classes[chosen]


_train_digits, _test_digits = partial(_digits, test=False), partial(_digits, test=True)


class Probabilities(nn.Module):
    """A multilayer perceptron that ends in softmax, as one writes it for Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 96),
            nn.ReLU(),
            nn.Linear(96, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 10), sums to one."""
        return self.net((x - 5) / 6).softmax(1)


def _log_of_true(probabilities: Tensor, target: Tensor) -> Tensor:
    return functional.nll_loss(probabilities.clamp_min(1e-7).log(), target)


def _gratings(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stripes of four directions and three widths in noise: twelve classes."""
    direction, width = (
        torch.randint(4, (n,), generator=generator),
        torch.randint(3, (n,), generator=generator),
    )
    angle = direction * math.pi / 4 + 0.12 * torch.randn(n, generator=generator)
    period = torch.tensor([4.0, 6.0, 9.0])[width] * (1 + 0.08 * torch.randn(n, generator=generator))
    x, y = grid(24)
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    phase = uniform((n, 1, 1), 0, 2 * math.pi, generator)
    stripes = torch.sin(2 * math.pi * along / period[:, None, None] + phase)[:, None]
    strength = uniform((n, 3, 1, 1), 0.3, 1, generator)
    picture = strength * stripes + 0.5 * smooth(n, 3, 24, generator)
    return picture + 0.9 * torch.randn(picture.shape, generator=generator), 3 * direction + width


class ConvNext(nn.Module):
    """ConvNeXt in small: patches, depthwise convolutions, layer norm, GELU."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.ModuleList(
            [nn.Conv2d(width, width, 5, padding=2, groups=width) for _ in range(3)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.ups = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(3)])
        self.downs = nn.ModuleList([nn.Linear(3 * width, width) for _ in range(3)])
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 12) logits."""
        x = self.stem(x)
        for depthwise, norm, up, down in zip(self.depthwise, self.norms, self.ups, self.downs, strict=False):
            y = norm(depthwise(x).permute(0, 2, 3, 1))
            x = x + down(functional.gelu(up(y))).permute(0, 3, 1, 2)
        return self.head(self.norms[3](x.mean((2, 3))))


def _smoothed_yes_no(logits: Tensor, target: Tensor) -> Tensor:
    """Of timm: every class is a question of its own; a tenth of the answer is spread over all."""
    answers = 0.9 * functional.one_hot(target, logits.shape[1]) + 0.1 / logits.shape[1]
    return functional.binary_cross_entropy_with_logits(logits, answers)


def _one_logit_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(24, 32, 3, 2, 1),
        nn.GroupNorm(4, 32),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 48, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(768, 1),
    )


def _pasted(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of which half have had a piece of another pasted in, with a soft edge; (N, 1) which."""
    picture, other = photos(2 * n, 32, generator, n_shapes=2).chunk(2)
    mask = shape_masks(
        torch.zeros(n, dtype=torch.long),
        uniform((n, 2), 10, 22, generator),
        uniform((n, 2), 7, 10, generator),
        32,
    )
    mask = functional.avg_pool2d(mask[:, None], 3, 1, 1)
    fake = torch.randint(2, (n, 1), generator=generator).float()
    # The piece comes from a picture that was stored with loss: finest detail is gone.
    soft = functional.avg_pool2d(other + 0.05 * torch.randn(other.shape, generator=generator), 3, 1, 1)
    picture = picture + 0.05 * torch.randn(picture.shape, generator=generator)
    return torch.lerp(picture, soft, mask * fake[:, :, None, None]), fake


def _yes_no_accuracy(logits: Tensor, target: Tensor) -> float:
    return 100 * float(((logits > 0) == (target > 0)).float().mean())


KINDS = (
    Kind(
        name="classifier-10",
        build=_shape_net,
        loss=loss_of(_shapes, functional.cross_entropy),
        inputs=inputs_of(_shapes),
        measure=measure_of(_shapes, accuracy, 2000),
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=900,
        lr=5e-3,
        macs=0.3,
    ),
    Kind(
        name="two-classes",
        build=TwoClasses,
        loss=loss_of(_spots, functional.cross_entropy),
        inputs=inputs_of(_spots),
        measure=measure_of(_spots, accuracy, 2000),
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=800,
        lr=4e-3,
        macs=0.12,
    ),
    Kind(
        name="classifier-100",
        build=_hundred_net,
        loss=loss_of(_hue_shapes, functional.cross_entropy),
        inputs=inputs_of(_hue_shapes),
        measure=measure_of(_hue_shapes, accuracy, 3000),
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1500,
        batch=48,
        lr=3e-3,
        macs=0.15,
    ),
    Kind(
        name="probabilities",
        build=Probabilities,
        loss=loss_of(_train_digits, _log_of_true),
        inputs=inputs_of(_train_digits),
        measure=measure_of(_test_digits, accuracy, 4000),
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1500,
        batch=64,
        lr=4e-3,
        macs=0.2,
    ),
    Kind(
        name="classifier-bce",
        build=ConvNext,
        loss=loss_of(_gratings, _smoothed_yes_no),
        inputs=inputs_of(_gratings),
        measure=measure_of(_gratings, accuracy, 3000),
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("gaussian",)},
        steps=1500,
        lr=3e-3,
        macs=0.25,
    ),
    Kind(
        name="one-logit",
        build=_one_logit_net,
        loss=loss_of(_pasted, functional.binary_cross_entropy_with_logits),
        inputs=inputs_of(_pasted),
        measure=measure_of(_pasted, _yes_no_accuracy, 2000),
        measured="accuracy, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("gaussian",)},
        steps=1200,
        macs=0.12,
    ),
)
