# SPDX-License-Identifier: Apache-2.0
"""Thirty networks with random weights, for the tables of counts: of torchvision, timm, transformers, and own.

Nothing is fetched. The libraries are imported when a network is built, so that this file imports with torch
alone; ``make bench-counts`` installs them into an environment of their own.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = Mapping[str, Tensor | list[Tensor] | int]


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network of the zoo.

    Attributes:
        name: as its library calls it, or ours.
        source: "torchvision", "timm", "transformers" or "here".
        build: makes it, weights random.
        inputs: number of samples -> keyword arguments of one forward; tensor names as in its signature.
    """

    name: str
    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]


def build(net: Net) -> nn.Module:
    """A network of the zoo, settled: seeded, in eval mode, norm statistics random, no matrix all zero.

    Args:
        net: one of ``NETS``.

    Returns:
        The network.
    """
    torch.manual_seed(0)
    model = net.build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(0, 0.02)
    return model


_STAND_INS: list[torch.library.Library] = []


def stand_in_for_torchvision() -> None:
    """Brings the operators without which torchvision's wheel cannot be imported beside a CPU torch.

    To be called before torchvision, timm or transformers are imported. ``nms``, which detectors call, is
    written in Python here; the rest of torchvision's kernels have fallbacks of its own.
    """
    if _STAND_INS or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _STAND_INS.append(library)
    extension = importlib.import_module("torchvision.extension")
    # Asked before nms is called, and answered by what the wheel brought.
    extension._has_ops = lambda: True
    pooling = importlib.import_module("torchvision.ops.roi_align")
    # The fallback compiles itself at its first call: that takes longer than all others, and hides its ops.
    pooling._roi_align = pooling._roi_align.__wrapped__


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """(M, 4) boxes and (M,) scores to the places of those that no better one overlaps by more, best first."""
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    corner1 = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    corner2 = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (corner2 - corner1).clamp(min=0).prod(2)
    overlaps = (shared / (areas[:, None] + areas[None] - shared) > iou_threshold).triu(1)
    stays = torch.ones(len(order), dtype=torch.bool)
    for place, own in enumerate(overlaps):
        if stays[place]:
            stays &= ~own
    return order[stays]


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Fused kernels off, so that attention, LSTMs and experts run as the products that torch's counter knows.

    Args:
        model: the network that will run; the experts of transformers are switched in its configuration.
    """
    config = getattr(model, "config", None)
    experts = getattr(config, "_experts_implementation", None)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if experts is not None:
        config._experts_implementation = "eager"
    try:
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if experts is not None:
            config._experts_implementation = experts


class UNet(nn.Module):
    """Two levels down, two up by transposed convolutions, with skips."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = _double(3, width)
        self.down1, self.down2 = _double(width, 2 * width), _double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = _double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = _double(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 4, H, W)."""
        first = self.enter(x)
        second = self.down1(functional.max_pool2d(first, 2))
        third = self.down2(functional.max_pool2d(second, 2))
        second = self.join2(torch.cat([self.up2(third), second], 1))
        return self.head(self.join1(torch.cat([self.up1(second), first], 1)))


def _double(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
        nn.Conv2d(n_out, n_out, 3, padding=1),
        nn.ReLU(),
    )


class AudioNet(nn.Module):
    """Strided and dilated one-dimensional convolutions, then an LSTM over time."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(1, 64, 80, stride=16),
            nn.ReLU(),
            nn.Conv1d(64, 128, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv1d(128, 256, 3, stride=2),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(256, 128, batch_first=True)
        self.head = nn.Linear(128, 35)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, T) to (N, 35)."""
        return self.head(self.lstm(self.convs(x).transpose(1, 2))[0].mean(1))


class SharedNet(nn.Module):
    """One layer called at two places, at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.shared = nn.Conv2d(64, 64, 3, padding=1)
        self.own = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 10)."""
        x = self.shared(self.stem(x).relu()).relu()
        x = self.shared(functional.avg_pool2d(x, 2)).relu()
        return self.head(self.own(x).relu().mean((2, 3)))


def _video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 32, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
        nn.BatchNorm3d(32),
        nn.ReLU(),
        nn.Conv3d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv3d(64, 128, (1, 3, 3), padding="same"),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(128, 50),
    )


def _generator() -> nn.Module:
    widths = (100, 256, 128, 64)
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        stride, padding = (1, 0) if index == 0 else (2, 1)
        layers += [
            nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1))


def _valid() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 7),
        nn.ReLU(),
        nn.Conv2d(48, 96, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(96, 96, (5, 3), stride=(1, 2), padding="valid"),
        nn.ReLU(),
        nn.Conv2d(96, 128, 3, dilation=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def from_torchvision(name: str, **options: object) -> nn.Module:
    """A network of torchvision by its name there, without weights."""
    stand_in_for_torchvision()
    import torchvision  # noqa: PLC0415

    # Its published params leave out the heads that serve training alone.
    own = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **own, **options)


def from_timm(name: str, **options: object) -> nn.Module:
    """A network of timm by its name there, without weights."""
    stand_in_for_torchvision()
    import timm  # noqa: PLC0415

    return timm.create_model(name, pretrained=False, **options)


def from_transformers(kind: str, **options: object) -> nn.Module:
    """A network of transformers from its configuration: "Bert:ForSequenceClassification" and options."""
    stand_in_for_torchvision()
    import transformers  # noqa: PLC0415

    family, head = kind.split(":")
    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}{head}")(config)


def noise(name: str, *shape: int) -> Callable[[int], Inputs]:
    """Normal noise of this shape for the argument ``name``, any number of samples."""
    return lambda n: {name: torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))}


def tokens(*names: str, length: int = 128, vocab: int = 1000) -> Callable[[int], Inputs]:
    """Random tokens for the arguments ``names``, any number of samples."""

    def draw(n: int) -> Inputs:
        generator = torch.Generator().manual_seed(n)
        return {name: torch.randint(5, vocab, (n, length), generator=generator) for name in names}

    return draw


_IMAGE = noise("x", 3, 224, 224)
_BERT = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
}
_LLAMA = _BERT | {"num_key_value_heads": 2, "use_cache": False}


def _net(
    source: str, name: str, make: Callable[[], nn.Module], inputs: Callable[[int], Inputs] = _IMAGE
) -> Net:
    return Net(name=name, source=source, build=make, inputs=inputs)


_TORCHVISION = (
    "resnet18",
    "resnet50",
    "vgg11",
    "googlenet",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
)
_TIMM = (
    "resnext26ts",
    "mobilevitv2_050",
    "mixer_s16_224",
    "vit_tiny_patch16_224",
    "poolformer_s12",
    "levit_128s",
)
_TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "bert": (lambda: from_transformers("Bert:ForSequenceClassification", **_BERT), tokens("input_ids")),
    "gpt2": (
        lambda: from_transformers(
            "GPT2:LMHeadModel",
            vocab_size=1000,
            n_embd=256,
            n_layer=4,
            n_head=8,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        ),
        tokens("input_ids"),
    ),
    "llama_gqa": (lambda: from_transformers("Llama:ForCausalLM", **_LLAMA), tokens("input_ids")),
    "mixtral_moe": (
        lambda: from_transformers("Mixtral:ForCausalLM", num_local_experts=4, **_LLAMA),
        tokens("input_ids"),
    ),
    "t5": (
        lambda: from_transformers(
            "T5:ForConditionalGeneration",
            vocab_size=1000,
            d_model=256,
            d_kv=32,
            d_ff=1024,
            num_layers=3,
            num_heads=8,
            use_cache=False,
        ),
        tokens("input_ids", "decoder_input_ids", length=64),
    ),
    "vit": (
        lambda: from_transformers(
            "ViT:ForImageClassification",
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=768,
        ),
        noise("pixel_values", 3, 224, 224),
    ),
    "swin": (
        lambda: from_transformers(
            "Swin:ForImageClassification", embed_dim=48, depths=[2, 2, 2], num_heads=[2, 4, 8]
        ),
        noise("pixel_values", 3, 224, 224),
    ),
    "whisper": (
        lambda: from_transformers(
            "Whisper:ForConditionalGeneration",
            vocab_size=1000,
            d_model=192,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=768,
            decoder_ffn_dim=768,
            max_source_positions=200,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            use_cache=False,
        ),
        lambda n: {
            **noise("input_features", 80, 400)(n),
            **tokens("decoder_input_ids", length=32)(n),
        },
    ),
}
_HERE: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "unet": (UNet, noise("x", 3, 64, 64)),
    "conv1d_lstm_audio": (AudioNet, noise("x", 1, 8000)),
    "conv3d_video": (_video, noise("input", 3, 8, 56, 56)),
    "transposed_generator": (_generator, noise("input", 100, 1, 1)),
    "layer_called_twice": (SharedNet, noise("x", 3, 32, 32)),
    "valid_strided_convs": (_valid, noise("input", 3, 48, 48)),
}


def _nets() -> Iterator[Net]:
    for name in _TORCHVISION:
        yield _net("torchvision", name, lambda name=name: from_torchvision(name))
    for name in _TIMM:
        size = 256 if name in {"resnext26ts", "mobilevitv2_050"} else 224
        yield _net("timm", name, lambda name=name: from_timm(name), noise("x", 3, size, size))
    for name, (make, inputs) in _TRANSFORMERS.items():
        yield _net("transformers", name, make, inputs)
    for name, (make, inputs) in _HERE.items():
        yield _net("here", name, make, inputs)


NETS: Mapping[str, Net] = {f"{net.source}/{net.name}": net for net in _nets()}
