# SPDX-License-Identifier: Apache-2.0
"""What kinds with series, text and tables share: draws, blocks, measures."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers drawn evenly between two bounds."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def random_walk(n_samples: int, n_steps: int, keep: float, generator: torch.Generator) -> Tensor:
    """Noise with memory (N, T), of mean 0 and spread 1.

    Args:
        n_samples: N.
        n_steps: T.
        keep: what a step keeps of the one before, 0 to 1.
        generator: of the noise.
    """
    noise = torch.randn(n_samples, n_steps, generator=generator)
    values = [noise[:, 0]]
    for step in range(1, n_steps):
        values.append(keep * values[-1] + math.sqrt(1 - keep**2) * noise[:, step])
    return torch.stack(values, 1)


def fixed(*shape: int, seed: int) -> Tensor:
    """Normal numbers that belong to a task, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels that have the largest logit, in percent; classes stand in the last dimension."""
    return float((logits.argmax(-1) == labels).float().mean() * 100)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, the classes in the last dimension."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing)


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve, in percent.

    Args:
        scores: (N,) of one class, higher is likelier.
        labels: (N,) bool.
    """
    ranks = scores.argsort().argsort().double() + 1
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    below = float(ranks[labels].sum()) - n_positive * (n_positive + 1) / 2
    return 100 * below / (n_positive * n_negative)


class CausalConv(nn.Module):
    """A dilated convolution over time that sees the past only, with a residual."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.Conv1d(width, width, 3, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T), as the input."""
        return x + self.mix(functional.gelu(self.conv(functional.pad(x, (self.pad, 0)))))


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward layers, the norm before each."""

    def __init__(self, width: int, n_heads: int, hidden: int, *, is_causal: bool) -> None:
        super().__init__()
        self.n_heads, self.is_causal = n_heads, is_causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C), as the input."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))
