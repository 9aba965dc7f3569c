# SPDX-License-Identifier: Apache-2.0
"""Networks that read numbers off pictures, in their units: points, poses."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    Residual,
    conv,
    grid,
    inputs_of,
    loss_of,
    measure_of,
    paint,
    shape_masks,
    smooth,
    uniform,
)


def _turned(points: Tensor, centre: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
    """Points (K, 2) turned, scaled and moved, (N, K, 2)."""
    cos, sin = (angle.cos() * scale)[:, None], (angle.sin() * scale)[:, None]
    x = cos * points[:, 0] - sin * points[:, 1]
    y = sin * points[:, 0] + cos * points[:, 1]
    return torch.stack([x, y], 2) + centre[:, None]


def _faces(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A face of 40 pixels in grey: eyes, tip of the nose, corners of the mouth, (N, 10) in pixels."""
    points = torch.tensor([[-0.4, -0.25], [0.4, -0.25], [0.0, 0.1], [-0.3, 0.5], [0.3, 0.5]])
    angle, scale = uniform((n,), -0.5, 0.5, generator), uniform((n,), 10, 15, generator)
    centre = uniform((n, 2), 16, 24, generator)
    marks = _turned(points, centre, angle, scale) + 0.07 * scale[:, None, None] * torch.randn(
        n, 5, 2, generator=generator
    )
    picture = 0.5 + 0.15 * smooth(n, 1, 40, generator)
    skin = 0.5 + uniform((n, 1), 0.1, 0.45, generator)
    disc = torch.zeros(n, dtype=torch.long)
    head = shape_masks(disc, centre, scale[:, None] * torch.tensor([0.8, 1.05]), 40, angle)
    picture = paint(picture, head, skin)
    for k, radius in enumerate((0.14, 0.14, 0.1)):
        spot = shape_masks(disc, marks[:, k], radius * scale[:, None].expand(n, 2), 40)
        picture = paint(picture, spot, skin - uniform((n, 1), 0.2, 0.5, generator))
    along = marks[:, 4] - marks[:, 3]
    half = torch.stack([along.norm(dim=1) / 2, 0.09 * scale], 1)
    mouth = shape_masks(disc + 1, marks[:, 3:].mean(1), half, 40, torch.atan2(along[:, 1], along[:, 0]))
    picture = paint(picture, mouth, skin - 0.4)
    return 255 * (picture + 0.03 * torch.randn(picture.shape, generator=generator)), marks.flatten(1)


class Landmarks(nn.Module):
    """Grey values in 0 to 255 in, pixels out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 24, nn.PReLU(), stride=2),
            conv(24, 32, nn.PReLU()),
            conv(32, 32, nn.PReLU(), stride=2),
            conv(32, 40, nn.PReLU(), stride=2),
        )
        self.fc1 = nn.Linear(40 * 25, 24)
        self.fc2 = nn.Linear(24, 10)
        # The mean face, as is usual: the network starts from there.
        nn.init.constant_(self.fc2.bias, 20.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 10): x and y of five points."""
        return self.fc2(functional.relu(self.fc1(self.features((x - 128) / 64).flatten(1))))


def _point_error(output: Tensor, target: Tensor) -> float:
    return float((output - target).unflatten(1, (-1, 2)).norm(dim=2).mean())


_BONES = ((0, 1), (1, 2), (1, 3), (2, 4), (3, 5))


def _figures(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A stick figure of six joints; the joints (N, 6, 2) in pixels of a picture of 40."""
    rest = torch.tensor([[0, -0.8], [0, -0.2], [-0.5, 0.1], [0.5, 0.1], [-0.6, 0.8], [0.6, 0.8]])
    joints = _turned(
        rest,
        uniform((n, 2), 17, 23, generator),
        uniform((n,), -0.5, 0.5, generator),
        uniform((n,), 11, 16, generator),
    )
    joints = joints + 1.5 * torch.randn(joints.shape, generator=generator)
    x, y = grid(40)
    pixels = torch.stack([x, y], -1)
    picture = 0.2 * smooth(n, 3, 40, generator)
    for start, end in _BONES:
        a, b = joints[:, start, None, None], joints[:, end, None, None]
        share = (((pixels - a) * (b - a)).sum(-1) / (b - a).square().sum(-1)).clamp(0, 1)
        near = (pixels - a - share[..., None] * (b - a)).norm(dim=-1) < 1.3
        # Left limbs are darker than right ones.
        tint = torch.tensor([1.2, 0.6, 0.2]) * (0.6 if end in (2, 4) else 1.0)
        picture = paint(picture, near.float(), tint.expand(n, 3))
    head = shape_masks(torch.zeros(n, dtype=torch.long), joints[:, 0], torch.full((n, 2), 2.5), 40)
    picture = paint(picture, head, torch.tensor([0.2, 1.0, 1.0]).expand(n, 3))
    return picture + 0.1 * torch.randn(picture.shape, generator=generator), joints


class Heatmaps(nn.Module):
    """SimpleBaseline in small: down by 4, up by 2, a map for every joint."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.net = nn.Sequential(
            conv(3, width, stride=2),
            conv(width, 32, stride=2),
            Residual(32),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(32, width),
            nn.Conv2d(width, 6, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6, 20, 20), 1 at a joint."""
        return self.net(x)


def _heatmap_loss(maps: Tensor, joints: Tensor) -> Tensor:
    x, y = grid(20)
    away = (x - joints[..., 0, None, None] / 2).square() + (y - joints[..., 1, None, None] / 2).square()
    return 50 * functional.mse_loss(maps, torch.exp(-away / (2 * 1.2**2)))


def _joint_error(maps: Tensor, joints: Tensor) -> float:
    best = maps.flatten(2).argmax(2)
    # A quarter of a pixel towards the higher neighbour, as is usual.
    padded = functional.pad(maps, (1, 1, 1, 1)).flatten(2)
    row, column = best // 20, best % 20
    middle = (row + 1) * 22 + column + 1
    steps = [
        padded.gather(2, (middle + d)[..., None]) - padded.gather(2, (middle - d)[..., None]) for d in (1, 22)
    ]
    found = torch.stack([column, row], -1) + 0.5 + 0.25 * torch.cat(steps, 2).sign()
    return float((2 * found - joints).norm(dim=2).mean())


def _camera_views(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A marker seen by a camera; where it lies (m) and how it is turned (degrees), (N, 6)."""
    shift = uniform((n, 2), -0.25, 0.25, generator)
    away = uniform((n, 1), 1.2, 2.2, generator)
    degrees = uniform((n, 3), -1, 1, generator) * torch.tensor([35.0, 35.0, 60.0])
    (cx, cy, cz), (sx, sy, sz) = degrees.deg2rad().cos().unbind(1), degrees.deg2rad().sin().unbind(1)
    # First two columns of the rotation Rz Ry Rx.
    first = torch.stack([cz * cy, sz * cy, -sy], 1)
    second = torch.stack([cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx], 1)
    homography = torch.stack([first, second, torch.cat([shift * away, away], 1)], 2)
    x, y = grid(36)
    rays = torch.stack([(x - 18) / 24, (y - 18) / 24, torch.ones_like(x)], -1)
    # (N, H, W, 3): the ray in coordinates of the marker's plane
    plane = torch.einsum("nij,hwj->nhwi", torch.linalg.inv(homography), rays)
    u, v = (plane[..., :2] / plane[..., 2:]).unbind(-1)
    sheet = (u.abs() < 0.5) & (v.abs() < 0.5)
    ink = (
        ((u < 0) & (v < 0))
        | ((u - 0.2).square() + (v - 0.2).square() < 0.03)
        | ((u.abs() > 0.4) & (v > -0.4))
    )
    picture = paint(0.5 + 0.1 * smooth(n, 1, 36, generator), sheet.float(), torch.full((n, 1), 0.95))
    picture = paint(picture, (sheet & ink).float(), torch.full((n, 1), 0.1))
    picture = functional.avg_pool2d(picture, 3, 1, 1)
    return picture + 0.03 * torch.randn(picture.shape, generator=generator), torch.cat(
        [shift * away, away, degrees], 1
    )


class Pose(nn.Module):
    """PoseNet in small: x, y, z in metres, roll, pitch and yaw in degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 24, stride=2), conv(24, 32, stride=2), conv(32, 32), conv(32, 40, stride=2)
        )
        self.fc = nn.Sequential(nn.Linear(40 * 25, 24), nn.ReLU())
        self.xyz, self.angles = nn.Linear(24, 3), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6)."""
        x = self.fc(self.features(4 * (x - 0.5)).flatten(1))
        return torch.cat([self.xyz(x), self.angles(x).mul(30)], 1)


_POSE_UNITS = torch.tensor([0.1, 0.1, 0.1, 10.0, 10.0, 10.0])


def _pose_loss(pose: Tensor, target: Tensor) -> Tensor:
    return ((pose - target) / _POSE_UNITS).abs().mean()


KINDS = (
    Kind(
        name="landmarks-pixels",
        build=Landmarks,
        loss=loss_of(_faces, functional.smooth_l1_loss),
        inputs=inputs_of(_faces),
        measure=measure_of(_faces, _point_error, 1000),
        measured="mean error of a point, px",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("categorical",)},
        steps=1200,
        lr=4e-3,
        macs=0.4,
    ),
    Kind(
        name="heatmaps",
        build=Heatmaps,
        loss=loss_of(_figures, _heatmap_loss),
        inputs=inputs_of(_figures),
        measure=measure_of(_figures, _joint_error, 500),
        measured="mean error of a joint, px",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=700,
        batch=16,
        lr=4e-3,
        macs=0.35,
    ),
    Kind(
        name="pose",
        build=Pose,
        loss=loss_of(_camera_views, _pose_loss),
        inputs=inputs_of(_camera_views),
        measure=measure_of(_camera_views, lambda pose, target: float(_pose_loss(pose, target)), 1000),
        measured="mean error in units of 0.1 m and 10 degrees",
        higher_is_better=False,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=1300,
        lr=4e-3,
        macs=0.45,
    ),
)
