# SPDX-License-Identifier: Apache-2.0
"""Small networks assembled at random from what people build networks of. Imports torch and Hypothesis alone.

A network is a list of steps. Each is a module and the values that it reads: the input, or what earlier steps
gave. Steps are thrown by dice while the network runs on a sample, so that the next one knows the shapes.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

MAX_CHANNELS, MAX_SIDE, VOCAB = 24, 16, 11
N_OUTPUTS = 5


class RandomNet(nn.Module):
    """Steps in order; the last values come out.

    Attributes:
        parts: module of each step.
        reads: values that each step reads: 0 is the input, k what step k - 1 gave.
    """

    def __init__(self, steps: Sequence[tuple[nn.Module, tuple[int, ...]]], n_ends: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _ in steps)
        self.reads = tuple(reads for _, reads in steps)
        self.n_ends = n_ends

    def extra_repr(self) -> str:
        return f"reads={self.reads}, n_ends={self.n_ends}"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for part, reads in zip(self.parts, self.reads, strict=True):
            values.append(part(*(values[place] for place in reads)))
        ends = values[-self.n_ends :]
        return ends[0] if self.n_ends == 1 else tuple(ends)


class Call(nn.Module):
    """A function without weights; ``name`` tells which in a failing example."""

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.adaptive_avg_pool2d(x, 1)
        return x * self.up(self.down(y).relu()).sigmoid()


class SplitStage(nn.Module):
    """Halves go apart: one through a convolution, then both are concatenated."""

    def __init__(self, width: int, *, by_size: bool) -> None:
        super().__init__()
        self.half = width // 2
        self.enter = nn.Conv2d(width, 2 * self.half, 1)
        self.step = nn.Conv2d(self.half, self.half, 3, padding=1)
        self.by_size = by_size

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        left, right = y.split(self.half, 1) if self.by_size else y.chunk(2, 1)
        return torch.cat([left, self.step(right), right], 1)


class ShuffleUnit(nn.Module):
    """Channels of two branches shuffled by view and transpose, as in ShuffleNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.enter = nn.Conv2d(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.depthwise(self.enter(right).relu())], 1)
        N, C, H, W = y.shape
        return y.view(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, C, H, W)


class LastNorm(nn.Module):
    """A norm over channels of a picture, by permuting to channels last."""

    def __init__(self, width: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.norm = kind(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Inverted(nn.Module):
    """Wide, depthwise, narrow, and added to what came in."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """Queries, keys and values by layers of their own; with fewer key heads they are repeated."""

    def __init__(self, width: int, n_heads: int, n_key_heads: int, head_width: int, *, flat: bool) -> None:
        super().__init__()
        self.n_heads, self.n_key_heads, self.head_width = n_heads, n_key_heads, head_width
        self.query = nn.Linear(width, n_heads * head_width)
        self.key = nn.Linear(width, n_key_heads * head_width)
        self.value = nn.Linear(width, n_key_heads * head_width)
        self.out = nn.Linear(n_heads * head_width, width)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        N, T, _ = x.shape
        q = self.query(x).view(N, T, self.n_heads, self.head_width).transpose(1, 2)
        k = self.key(x).view(N, T, self.n_key_heads, self.head_width).transpose(1, 2)
        v = self.value(x).view(N, T, self.n_key_heads, self.head_width).transpose(1, 2)
        if self.n_key_heads != self.n_heads:
            times = self.n_heads // self.n_key_heads
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        if self.flat:
            scores = (q @ k.transpose(-2, -1)) * 0.5
            y = scores.softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).reshape(N, T, -1))


class FusedAttention(nn.Module):
    """One layer for queries, keys and values, taken apart by view or by chunk."""

    def __init__(self, width: int, n_heads: int, *, by_chunk: bool) -> None:
        super().__init__()
        self.n_heads, self.by_chunk = n_heads, by_chunk
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, _ = x.shape
        y = self.qkv(x)
        if self.by_chunk:
            q, k, v = (part.view(N, T, self.n_heads, -1).transpose(1, 2) for part in y.chunk(3, -1))
        else:
            q, k, v = y.reshape(N, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class GatedFeed(nn.Module):
    def __init__(self, width: int, hidden: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.gate = nn.Linear(width, 2 * hidden if fused else hidden)
        self.up = None if fused else nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.up is None:
            return self.down(functional.glu(self.gate(x), -1))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class TiedFeed(nn.Module):
    """One weight there and back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.up(x).relu(), self.up.weight.t())


class OverTime(nn.Module):
    """A convolution along the tokens."""

    def __init__(self, width: int, n_out: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, n_out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class Placed(nn.Module):
    """Positions added, and a token put in front."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.zeros(1, length + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place


class Residual(nn.Module):
    """A step of the same width, added to what came in, a norm before it where there is one."""

    def __init__(self, norm: nn.Module, step: nn.Module) -> None:
        super().__init__()
        self.norm, self.step = norm, step

    def forward(self, x: Tensor) -> Tensor:
        return x + self.step(self.norm(x))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A random network and what it takes.

    Attributes:
        model: in eval mode, weights and norm statistics random.
        shape: of one sample.
        vocab: number of tokens where the inputs are tokens; None where they are numbers.
    """

    model: RandomNet
    shape: tuple[int, ...]
    vocab: int | None

    def inputs(self, n: int, seed: int = 0) -> Tensor:
        """``n`` samples."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocab is not None:
            return torch.randint(0, self.vocab, (n, *self.shape), generator=generator)
        return torch.randn(n, *self.shape, generator=generator)


Reads = tuple[int, ...]
Made = tuple[nn.Module, Reads]
Values = Sequence[Tensor]
# What a kind of step makes of the values so far; None where it does not fit them.
Maker = Callable[[random.Random, Values], Made | None]

_ACTIVATIONS = (
    nn.ReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.ELU,
    nn.Softplus,
)
_PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu_": lambda x: x.clone().relu_(),
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
    "0.5 x + 1": lambda x: 0.5 * x + 1,
    "clamp": lambda x: x.clamp(-1, 1),
    "abs, sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "softmax over channels": lambda x: x.softmax(1),
    "cumsum over channels": lambda x: x.cumsum(1),
    "less its mean": lambda x: x - x.mean(1, keepdim=True),
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip(1),
    "dtype there and back": lambda x: x.double().float(),
    "contiguous": lambda x: x.contiguous(),
    "dropout": lambda x: functional.dropout(x, 0.1, training=False),
}


def _here(module: nn.Module, values: Values) -> Made:
    return module, (len(values) - 1,)


def _activation(dice: random.Random, values: Values) -> Made:
    if dice.random() < 0.5:
        return _here(dice.choice(_ACTIVATIONS)(), values)
    name = dice.choice(sorted(_PLAIN))
    return _here(Call(name, _PLAIN[name]), values)


def _width(dice: random.Random, step: int = 1) -> int:
    return step * dice.randint(1, 12 // step) + step


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _conv(dice: random.Random, values: Values) -> Made:
    _, C, H, _ = values[-1].shape
    groups = dice.choice([1, 1, 1, *_divisors(C)])
    kernel = dice.choice([1, 3])
    stride = dice.choice([1, 1, 2]) if H >= 4 else 1
    mode = dice.choice(["zeros", "zeros", "reflect", "replicate"]) if H > 1 else "zeros"
    n_out = groups * dice.randint(1, max(12 // groups, 1))
    conv = nn.Conv2d(
        C, n_out, kernel, stride, kernel // 2, groups=groups, bias=dice.random() < 0.5, padding_mode=mode
    )
    return _here(conv, values)


def _transposed(dice: random.Random, values: Values) -> Made | None:
    _, C, H, _ = values[-1].shape
    if 2 * H > MAX_SIDE:
        return None
    groups = dice.choice([1, 1, *_divisors(C)])
    n_out = groups * dice.randint(1, max(8 // groups, 1))
    return _here(nn.ConvTranspose2d(C, n_out, 2, 2, groups=groups, bias=dice.random() < 0.5), values)


def _norm(dice: random.Random, values: Values) -> Made:
    C = values[-1].shape[1]
    kind = dice.choice(["batch", "batch", "group", "instance", "layer", "rms", "prelu"])
    if kind == "group":
        return _here(nn.GroupNorm(dice.choice(_divisors(C)), C), values)
    if kind in ("layer", "rms"):
        return _here(LastNorm(C, nn.LayerNorm if kind == "layer" else nn.RMSNorm), values)
    if kind == "instance" and values[-1].shape[2] > 1:
        return _here(nn.InstanceNorm2d(C, affine=True), values)
    return _here(nn.PReLU(C) if kind == "prelu" else nn.BatchNorm2d(C), values)


def _block(dice: random.Random, values: Values) -> Made | None:
    C = values[-1].shape[1]
    kind = dice.choice(["squeeze", "split", "shuffle", "inverted"])
    if kind == "squeeze":
        return _here(SqueezeExcite(C, _width(dice)), values)
    if kind == "inverted":
        return _here(Inverted(C, _width(dice)), values)
    if C % 2 or C < 4:
        return None
    return _here(SplitStage(C, by_size=dice.random() < 0.5) if kind == "split" else ShuffleUnit(C), values)


def _resize(dice: random.Random, values: Values) -> Made | None:
    H = values[-1].shape[2]
    name = dice.choice(["max", "avg", "adaptive", "nearest", "bilinear", "pad", "crop"])
    if (name in ("max", "avg", "adaptive", "crop") and H < 4) or (
        name in ("nearest", "bilinear", "pad") and 2 * H > MAX_SIDE
    ):
        return None
    functions: Mapping[str, Callable[[Tensor], Tensor]] = {
        "max": lambda x: functional.max_pool2d(x, 2),
        "avg": lambda x: functional.avg_pool2d(x, 3, 2, 1),
        "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 2),
        "nearest": lambda x: functional.interpolate(x, scale_factor=2.0),
        "bilinear": lambda x: functional.interpolate(x, size=(H + 1, H + 1), mode="bilinear"),
        "pad": lambda x: functional.pad(x, (1, 0, 0, 1)),
        "crop": lambda x: x[..., 1:, :-1],
    }
    return _here(Call(name, functions[name]), values)


def _channels(dice: random.Random, values: Values) -> Made | None:
    """Channels moved about, without weights."""
    _, C, H, _ = values[-1].shape
    half = dice.randint(1, max(C - 1, 1))
    groups = dice.choice(_divisors(C))
    offers: dict[str, tuple[bool, nn.Module]] = {
        "pixel shuffle": (C % 4 == 0 and 2 * H <= MAX_SIDE, nn.PixelShuffle(2)),
        "pixel unshuffle": (4 * C <= MAX_CHANNELS and H % 2 == 0, nn.PixelUnshuffle(2)),
        "channel shuffle": (C > 1, nn.ChannelShuffle(groups)),
        f"first {half}": (C > 1, Call(f"x[:, :{half}]", lambda x: x[:, :half])),
        f"last {half}": (C > 1, Call(f"narrow to the last {half}", lambda x: x.narrow(1, C - half, half))),
        "every other": (C > 1, Call("x[:, ::2]", lambda x: x[:, ::2])),
        "glu": (C % 2 == 0, nn.GLU(1)),
        "zero channels": (C < 12, Call("two more, zero", lambda x: functional.pad(x, (0, 0, 0, 0, 0, 2)))),
        "repeat": (2 * C <= MAX_CHANNELS, Call("repeat", lambda x: x.repeat(1, 2, 1, 1))),
        "stack": (2 * C <= MAX_CHANNELS, Call("stack", lambda x: torch.stack([x, -x], 2).flatten(1, 2))),
        "swapped": (C % 2 == 0, Call("halves swapped", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))),
    }
    names = [name for name, (fits, _) in offers.items() if fits]
    return _here(offers[dice.choice(names)][1], values) if names else None


def _join(dice: random.Random, values: Values) -> Made | None:
    """With an earlier value: added, multiplied or concatenated."""
    last = values[-1]
    alike = [
        k for k, value in enumerate(values[:-1]) if (value.shape, value.dtype) == (last.shape, last.dtype)
    ]
    narrow = [
        k
        for k, value in enumerate(values[1:-1], 1)
        if value.ndim == last.ndim
        and value.is_floating_point()
        and _but_channels(value) == _but_channels(last)
        and _n_channels(value) + _n_channels(last) <= MAX_CHANNELS
    ]
    kind = dice.choice(["add", "multiply", "concatenate", "larger"])
    dim = 1 if last.ndim == 4 else -1
    functions: Mapping[str, Callable[..., Tensor]] = {
        "add": lambda a, b: a + b,
        "multiply": lambda a, b: a * b.sigmoid(),
        "larger": torch.maximum,
        "concatenate": lambda a, b: torch.cat([a, b], dim),
    }
    partners = narrow if kind == "concatenate" else alike
    if not partners:
        return None
    return Call(kind, functions[kind]), (dice.choice(partners), len(values) - 1)


def _n_channels(value: Tensor) -> int:
    return value.shape[1 if value.ndim == 4 else -1]


def _but_channels(value: Tensor) -> torch.Size:
    return value.shape[2:] if value.ndim == 4 else value.shape[:-1]


def _to_tokens(dice: random.Random, values: Values) -> Made:
    if dice.random() < 0.5:
        return _here(Call("flatten, transpose", lambda x: x.flatten(2).transpose(1, 2)), values)
    return _here(Call("permute, flatten", lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)), values)


def _linear(dice: random.Random, values: Values) -> Made:
    return _here(nn.Linear(values[-1].shape[-1], _width(dice), bias=dice.random() < 0.5), values)


def _attend(dice: random.Random, values: Values) -> Made | None:
    width = values[-1].shape[-1]
    kind = dice.choice(["apart", "apart", "fused", "torch"])
    if kind == "apart":
        key_heads = dice.randint(1, 3)
        heads = key_heads * dice.randint(1, 2)
        step: nn.Module = Attention(width, heads, key_heads, dice.randint(1, 4), flat=dice.random() < 0.5)
    else:
        heads = dice.choice(_divisors(width))
        step = (
            TorchAttention(width, heads)
            if kind == "torch"
            else FusedAttention(width, heads, by_chunk=dice.random() < 0.5)
        )
    return _here(_maybe_residual(dice, width, step), values)


def _maybe_residual(dice: random.Random, width: int, step: nn.Module) -> nn.Module:
    norm = dice.choice(["none", "layer", "rms", "identity"])
    if norm == "none":
        return step
    return Residual({"layer": nn.LayerNorm, "rms": nn.RMSNorm}.get(norm, nn.Identity)(width), step)


def _feed(dice: random.Random, values: Values) -> Made:
    width, hidden = values[-1].shape[-1], _width(dice)
    kind = dice.choice(["plain", "gated", "fused", "tied"])
    steps: Mapping[str, nn.Module] = {
        "plain": nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
        "gated": GatedFeed(width, hidden, fused=False),
        "fused": GatedFeed(width, hidden, fused=True),
        "tied": TiedFeed(width, hidden),
    }
    return _here(_maybe_residual(dice, width, steps[kind]), values)


def _over_time(dice: random.Random, values: Values) -> Made:
    width = values[-1].shape[-1]
    kind = dice.choice(["conv", "conv", "depthwise", "grouped", "recurrent", "placed"])
    if kind == "recurrent":
        return _here(Recurrent(width, _width(dice)), values)
    if kind == "placed":
        return _here(Placed(values[-1].shape[1], width), values)
    groups = {"conv": 1, "depthwise": width}.get(kind) or dice.choice(_divisors(width))
    n_out = groups * dice.randint(1, max(8 // groups, 1))
    return _here(OverTime(width, n_out, groups), values)


def _token_norm(dice: random.Random, values: Values) -> Made:
    return _here(dice.choice([nn.LayerNorm, nn.RMSNorm])(values[-1].shape[-1]), values)


_PICTURE: tuple[Maker, ...] = (
    _conv,
    _conv,
    _conv,
    _transposed,
    _norm,
    _activation,
    _block,
    _resize,
    _channels,
    _join,
)
_TOKENS: tuple[Maker, ...] = (
    _linear,
    _linear,
    _attend,
    _attend,
    _feed,
    _over_time,
    _token_norm,
    _activation,
    _join,
)


def _head(dice: random.Random, values: Values) -> list[Made]:
    """From the last value to outputs."""
    last, place = values[-1], len(values) - 1
    if last.ndim == 4 and last[0].numel() <= 256 and dice.random() < 0.5:
        view = Call("contiguous, view", lambda x: x.contiguous().view(len(x), -1))
        flat: nn.Module = nn.Flatten() if dice.random() < 0.5 else view
        width = last[0].numel()
    elif last.ndim == 4:
        flat, width = Call("mean", lambda x: x.mean((2, 3))), last.shape[1]
    else:
        how = dice.choice(["mean", "first", "all"])
        functions: Mapping[str, Callable[[Tensor], Tensor]] = {
            "mean": lambda x: x.mean(1),
            "first": lambda x: x[:, 0],
            "all": lambda x: x,
        }
        flat, width = Call(how, functions[how]), last.shape[-1]
    steps: list[Made] = [(flat, (place,))]
    if dice.random() < 0.5:
        hidden = _width(dice)
        steps += [(nn.Linear(width, hidden), (place + 1,)), (nn.ReLU(), (place + 2,))]
        width = hidden
    return [*steps, (nn.Linear(width, N_OUTPUTS), (place + len(steps),))]


@st.composite
def random_nets(draw: st.DrawFn, max_steps: int = 10) -> Example:
    """A network of some steps and a head: pictures, then perhaps tokens, or tokens alone.

    All but the number of steps comes from one seed: Hypothesis prefers what is simple, and would leave out
    most kinds of steps.
    """
    n_steps = draw(st.integers(2, max_steps))
    return random_net(n_steps, draw(st.integers(0, 2**32 - 1)))


def random_net(n_steps: int, seed: int) -> Example:
    """The network of a seed.

    Args:
        n_steps: between the first layer and the head.
        seed: of everything else.

    Returns:
        The network and what it takes.
    """
    dice = random.Random(seed)
    kind = dice.choice(["picture", "picture", "picture", "sequence", "ids"])
    shape = {"picture": (3, 8, 8), "sequence": (6, 8), "ids": (6,)}[kind]
    values = [torch.zeros((2, *shape), dtype=torch.long if kind == "ids" else torch.float32)]
    steps: list[Made] = []

    def add(made: Made | None) -> None:
        if made is not None:
            part, reads = made
            with torch.no_grad():
                values.append(part.eval()(*(values[place] for place in reads)))
            steps.append(made)

    if kind == "picture":
        add(_here(nn.Conv2d(3, _width(dice, 4), 3, padding=1), values))
    else:
        width = _width(dice, 4)
        add(_here(nn.Embedding(VOCAB, width) if kind == "ids" else nn.Linear(8, width), values))
    turn = dice.randint(1, 12)
    while len(steps) <= n_steps:
        if len(steps) >= turn and values[-1].ndim == 4:
            add(_to_tokens(dice, values))
        makers = _PICTURE if values[-1].ndim == 4 else _TOKENS
        add(dice.choice(makers)(dice, values))
    for made in _head(dice, values):
        add(made)
    has_two_ends = dice.random() < 0.15
    if has_two_ends:
        place = dice.randrange(1, len(values) - 1)
        steps.append((Call("doubled", lambda x: 2 * x), (place,)))
    model = RandomNet(steps, 2 if has_two_ends else 1).eval()
    _settle(model, seed)
    return Example(model=model, shape=shape, vocab=VOCAB if kind == "ids" else None)


def _settle(model: nn.Module, seed: int) -> None:
    """Norm statistics, scales and shifts at random, and no weight zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.sigmoid())
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.2 * noise)
            elif tensor.is_floating_point() and tensor.ndim >= 2:
                tensor.copy_((1.5 / tensor[0].numel()) ** 0.5 * noise)
            elif tensor.is_floating_point():
                tensor.copy_(1 + 0.2 * noise)
