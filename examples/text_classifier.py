# SPDX-License-Identifier: Apache-2.0
"""A transformer encoder of torch, trained for seconds: are many of the tokens below 8?

From the repository root: ``python examples/text_classifier.py``
"""

import torch
from torch import nn

import slimrank as sr


class Encoder(nn.Sequential):
    """Two transformer blocks over 16 tokens of a vocabulary of 20, and two classes."""

    def __init__(self) -> None:
        block = nn.TransformerEncoderLayer(32, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        super().__init__(nn.Embedding(20, 32), blocks, nn.Flatten(), nn.Linear(16 * 32, 2))


def main() -> None:
    """Trains, compresses to a tenth of the MACs, and prints accuracies on texts not seen before."""
    torch.manual_seed(0)
    model, texts = Encoder(), torch.randint(20, (2560, 16))
    labels = ((texts < 8).sum(1) > 6).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(100):
        chosen = slice(step % 16 * 128, step % 16 * 128 + 128)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(texts[chosen]), labels[chosen]).backward()
        optimizer.step()
    result = sr.compress(model.eval(), list(texts[:512].split(64)), macs=0.1, compete=False, progress=False)
    for name, network, cost in (("before", model, result.before), ("after", result.model, result.after)):
        right = (network(texts[2048:]).argmax(1) == labels[2048:]).float().mean()
        print(f"{name + ':':7} {cost.macs:,} MACs, {float(right):.1%} right")


if __name__ == "__main__":
    main()
