# SPDX-License-Identifier: Apache-2.0
"""Small networks as users write them. Imports torch alone: subprocesses import this file without slimrank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, n: int = 3, size: int = 8, seed: int = 0) -> list[Tensor]:
    """``n`` batches of ``size`` samples."""
    generator = seeded(seed)
    return [torch.randn(size, *shape, generator=generator) for _ in range(n)]


def tokens(length: int = 6, vocab: int = 50, n: int = 3, size: int = 8, seed: int = 0) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.randint(1, vocab, (size, length), generator=generator) for _ in range(n)]


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights from a seed, larger than torch's, so that outputs differ from sample to sample."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / fan) ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def mlp() -> nn.Module:
    return settle(
        nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    )


def two_layers(seed: int = 0) -> nn.Sequential:
    """From 12 to 24 to 16, with torch's own weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(24)
        self.last = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        x = self.bn(self.conv(x)).relu()
        x = nn.functional.relu(self.last(x), inplace=True)
        return self.fc(x.mean((2, 3)))


def cnn() -> nn.Module:
    return settle(Cnn().eval())


class Residual(nn.Module):
    """A block that can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def with_a_block() -> nn.Sequential:
    """Two convolutions, a block between them, and a linear layer; for pictures of 3 x 4 x 4."""
    layers = (Residual(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6))
    return settle(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers).eval())


class Control(nn.Module):
    """Python control flow on the data, which no export can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.b = nn.Linear(32, 32)
        self.c = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        for _ in range(3):
            if x.abs().mean().item() > 0:
                x = x + 0.1
        if x.sum().item() > -1e9:
            x = self.b(x).relu()
        return self.c(x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(24, 32)
        self.right = nn.Linear(16, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.out((self.left(a) + scale * self.right(b)).relu())


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(24, 32)
        self.head = nn.Linear(32, 8)
        self.box = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).relu()
        return {"logits": self.head(x), "boxes": self.box(x)}


@dataclass
class Answer:
    scores: Tensor
    hidden: Tensor
    name: str = "answer"


class DataclassOutput(DictOutput):
    def forward(self, x: Tensor) -> Answer:  # type: ignore[override]
        x = self.body(x).relu()
        return Answer(scores=self.head(x), hidden=self.box(x))


class TupleOutput(DictOutput):
    def forward(self, x: Tensor) -> tuple[Tensor, None, list[Tensor]]:  # type: ignore[override]
        x = self.body(x).relu()
        return self.head(x), None, [self.box(x)]


class TokenNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.mix = nn.Linear(24, 48)
        self.head = nn.Linear(48, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(ids)).relu())


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 64, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 32)
        self.used = nn.Linear(32, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.fc.weight).relu()
        x = self.used(x).to(self.used.weight.dtype).relu()
        return self.out(x)


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.mix = nn.Linear(24, 48)
        self.back = nn.Linear(48, 24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.back(self.mix(self.embed(ids)).relu()))


class TiedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.b = nn.Linear(32, 32)
        self.b.bias = self.a.bias
        self.out = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).relu()).relu())


class Normed(nn.Module):
    """Old and new weight norm, spectral norm, beside a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.parametrized = parametrizations.weight_norm(nn.Linear(24, 32))
        self.spectral = parametrizations.spectral_norm(nn.Linear(32, 32))
        self.plain = nn.Linear(32, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.plain(self.spectral(self.parametrized(x).relu())).relu())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.again = nn.Linear(32, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.out(self.again(self.again(x).relu()).relu())


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 24)
        self.same = self.a
        self.out = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.same(self.a(x).relu()).relu())


class NeverCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.spare = nn.Linear(32, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu())


class PlainList(nn.Module):
    """A second reference to a layer outside the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.hidden = nn.Linear(32, 32)
        self.out = nn.Linear(32, 16)
        self.steps = [self.hidden]

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        for step in self.steps:
            x = step(x).relu()
        return self.out(x)


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Convs(nn.Module):
    """Convolutions that no SVD applies to, among ones it does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.own = OwnConv(16, 16, 3, padding=1)
        self.plain = nn.Conv2d(16, 16, (3, 5), padding="same", dilation=(1, 2))
        self.reflect = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x).relu())).relu()
        x = self.plain(self.own(x).relu()).relu()
        return self.head(self.up(self.reflect(x).relu()))


class OtherDims(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 16, 5, padding=2, padding_mode="circular")
        self.two = nn.Conv1d(16, 16, 3, stride=2)
        self.three = nn.Conv3d(1, 8, 3, padding=1)
        self.four = nn.Conv3d(8, 8, (1, 3, 2), padding_mode="replicate", padding=(0, 1, 1))
        self.out = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x).relu()).relu()
        x = self.four(self.three(x[:, None, :, :6, None].expand(-1, -1, -1, -1, 4)).relu())
        return self.out(x.mean((2, 3, 4)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 24, batch_first=True)
        self.fc = nn.Linear(24, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.out(self.fc(y[:, -1]).relu())


class Detector(nn.Module):
    """A list of images of several sizes goes in, a list of dicts comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 8)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            x = self.deep(self.conv(image[None]).relu()).relu()
            found.append({"scores": self.head(x.mean((2, 3)))[0]})
        return found


class FrozenBackbone(nn.Module):
    """A backbone under ``no_grad``, as feature extractors are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(24, 48)
        self.head = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x).relu()
        return self.head(features)


class KeywordLayers(nn.Module):
    """Layers called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, *, x: Tensor) -> Tensor:
        return self.out(input=self.a(input=x).relu())


class OwnParameter(nn.Module):
    """Parameters with two dimensions beside layers, in a block and at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(6, 24))
        self.block = nn.ModuleDict({"inner": Placed()})
        self.out = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block["inner"](x + self.place))


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(6, 24))
        self.fc = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.place).relu()


class Mixture(nn.Module):
    """Which expert runs depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 32)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(x).relu()
        parts = [self.experts[int(row.sum() > h.mean() * 32)](row[None]) for row in h]
        return self.out(torch.cat(parts).relu())


class LengthFirst(nn.Module):
    """Batch is the second dimension of inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 24)
        self.fc = nn.Linear(24, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        return self.out(self.fc(y).relu())


class Tupled(nn.Module):
    """One positional argument that is a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.out(self.a(batch["x"]).relu())


class MixedTypes(nn.Module):
    """One half in bfloat16; the last activation is kept on the module, with its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32).bfloat16()
        self.out = nn.Linear(32, 16)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.kept = self.a(x.bfloat16()).relu().float()
        return self.out(self.kept if mask is None else self.kept * mask)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 32)
        self.out = nn.Linear(32, 16)

    def _body(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._body, x, use_reentrant=False)
