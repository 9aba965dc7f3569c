# SPDX-License-Identifier: Apache-2.0
"""Networks that give every pixel a number in its unit: distance, motion, direction."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    UNet,
    colours,
    grid,
    inputs_of,
    loss_of,
    measure_of,
    paint,
    shape_masks,
    smooth,
    uniform,
)


def _hazy_depth(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ground to the horizon and things that stand on it, in haze; metres."""
    horizon = uniform((n, 1, 1), 8, 12, generator)
    _, y = grid(32)
    depth = (24 / (y - horizon).clamp_min(0.6)).clamp_max(40)
    picture = 0.5 + 0.15 * smooth(n, 3, 32, generator) + 0.1 * torch.sin(150 / depth)[:, None]
    for distance in (20, 8):
        away = uniform((n,), 0.6, 1.0, generator) * distance
        height = uniform((n,), 0.8, 2.0, generator)
        foot = horizon.flatten() + 24 / away
        radius = torch.stack([height * 12 / away, height * 12 / away], 1).clamp_min(1)
        centre = torch.stack([uniform((n,), 3, 29, generator), foot - radius[:, 1]], 1)
        index = torch.tensor([0, 1, 2, 5])[torch.randint(4, (n,), generator=generator)]
        mask = shape_masks(index, centre, radius, 32)
        picture = paint(picture, mask, colours(n, 3, generator))
        depth = torch.where(mask > 0, away[:, None, None], depth)
    haze = torch.exp(-depth / 15)[:, None]
    picture = picture * haze + torch.tensor([0.7, 0.75, 0.8])[:, None, None] * (1 - haze)
    return picture + 0.02 * torch.randn(picture.shape, generator=generator), depth[:, None]


class Depth(nn.Module):
    """Metres as the exponential of what a U-Net gives."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 1, 24, act=nn.ELU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W), above zero."""
        return torch.exp(self.net(x) + 2)


def _log_rmse(depth: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant loss of logarithms (Eigen et al. 2014)."""
    error = (depth.log() - target.log()).flatten(1)
    return (error.square().mean(1) - 0.5 * error.mean(1).square()).clamp_min(1e-8).sqrt().mean()


def _relative_error(depth: Tensor, target: Tensor) -> float:
    return 100 * float(((depth - target).abs() / target).mean())


def _two_frames(n: int, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A texture before and after it is moved, turned and stretched; pixels that each point moves."""
    texture = smooth(n, 1, 48, generator, coarse=12) + 0.5 * smooth(n, 1, 48, generator, coarse=20)
    x, y = grid(32)
    x, y = x - 16, y - 16
    turn, grow = uniform((2, n, 1, 1), -0.12, 0.12, generator)
    shift = uniform((2, n, 1, 1), -3, 3, generator)
    flow = torch.stack([shift[0] + grow * x - turn * y, shift[1] + turn * x + grow * y], 1)
    frames = []
    for part in (0.0, 1.0):
        # The second frame shows at each point what stood against the flow; to first order its inverse.
        where = torch.stack([x, y]) - part * flow
        points = (where / 24).permute(0, 2, 3, 1)
        frames.append(functional.grid_sample(texture, points, mode="bicubic", align_corners=False))
    noise = 0.03 * torch.randn(2, n, 1, 32, 32, generator=generator)
    return (frames[0] + noise[0], frames[1] + noise[1]), flow


class Flow(nn.Module):
    """FlowNet in small: two frames in, pixels out."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.1)
        self.enc = nn.Sequential(nn.Conv2d(2, 32, 5, 2, 2), act, nn.Conv2d(32, 40, 3, 2, 1), act)
        self.middle = nn.Sequential(
            nn.Conv2d(40, 40, 3, padding=1), act, nn.Conv2d(40, 40, 3, padding=1), act
        )
        self.predict = nn.Conv2d(40, 2, 3, padding=1)

    def forward(self, frame1: Tensor, frame2: Tensor) -> Tensor:
        """(N, 2, H, W)."""
        flow = self.predict(self.middle(self.enc(torch.cat([frame1, frame2], 1))))
        return functional.interpolate(flow, scale_factor=4.0, mode="bilinear", align_corners=False)


def _end_point_error(flow: Tensor, target: Tensor) -> Tensor:
    return (flow - target).square().sum(1).add(1e-6).sqrt().mean()


def _lit_surface(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A surface lit by one lamp from the upper left, of even colour; its normals (N, 3, H, W)."""
    height = 5 * smooth(n, 1, 34, generator, coarse=6)[:, 0]
    for _ in range(2):
        x, y = grid(34)
        centre, radius = uniform((2, n, 1, 1), 5, 29, generator), uniform((n, 1, 1), 5, 9, generator)
        ball = radius.square() - (x - centre[0]).square() - (y - centre[1]).square()
        height = torch.maximum(height, ball.clamp_min(0).sqrt() + height.mean((1, 2), keepdim=True))
    slope_x = (height[:, 1:-1, 2:] - height[:, 1:-1, :-2]) / 2
    slope_y = (height[:, 2:, 1:-1] - height[:, :-2, 1:-1]) / 2
    normals = functional.normalize(torch.stack([-slope_x, -slope_y, torch.ones_like(slope_x)], 1), dim=1)
    lamps = functional.normalize(torch.tensor([[-0.5, -0.4, 0.7], [0.1, -0.3, 0.9], [-0.2, 0.1, 0.9]]), dim=1)
    light = torch.einsum("kc,nchw->nkhw", lamps, normals).clamp_min(0)
    picture = uniform((n, 3, 1, 1), 0.6, 1, generator) * light
    return picture + 0.03 * torch.randn(picture.shape, generator=generator), normals


class Normals(nn.Module):
    """Unit vectors from a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 3, 24, norm=False, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), of length 1 along the channels."""
        return functional.normalize(self.net(2 * x - 1), dim=1)


def _cosine_loss(normals: Tensor, target: Tensor) -> Tensor:
    return 1 - (normals * target).sum(1).mean()


def _degrees_off(normals: Tensor, target: Tensor) -> float:
    return float((normals * target).sum(1).clamp(-1, 1).acos().rad2deg().mean())


KINDS = (
    Kind(
        name="depth",
        build=Depth,
        loss=loss_of(_hazy_depth, _log_rmse),
        inputs=inputs_of(_hazy_depth),
        measure=measure_of(_hazy_depth, _relative_error, 300),
        measured="mean relative error, %",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=500,
        batch=16,
        lr=4e-3,
        macs=0.3,
    ),
    Kind(
        name="flow",
        build=Flow,
        loss=loss_of(_two_frames, _end_point_error),
        inputs=inputs_of(_two_frames),
        measure=measure_of(_two_frames, lambda flow, target: float(_end_point_error(flow, target)), 600),
        measured="end-point error, px",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("bernoulli",)},
        steps=1200,
        lr=2e-3,
        macs=0.4,
    ),
    Kind(
        name="normals",
        build=Normals,
        loss=loss_of(_lit_surface, _cosine_loss),
        inputs=inputs_of(_lit_surface),
        measure=measure_of(_lit_surface, _degrees_off, 300),
        measured="mean angle to the truth, degrees",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=500,
        batch=16,
        lr=3e-3,
        macs=0.1,
    ),
)
