# SPDX-License-Identifier: Apache-2.0
"""Four small networks for 32x32 grey pictures of 47 characters, one of each family that people ship.

Plain modules of PyTorch only, written as the families usually are.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 47


def conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, padded to keep the size, and its batch norm.

    Args:
        c_in: channels in.
        c_out: channels out.
        kernel: side of the square kernel, odd.
        stride: both ways.
        groups: as in ``nn.Conv2d``.

    Returns:
        Both modules.
    """
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class VggLike(nn.Module):
    """Six 3x3 convolutions in three sizes, then a large Linear, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 1
        for width in (24, 48, 96):
            layers += [*conv_norm(c_in, width, 3), nn.ReLU(), *conv_norm(width, width, 3), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            c_in = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Flatten(), nn.Linear(96 * 4 * 4, 384), nn.ReLU(), nn.Dropout(0.2), nn.Linear(384, CLASSES))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, 1, 32, 32).

        Returns:
            (N, 47).
        """
        logits: Tensor = self.classifier(self.features(images))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(c_in, c_out, 3, stride)
        self.conv2, self.bn2 = conv_norm(c_out, c_out, 3)
        self.downsample = (
            nn.Sequential(*conv_norm(c_in, c_out, 1, stride)) if stride > 1 or c_in != c_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: (N, C_in, H, W).

        Returns:
            (N, C_out, H / stride, W / stride).
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetLike(nn.Module):
    """A stem, three stages of basic blocks, global average pooling: 14 layers deep as it is trained."""

    def __init__(self, depth: int = 2, widths: tuple[int, int, int] = (16, 40, 80)) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(1, widths[0], 3)
        blocks: list[nn.Module] = []
        c_in = widths[0]
        for stage, width in enumerate(widths):
            blocks.append(BasicBlock(c_in, width, 1 if stage == 0 else 2))
            blocks += [BasicBlock(width, width, 1) for _ in range(depth - 1)]
            c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, 1, 32, 32).

        Returns:
            (N, 47).
        """
        x = self.blocks(functional.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection without activation; a shortcut where shapes allow."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        self.conv = nn.Sequential(
            *(*conv_norm(c_in, hidden, 1), nn.ReLU6()),
            *(*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()),
            *conv_norm(hidden, c_out, 1),
        )
        self.use_shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: (N, C_in, H, W).

        Returns:
            (N, C_out, H / stride, W / stride).
        """
        y: Tensor = self.conv(x)
        return x + y if self.use_shortcut else y


class MobileNetLike(nn.Module):
    """Ten inverted residual blocks and a wide last 1x1 convolution, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        rows = ((24, 1, 2), (40, 2, 3), (64, 2, 3), (96, 1, 2))  # channels, stride of the first, blocks
        blocks: list[nn.Module] = []
        c_in = 16
        for width, stride, count in rows:
            for place in range(count):
                blocks.append(InvertedResidual(c_in, width, stride if place == 0 else 1, expand=4))
                c_in = width
        self.stem = nn.Sequential(*conv_norm(1, 16, 3, stride=2), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*conv_norm(c_in, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(256, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, 1, 32, 32).

        Returns:
            (N, 47).
        """
        logits: Tensor = self.classifier(self.last(self.blocks(self.stem(images))))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention with one Linear for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens.

        Args:
            x: (N, tokens, width).

        Returns:
            (N, tokens, width).
        """
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: (N, tokens, width).

        Returns:
            (N, tokens, width).
        """
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VitLike(nn.Module):
    """64 tokens of 4x4 pixels from a convolutional stem, four pre-norm blocks, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        width = 96
        self.stem = nn.Sequential(
            *(*conv_norm(1, 32, 3, stride=2), nn.ReLU(), *conv_norm(32, 48, 3), nn.ReLU()),
            *conv_norm(48, width, 3, stride=2),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (N, 1, 32, 32).

        Returns:
            (N, 47).
        """
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def scaled_resnet(depth: int, width: int) -> nn.Module:
    """A larger ``ResNetLike`` with random weights, its batch norms set to what it sees.

    Args:
        depth: times as many blocks.
        width: times as many channels.

    Returns:
        The network, in eval mode.
    """
    torch.manual_seed(0)
    model = ResNetLike(2 * depth, (16 * width, 40 * width, 80 * width))
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 1, 32, 32))
    return model.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": VggLike,
    "resnet": ResNetLike,
    "mobilenet": MobileNetLike,
    "vit": VitLike,
}
