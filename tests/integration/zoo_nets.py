# SPDX-License-Identifier: Apache-2.0
"""A U-Net, a detector, a super-resolution net and an audio net, small, as their users write them.

Imports torch alone: the tests, ``make bench-zoo`` and fresh processes all take them from here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm statistics, scales and shifts at random, from a seed; the module itself comes back.

    With statistics of zero mean and unit variance, activations of deep random nets die out or explode.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(0.1 * noise(module.running_mean))
                module.running_var.copy_(0.5 + noise(module.running_var).sigmoid())
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.copy_((2.0 / parameter[0].numel()) ** 0.5 * noise(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise(parameter))
            else:
                parameter.copy_(1 + 0.1 * noise(parameter))
    return model


def _conv(n_in: int, n_out: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(n_out), nn.SiLU()
    )


class Unet(nn.Module):
    """Skips that are concatenated; one way up by transposed convolution, the other by interpolation."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = self._double(3, width)
        self.down1, self.down2 = self._double(width, 2 * width), self._double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = self._double(4 * width, 2 * width)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.join1 = self._double(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    @staticmethod
    def _double(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.GroupNorm(4, n_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down1(functional.max_pool2d(first, 2))
        third = self.down2(functional.max_pool2d(second, 2))
        second = self.join2(torch.cat([second, self.up2(third)], 1))
        large = functional.interpolate(second, size=first.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.join1(torch.cat([first, self.narrow(large)], 1)))


class _Bottleneck(nn.Module):
    def __init__(self, width: int, *, adds: bool) -> None:
        super().__init__()
        self.first, self.second, self.adds = _conv(width, width, 3), _conv(width, width, 3), adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.adds else y


class _SplitStage(nn.Module):
    """A convolution, split in two; one half runs through the bottlenecks, and every step is concatenated."""

    def __init__(self, n_in: int, n_out: int, depth: int, *, adds: bool = True) -> None:
        super().__init__()
        self.half = n_out // 2
        self.enter = _conv(n_in, n_out)
        self.steps = nn.ModuleList(_Bottleneck(self.half, adds=adds) for _ in range(depth))
        self.leave = _conv((2 + depth) * self.half, n_out)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class _PyramidPool(nn.Module):
    """The same pooling three times over, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = _conv(width, width // 2), _conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """Like the later YOLOs: split stages, a pyramid up and down, boxes and classes at three sizes."""

    def __init__(self, width: int = 8, n_classes: int = 5) -> None:
        super().__init__()
        self.n_outputs = 4 + n_classes
        self.stem = _conv(3, width, 3, 2)
        self.stage1 = nn.Sequential(_conv(width, width, 3, 2), _SplitStage(width, width, 1))
        self.stage2 = nn.Sequential(_conv(width, 2 * width, 3, 2), _SplitStage(2 * width, 2 * width, 2))
        self.stage3 = nn.Sequential(
            _conv(2 * width, 4 * width, 3, 2), _SplitStage(4 * width, 4 * width, 1), _PyramidPool(4 * width)
        )
        self.up2 = _SplitStage(6 * width, 2 * width, 1, adds=False)
        self.up1 = _SplitStage(3 * width, width, 1, adds=False)
        self.down2 = _conv(width, width, 3, 2)
        self.out2 = _SplitStage(3 * width, 2 * width, 1, adds=False)
        self.boxes = nn.ModuleList(self._head(n, 4) for n in (width, 2 * width, 4 * width))
        self.classes = nn.ModuleList(self._head(n, n_classes) for n in (width, 2 * width, 4 * width))

    @staticmethod
    def _head(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(_conv(n_in, n_in, 3), nn.Conv2d(n_in, n_out, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.stage1(self.stem(x))
        second = self.stage2(first)
        third = self.stage3(second)
        middle = self.up2(torch.cat([functional.interpolate(third, scale_factor=2.0), second], 1))
        fine = self.up1(torch.cat([functional.interpolate(middle, scale_factor=2.0), first], 1))
        coarse = self.out2(torch.cat([self.down2(fine), middle], 1))
        found = []
        for level, (boxes, classes) in zip(
            (fine, coarse, third), zip(self.boxes, self.classes, strict=True), strict=True
        ):
            y = torch.cat([boxes(level).exp(), classes(level)], 1)
            found.append(y.flatten(2).transpose(1, 2))
        return tuple(found)


class _PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x).mul(0.1)


class SuperResolution(nn.Module):
    """Like EDSR: no norms, additions directly after convolutions, pixels shuffled to twice the size."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.45, 0.5]).view(1, 3, 1, 1))
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(_PlainBlock(width) for _ in range(depth)))
        self.leave = nn.Conv2d(width, width, 3, padding=1)
        self.enlarge = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x - self.mean)
        x = self.leave(self.body(x)) + x
        return self.tail(self.enlarge(x)) + self.mean


class _Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.up(self.norm(x))))


class _Attention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, _ = x.shape
        # (N, T, 3 heads width) to three of (N, heads, T, width)
        q, k, v = self.qkv(self.norm(x)).view(N, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class _Convolve(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.bn = nn.BatchNorm1d(width)
        self.leave = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.glu(self.enter(self.norm(x).transpose(1, 2)), dim=1)
        return self.leave(functional.silu(self.bn(self.depthwise(x)))).transpose(1, 2)


class _ConformerBlock(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.first, self.second = _Feed(width), _Feed(width)
        self.attention, self.convolve = _Attention(width, n_heads), _Convolve(width, 7)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x)
        x = x + self.convolve(x)
        return self.norm(x + 0.5 * self.second(x))


class Conformer(nn.Module):
    """Spectrogram to letters: strided convolutions, half feed-forwards, attention, a gated convolution."""

    def __init__(self, width: int = 32, depth: int = 2, n_mels: int = 24, n_letters: int = 20) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.project = nn.Linear(width * n_mels // 4, width)
        self.blocks = nn.ModuleList(_ConformerBlock(width, 4) for _ in range(depth))
        self.head = nn.Linear(width, n_letters)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x[:, None])
        # (N, C, T, mels) to (N, T, C mels)
        y = self.project(y.transpose(1, 2).flatten(2))
        for block in self.blocks:
            y = block(y)
        return self.head(y).log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class OwnNet:
    """A network of this file.

    Attributes:
        build: makes it, weights random, in eval mode.
        shape: of one sample.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def batches(self, n: int = 2, size: int = 4, seed: int = 0) -> list[Tensor]:
        """``n`` batches of ``size`` samples."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(size, *self.shape, generator=generator) for _ in range(n)]


def _nets() -> Iterator[tuple[str, OwnNet]]:
    yield "unet_skips", OwnNet(build=lambda: settle(Unet().eval()), shape=(3, 32, 32))
    yield "yolo_like", OwnNet(build=lambda: settle(Detector().eval()), shape=(3, 64, 64))
    yield "edsr_like", OwnNet(build=lambda: settle(SuperResolution().eval()), shape=(3, 16, 16))
    yield "conformer_like", OwnNet(build=lambda: settle(Conformer().eval()), shape=(40, 24))


NETS: Mapping[str, OwnNet] = dict(_nets())
