# SPDX-License-Identifier: Apache-2.0
"""Small networks whose channels go together in the ways that are found in the wild.

Imports torch and ``zoo_nets`` alone.
"""

from collections.abc import Callable, Mapping

import torch
import zoo_nets
from torch import Tensor, nn
from torch.nn import functional


class Plain(nn.Module):
    """Convolutions without bias, a batch norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.norm2 = nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.last, self.norm3 = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm2(self.deep(x)).relu()
        return self.fc(self.norm3(self.last(x)).relu().mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Residual(nn.Module):
    """Two blocks, each of which may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.layer1, self.layer2 = Block(12, 16), Block(12, 20)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.norm(self.stem(x)).relu()))
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    """Wide, depthwise, narrow, and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.wide, self.norm1 = nn.Conv2d(12, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.depth, self.norm2 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)
        self.narrow, self.norm3 = nn.Conv2d(32, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = functional.relu6(self.norm2(self.depth(functional.relu6(self.norm1(self.wide(x))))))
        return self.fc((x + self.norm3(self.narrow(y))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between others."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.leave = nn.Conv2d(32, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leave(self.grouped(self.enter(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels that are gated by what all of them hold."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.down, self.up = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.leave = nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x)).relu()
        gate = self.up(self.down(functional.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.fc(self.leave(x * gate).relu().mean((2, 3)))


class SelfAttention(nn.Module):
    """Separate queries, keys and values, their sizes in attributes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.attention_head_size = width // heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query = nn.Linear(width, self.all_head_size)
        self.key = nn.Linear(width, self.all_head_size)
        self.value = nn.Linear(width, self.all_head_size)

    def _heads(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size)
        # (N, heads, T, width of a head)
        return x.permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        shares = (query @ key.transpose(-1, -2) / self.attention_head_size**0.5).softmax(-1)
        mixed = (shares @ value).permute(0, 2, 1, 3).contiguous()
        return mixed.view(*mixed.shape[:-2], self.all_head_size)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.output = SelfAttention(width, heads), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.output(self.attention(x)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Transformer(nn.Module):
    """One encoder layer as ``transformers`` writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 24)
        self.layer = EncoderLayer(24, 4, 40)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.embed(x))[:, 0])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10))


_KINDS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "squeeze_excite": SqueezeExcite,
    "transformer": Transformer,
    "mlp": mlp,
}
NAMES = tuple(_KINDS)


def build(name: str, seed: int = 0) -> nn.Module:
    """A network by name, in eval mode, its weights from a seed."""
    return zoo_nets.settle(_KINDS[name](), seed).eval()


def batches(name: str, n: int = 3, size: int = 8, seed: int = 0) -> list[Tensor]:
    """``n`` batches of ``size`` samples."""
    shape = {"transformer": (5, 10), "mlp": (24,)}.get(name, (1, 6, 6))
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator) for _ in range(n)]
