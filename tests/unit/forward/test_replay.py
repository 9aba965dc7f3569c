# SPDX-License-Identifier: Apache-2.0
"""Replay skips everything before a layer, at every layer of a residual network, and stays on."""

import torch
from torch import Tensor, nn

from slimrank.forward import Replay, as_batch


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(n_in, n_out, 1)) if n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down is None else self.down(x)
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + shortcut)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6), Block(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


ORDER = (
    "stem",
    "blocks.0.conv1",
    "blocks.0.conv2",
    "blocks.1.down.0",
    "blocks.1.conv1",
    "blocks.1.conv2",
    "blocks.2.conv1",
    "blocks.2.conv2",
    "head",
)


def test_only_the_layer_and_what_follows_runs_at_every_layer() -> None:
    model = Residual().eval().requires_grad_(requires_grad=False)
    x = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    reference = model(x)
    ran: list[str] = []
    replay = Replay(model, [as_batch(x)], max_bytes=10**9)
    own = {name: model.get_submodule(name)._conv_forward for name in ORDER if name != "head"}
    for name, forward in own.items():

        def counted(*args: object, name: str = name, forward: object = forward) -> Tensor:
            ran.append(name)
            return forward(*args)  # type: ignore[operator, no-any-return]

        model.get_submodule(name)._conv_forward = counted  # type: ignore[method-assign]
    for place, layer in enumerate(ORDER):
        replay.start_at(layer, [{"": reference}], None)
        ran.clear()
        (out,) = replay.stream()
        assert torch.equal(out, reference)  # type: ignore[arg-type]
        assert ran == [name for name in ORDER[place:] if name != "head"], layer
