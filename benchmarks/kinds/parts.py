# SPDX-License-Identifier: Apache-2.0
"""What kinds with pictures share: drawn pictures, blocks, and how loss and measure are made from a task."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Draw = Callable[[int, torch.Generator], tuple[Tensor | tuple[Tensor, ...], Tensor]]
N_SHAPES = 10


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers between two bounds."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def smooth(n: int, channels: int, size: int, generator: torch.Generator, coarse: int = 5) -> Tensor:
    """Smooth random fields (N, C, size, size) of about unit spread; coarse: independent points a side."""
    points = torch.randn(n, channels, coarse, coarse, generator=generator)
    return functional.interpolate(points, size=(size, size), mode="bicubic", align_corners=False)


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of the pixels' centres, (size, size) each, in pixels."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return x, y


def shape_masks(
    index: Tensor, centre: Tensor, radius: Tensor, size: int, angle: Tensor | None = None
) -> Tensor:
    """Shapes of ten types, one in each picture.

    Args:
        index: (N,) type, 0 to 9: disc, box, triangle, cross, ring, diamond, bars, half disc, bow tie, corner.
        centre: (N, 2) x and y in pixels.
        radius: (N, 2) half width and half height in pixels.
        size: of the picture, in pixels.
        angle: (N,) in radians; None for upright.

    Returns:
        (N, size, size) float, 0 or 1.
    """
    x, y = grid(size)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    if angle is not None:
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    u, v = dx / radius[:, 0, None, None], dy / radius[:, 1, None, None]
    r, a, b = (u.square() + v.square()).sqrt(), u.abs(), v.abs()
    inside = torch.maximum(a, b) < 1
    masks = (
        r < 1,
        inside,
        (a < (v + 1) / 2) & inside,
        inside & (torch.minimum(a, b) < 0.33),
        (r < 1) & (r > 0.6),
        a + b < 1,
        inside & (((u + 1) * 2.5).floor() % 2 == 0),
        (r < 1) & (v > -0.1),
        inside & (b < a),
        inside & ((u < -0.3) | (v > 0.3)),
    )
    return torch.stack(masks, 1)[torch.arange(len(index)), index].float()


def paint(picture: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """A picture (N, C, H, W) with a colour (N, C) where the mask (N, H, W) is 1."""
    return picture + mask[:, None] * (colour[:, :, None, None] - picture)


def colours(n: int, channels: int, generator: torch.Generator) -> Tensor:
    """Colours (N, C) in 0 to 1 that stand out from middle grey."""
    signs = 2 * torch.randint(2, (n, channels), generator=generator) - 1
    return 0.5 + signs * uniform((n, channels), 0.2, 0.5, generator)


def photos(n: int, size: int, generator: torch.Generator, channels: int = 3, n_shapes: int = 3) -> Tensor:
    """Pictures in 0 to 1: smooth light, some turned shapes with sharp edges, a fine texture."""
    picture = 0.5 + 0.2 * smooth(n, channels, size, generator)
    for _ in range(n_shapes):
        mask = shape_masks(
            torch.randint(N_SHAPES, (n,), generator=generator),
            uniform((n, 2), 0, size, generator),
            uniform((n, 2), 0.1 * size, 0.35 * size, generator),
            size,
            uniform((n,), 0, 2 * math.pi, generator),
        )
        picture = paint(picture, mask, uniform((n, channels), 0, 1, generator))
    return (picture + 0.02 * smooth(n, 1, size, generator, coarse=size // 2)).clamp(0, 1)


def conv(
    c_in: int, c_out: int, act: nn.Module | None = None, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, activation (ReLU)."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out),
        act if act is not None else nn.ReLU(),
    )


class Residual(nn.Module):
    """Two convolutions around which the input goes; with or without batch norm."""

    def __init__(self, channels: int, norm: bool = True, act: nn.Module | None = None) -> None:
        super().__init__()
        self.act = act if act is not None else nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class UNet(nn.Module):
    """A U-Net of two levels below the input's."""

    def __init__(
        self, c_in: int, c_out: int, width: int, norm: bool = True, act: nn.Module | None = None
    ) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            if norm:
                return conv(a, b, act)
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), act if act is not None else nn.ReLU())

        wide = width * 3 // 2
        self.enc1, self.enc2 = block(c_in, width), block(width, wide)
        self.middle = block(wide, wide)
        self.dec2, self.dec1 = block(2 * wide, width), block(2 * width, width)
        self.out = nn.Conv2d(width, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, c_out, H, W) from (N, c_in, H, W); H and W are multiples of 4."""
        a = self.enc1(x)
        b = self.enc2(functional.max_pool2d(a, 2))
        c = self.middle(functional.max_pool2d(b, 2))
        b = self.dec2(torch.cat([functional.interpolate(c, scale_factor=2.0), b], 1))
        return self.out(self.dec1(torch.cat([functional.interpolate(b, scale_factor=2.0), a], 1)))


def inputs_of(draw: Draw) -> Callable[[int, torch.Generator], Tensor | tuple[Tensor, ...]]:
    """The inputs of a task, without labels."""
    return lambda n, generator: draw(n, generator)[0]


def call(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output for one batch."""
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def loss_of(
    draw: Draw, loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """The training loss of a task."""

    def drawn_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
        inputs, target = draw(n, generator)
        return loss(call(model, inputs), target)

    return drawn_loss


def measure_of(
    draw: Draw, measure: Callable[[Tensor, Tensor], float], n: int
) -> Callable[[nn.Module, torch.Generator], float]:
    """The measure of a task over n test samples."""

    def drawn_measure(model: nn.Module, generator: torch.Generator) -> float:
        inputs, target = draw(n, generator)
        return measure(call(model, inputs), target)

    return drawn_measure


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Top-1 accuracy in %, classes in dimension 1."""
    return 100 * float((logits.argmax(1) == target).float().mean())


def mean_iou(logits: Tensor, target: Tensor) -> float:
    """Mean intersection over union of the classes in dimension 1, in %."""
    predicted, shares = logits.argmax(1), []
    for index in range(logits.shape[1]):
        a, b = predicted == index, target == index
        shares.append(float((a & b).sum() / (a | b).sum().clamp_min(1)))
    return 100 * sum(shares) / len(shares)


def psnr(peak: float) -> Callable[[Tensor, Tensor], float]:
    """Peak signal-to-noise ratio in dB, averaged over pictures."""

    def measure(picture: Tensor, target: Tensor) -> float:
        mse = (picture - target).square().flatten(1).mean(1)
        return float((10 * (peak * peak / mse).log10()).mean())

    return measure


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean over labels of the average precision, in %; (N, L) each."""
    order = scores.argsort(0, descending=True)
    hits = labels.gather(0, order).double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)[:, None]
    return 100 * float(((precision * hits).sum(0) / hits.sum(0).clamp_min(1)).mean())
