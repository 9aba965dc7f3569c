# SPDX-License-Identifier: Apache-2.0
"""Networks that give every pixel a class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    Residual,
    UNet,
    colours,
    conv,
    grid,
    inputs_of,
    loss_of,
    mean_iou,
    measure_of,
    paint,
    shape_masks,
    smooth,
    uniform,
)


def _shapes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two small shapes on a ground; class 0 is the ground."""
    picture = 0.5 + 0.15 * smooth(n, 3, 32, generator)
    target = torch.zeros(n, 32, 32, dtype=torch.long)
    for _ in range(2):
        index = torch.randint(5, (n,), generator=generator)
        mask = shape_masks(
            torch.tensor([0, 1, 2, 3, 6])[index],
            uniform((n, 2), 4, 28, generator),
            uniform((n, 2), 5, 8, generator),
            32,
            uniform((n,), -math.pi / 8, math.pi / 8, generator),
        )
        picture = paint(picture, mask, colours(n, 3, generator))
        target = torch.where(mask > 0, index[:, None, None] + 1, target)
    return picture + 0.05 * torch.randn(picture.shape, generator=generator), target


def _organs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A grey scan with one bright organ and other bright things that are none; the organ (N, 1, H, W)."""
    picture = 0.25 * smooth(n, 1, 32, generator, coarse=6)
    mask = torch.zeros(n, 32, 32)
    bent = smooth(n, 1, 32, generator, coarse=4)[:, 0]
    for index, low, high in ((1, 2, 6), (0, 6, 10)):
        shape = torch.full((n,), index)
        centre, radius = uniform((n, 2), 8, 24, generator), uniform((n, 2), low, high, generator)
        mask = shape_masks(shape, centre, radius, 32, uniform((n,), 0, math.pi, generator))
        if index == 0:
            mask = mask * (bent > -0.8).float()
        picture = paint(picture, mask, uniform((n, 1), 0.3, 1.2, generator))
    picture = functional.avg_pool2d(picture, 3, 1, 1)
    return picture + 0.15 * torch.randn(picture.shape, generator=generator), mask[:, None]


def _dice_and_yes_no(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    dice = (2 * (p * target).sum((1, 2, 3)) + 1) / ((p + target).sum((1, 2, 3)) + 1)
    return 1 - dice.mean() + functional.binary_cross_entropy_with_logits(logits, target)


def _mask_iou(logits: Tensor, target: Tensor) -> float:
    found, true = logits > 0, target > 0
    shares = (found & true).sum((1, 2, 3)) / (found | true).sum((1, 2, 3)).clamp_min(1)
    return 100 * float(shares.mean())


class MaskEdge(nn.Module):
    """A body of dilated convolutions with two heads: classes, and how near the next edge is."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SELU(),
            *(
                layer
                for step in (2, 4, 1)
                for layer in (nn.Conv2d(width, width, 3, padding=step, dilation=step), nn.SELU())
            ),
        )
        self.mask, self.edge = nn.Conv2d(width, 3, 1), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, 3, H, W) and nearness (N, 1, H, W), about 0 to 1."""
        x = self.body(x)
        return {"mask": self.mask(x), "edge": self.edge(x)}


def _cells(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ground, cells and their nuclei; the distance to an edge through a Gaussian."""
    picture, target = 0.3 * smooth(n, 3, 28, generator), torch.zeros(n, 28, 28)
    disc = torch.zeros(n, dtype=torch.long)
    for corner in ((9, 9), (20, 18)):
        centre = torch.tensor(corner) + uniform((n, 2), -3, 3, generator)
        radius = uniform((n, 2), 5, 8, generator)
        cell = shape_masks(disc, centre, radius, 28)
        nucleus = shape_masks(disc, centre, radius * uniform((n, 1), 0.3, 0.5, generator), 28)
        for mask, tint in ((cell, (0.8, 0.2, 0.6)), (nucleus, (0.3, 0.1, 0.9))):
            colour = torch.tensor(tint) + 0.15 * torch.randn(n, 3, generator=generator)
            picture = paint(picture, mask, colour)
        target = torch.where(cell > 0, 1 + nucleus, target)
    padded = functional.pad(target[:, None], (1, 1, 1, 1), mode="replicate")
    high, low = functional.max_pool2d(padded, 3, 1), -functional.max_pool2d(-padded, 3, 1)
    edge = functional.avg_pool2d((high != low).float(), 3, 1, 1)
    return picture + 0.2 * torch.randn(picture.shape, generator=generator), target.long(), edge


def _mask_edge_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    picture, target, edge = _cells(n, generator)
    maps = model(picture)
    return functional.cross_entropy(maps["mask"], target) + 5 * functional.mse_loss(maps["edge"], edge)


def _mask_edge_measure(model: nn.Module, generator: torch.Generator) -> float:
    picture, target, edge = _cells(400, generator)
    maps = model(picture)
    explained = 1 - functional.mse_loss(maps["edge"], edge) / edge.var()
    return (mean_iou(maps["mask"], target) + 100 * float(explained)) / 2


def _cracks(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A rough wall with a thin crack, of which 2 or 3 pixels in 100 are; 0 and 1."""
    wall = 140 + 20 * smooth(n, 1, 40, generator, coarse=9) + 6 * smooth(n, 1, 40, generator, coarse=30)
    x, y = grid(40)
    angle, bend = uniform((2, n, 1, 1), 0, 2 * math.pi, generator)
    along, across = (
        angle.cos() * (x - 20) + angle.sin() * (y - 20),
        angle.cos() * (y - 20) - angle.sin() * (x - 20),
    )
    middle = uniform((n, 1, 1), -10, 10, generator) + 2.5 * torch.sin(0.3 * along + bend)
    crack = ((across - middle).abs() < 0.75) & (along.abs() < uniform((n, 1, 1), 7, 18, generator))
    # Lines that are no cracks: wider, and lighter than the wall.
    paint_line = (across + middle).abs() < 1.5
    picture = wall + (20.0 * paint_line - 45 * crack * uniform((n, 1, 1), 0.5, 1, generator))[:, None]
    return picture + 7 * torch.randn(picture.shape, generator=generator), crack.long()


class CrackNet(nn.Module):
    """A fully convolutional network at half and full size; grey values in, logits of two classes out."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(1, width), conv(width, width))
        self.coarse = nn.Sequential(conv(width, 40, stride=2), Residual(40), nn.Conv2d(40, width, 1))
        self.classify = nn.Sequential(conv(width, width), nn.Conv2d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W)."""
        full = self.fine(x / 64 - 2.2)
        half = functional.interpolate(
            self.coarse(full), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return self.classify(full + half)


def _weighted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 4.0]))


def _rare_iou(logits: Tensor, target: Tensor) -> float:
    found, true = logits.argmax(1) == 1, target == 1
    return 100 * float((found & true).sum() / (found | true).sum())


class ChannelsLast(nn.Module):
    """Patches mixed by convolutions, and classes by linear layers on the last dimension, as in SegFormer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stage1 = nn.Conv2d(3, width, 5, 2, 2)
        self.stage2 = nn.Conv2d(width, width, 3, 2, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(width, 48), nn.Linear(width, 48)
        self.fuse, self.classify = nn.Linear(96, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H / 2, W / 2, 5) logits."""
        fine = self.norm1(self.stage1(x).permute(0, 2, 3, 1))
        coarse = functional.gelu(self.stage2(functional.gelu(fine).permute(0, 3, 1, 2)))
        coarse = self.norm2((coarse + functional.gelu(self.mix(coarse))).permute(0, 2, 3, 1))
        coarse = self.linear2(coarse).repeat_interleave(2, 1).repeat_interleave(2, 2)
        both = torch.cat([self.linear1(fine), coarse], 3)
        return self.classify(functional.gelu(self.fuse(functional.gelu(both))))


def _land(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fields of five covers, told apart by colour and texture; classes (N, 16, 16) of 32 x 32 pixels."""
    heights = smooth(n, 5, 16, generator, coarse=4)
    target = heights.argmax(1)
    cover = target.repeat_interleave(2, 1).repeat_interleave(2, 2)
    x, y = grid(32)
    # Rows of plants across or along, rough wood, even water and meadow.
    textures = torch.stack([torch.sin(1.6 * x), torch.sin(1.6 * y), torch.zeros(32, 32), torch.zeros(32, 32)])
    textures = torch.cat([textures.expand(n, -1, -1, -1), smooth(n, 1, 32, generator, coarse=16)], 1)
    tints = torch.tensor(
        [[0.3, 0.5, 0.2], [0.3, 0.5, 0.2], [0.2, 0.4, 0.3], [0.25, 0.45, 0.25], [0.2, 0.4, 0.2]]
    )
    tint = tints + 0.06 * torch.randn(n, 1, 3, generator=generator)
    picture = tint[torch.arange(n)[:, None, None], cover].permute(0, 3, 1, 2)
    picture = picture + 0.15 * textures.gather(1, cover[:, None])
    return 4 * (picture + 0.05 * torch.randn(picture.shape, generator=generator)) - 1.5, target


def _last_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 2), target.flatten())


KINDS = (
    Kind(
        name="segmentation",
        build=lambda: UNet(3, 6, 24),
        loss=loss_of(_shapes, functional.cross_entropy),
        inputs=inputs_of(_shapes),
        measure=measure_of(_shapes, mean_iou, 400),
        measured="mean IoU, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=900,
        batch=16,
        lr=4e-3,
        macs=0.3,
    ),
    Kind(
        name="mask-logit",
        build=lambda: UNet(1, 1, 24, norm=False, act=nn.LeakyReLU(0.1)),
        loss=loss_of(_organs, _dice_and_yes_no),
        inputs=inputs_of(_organs),
        measure=measure_of(_organs, _mask_iou, 400),
        measured="mean IoU of the mask, %",
        higher_is_better=True,
        right={"": "bernoulli"},
        harmless={"": ("gaussian",)},
        steps=600,
        batch=16,
        lr=3e-3,
        macs=0.1,
    ),
    Kind(
        name="mask-edge",
        build=MaskEdge,
        loss=_mask_edge_loss,
        inputs=lambda n, generator: _cells(n, generator)[0],
        measure=_mask_edge_measure,
        measured="mean of the mask's mean IoU and the edge's explained variance, %",
        higher_is_better=True,
        right={"mask": "categorical", "edge": "gaussian"},
        harmless={"mask": ("bernoulli", "gaussian"), "edge": ("bernoulli",)},
        steps=600,
        batch=16,
        lr=3e-3,
        macs=0.3,
    ),
    Kind(
        name="two-class-map",
        build=CrackNet,
        loss=loss_of(_cracks, _weighted_cross_entropy),
        inputs=inputs_of(_cracks),
        measure=measure_of(_cracks, _rare_iou, 300),
        measured="IoU of the rare class, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli",)},
        steps=500,
        batch=12,
        lr=4e-3,
        macs=0.12,
    ),
    Kind(
        name="channels-last",
        build=ChannelsLast,
        loss=loss_of(_land, _last_cross_entropy),
        inputs=inputs_of(_land),
        measure=measure_of(_land, lambda logits, target: mean_iou(logits.movedim(3, 1), target), 800),
        measured="mean IoU, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=1000,
        batch=24,
        lr=3e-3,
        macs=0.2,
    ),
)
