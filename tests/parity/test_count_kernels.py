# SPDX-License-Identifier: Apache-2.0
"""MACs of kernels that torch's counter has no formula for, against hand counts, and of modules by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.capture import count_by_module, count_cost
from slimrank.forward import as_batch

_STEPS, _WIDTH, _HIDDEN = 5, 6, 4


class _Call(nn.Module):
    """A function as a model, with a Linear beside it so that there is something to compress."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """(N, 8) to (N, 8); the function sees what is given beside x."""
        return self.fc(x) + 0 * self.function(*others).float().sum()


def _lstm_macs(*, layers: int, directions: int, proj: int) -> int:
    out = proj or _HIDDEN
    total = 0
    for layer in range(layers):
        width = _WIDTH if layer == 0 else directions * out
        total += directions * (4 * _HIDDEN * (width + out) + proj * _HIDDEN)
    return _STEPS * total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "proj"),
    [(1, False, 0), (2, False, 0), (1, True, 0), (2, True, 0), (2, True, 3)],
)
# torch tells that oneDNN has no projections.
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_lstm(layers: int, bidirectional: bool, proj: int, bias: bool, dtype: torch.dtype) -> None:
    lstm = nn.LSTM(
        _WIDTH,
        _HIDDEN,
        layers,
        bias=bias,
        bidirectional=bidirectional,
        proj_size=proj,
        batch_first=True,
        dtype=dtype,
    ).eval()
    macs = _lstm_macs(layers=layers, directions=1 + bidirectional, proj=proj)
    assert count_cost(lstm, as_batch(torch.zeros(1, _STEPS, _WIDTH, dtype=dtype))).macs == macs
    assert count_cost(lstm, as_batch(torch.zeros(3, _STEPS, _WIDTH, dtype=dtype))).macs == 3 * macs


class _Heard(nn.Module):
    """A convolution over time, then an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, _WIDTH, 3)
        self.lstm = nn.LSTM(_WIDTH, _HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(_HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, T) to (N, 3)."""
        return self.head(self.lstm(self.conv(x).relu().transpose(1, 2))[0].mean(1))


def test_study_of_a_convolution_and_an_lstm(rng: torch.Generator) -> None:
    x = torch.randn(4, 2, _STEPS + 2, generator=rng)
    study = sr.study(_Heard().eval(), [x], data_free=True, progress=False)
    lstm = _lstm_macs(layers=2, directions=1, proj=0)
    assert study.before.macs == _STEPS * 2 * _WIDTH * 3 + lstm + _HIDDEN * 3
    # The layer stands for its input matrix; the rest of its MACs is nobody's.
    assert {spec.name: spec.macs for spec in study.layers}["lstm"] == _STEPS * 4 * _HIDDEN * _WIDTH
    assert not any("leave out" in note.text for note in study.notes)


def _packed_lstm(device: str) -> tuple[nn.LSTM, int]:
    lstm = nn.LSTM(_WIDTH, _HIDDEN, 2, bidirectional=True, batch_first=True).to(device).eval()
    return lstm, _lstm_macs(layers=2, directions=2, proj=0)


def test_rnn_kernel_of_cuda_on_shapes_alone() -> None:
    lstm, macs = _packed_lstm("meta")

    class OnCuda(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(4, 1, _HIDDEN)
            options = (2, _HIDDEN, 0, 2, True, 0.0, False, True, [], None)
            weights = [parameter.detach() for parameter in lstm.parameters()]
            return torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, *options)[0]

    assert count_cost(OnCuda(), as_batch(torch.zeros(1, _STEPS, _WIDTH, device="meta"))).macs == macs


@pytest.mark.gpu
def test_lstm_on_cuda() -> None:
    lstm, macs = _packed_lstm("cuda")
    assert count_cost(lstm, as_batch(torch.zeros(1, _STEPS, _WIDTH, device="cuda"))).macs == macs


def test_bilinear() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Bilinear(7, 3, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.mix(x, y)

    cost, by_module, _ = count_by_module(Pair(), as_batch((torch.zeros(1, 5, 7), torch.zeros(1, 5, 3))))
    assert cost.macs == by_module["mix"] == 5 * 7 * 3 * 2


_FLOATS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], int]] = {
    "matrix @ vector": (torch.matmul, ((3, 4), (4,)), 12),
    "stacked @ vector": (torch.matmul, ((2, 3, 4), (4,)), 24),
    "vector @ vector": (torch.matmul, ((4,), (4,)), 4),
    "vdot": (torch.vdot, ((4,), (4,)), 4),
    "addmv": (torch.addmv, ((3,), (3, 4), (4,)), 12),
    "addbmm": (torch.addbmm, ((3, 5), (2, 3, 4), (2, 4, 5)), 120),
}


@pytest.mark.parametrize("name", _FLOATS)
def test_products_with_vectors_and_sums(name: str) -> None:
    function, shapes, macs = _FLOATS[name]
    model = _Call(function)
    found = count_cost(model, as_batch((torch.zeros(1, 8), *(torch.zeros(shape) for shape in shapes))))
    assert found.macs == 64 + macs


def test_whole_numbers() -> None:
    eights = torch.ones(32, 48, dtype=torch.int8), torch.ones(48, 16, dtype=torch.int8)
    found = count_cost(_Call(torch._int_mm), as_batch((torch.zeros(1, 8), *eights)))
    assert found.macs == 64 + 32 * 48 * 16


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize(
    ("a", "b", "ends", "macs"),
    [
        ((6, 8), (2, 8, 16), [2, 6], 6 * 8 * 16),
        ((16, 24), (24, 32), [8, 24], 16 * 24 * 32),
        ((2, 16, 8), (2, 8, 32), None, 2 * 16 * 8 * 32),
        ((2, 16, 8), (8, 48), [16, 48], 16 * 8 * 48),
    ],
    ids=["rows", "sums", "stacked", "columns"],
)
def test_products_in_groups(
    a: tuple[int, ...], b: tuple[int, ...], ends: list[int] | None, macs: int
) -> None:
    tensors = [torch.zeros(shape, dtype=torch.bfloat16) for shape in (a, b)]
    if ends is not None:
        tensors.append(torch.tensor(ends, dtype=torch.int32))
    found = count_cost(_Call(torch._grouped_mm), as_batch((torch.zeros(1, 8), *tensors)))
    assert found.macs == 64 + macs


def test_experts_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    options = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "use_cache": False,
    }
    n_tokens = 5
    experts = 2 * n_tokens * 3 * 16 * 24
    attention = n_tokens * 4 * 16**2 + 2 * n_tokens**2 * 16
    router, head = n_tokens * 16 * 4, n_tokens * 16 * 50
    for kernel in ("grouped_mm", "eager"):
        config = transformers.MixtralConfig(**options, experts_implementation=kernel)
        model = transformers.MixtralForCausalLM(config).eval()
        found, _, uncounted = count_by_module(model, as_batch({"input_ids": torch.arange(n_tokens)[None]}))
        assert found.macs == experts + router + attention + head, kernel
        assert not uncounted


def test_kernels_without_a_formula_are_told(rng: torch.Generator) -> None:
    @torch.library.custom_op("slimrank_tests::product", mutates_args=())
    def product(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.exit = nn.Linear(8, 8), nn.Linear(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x, own = self.enter(x), self.attention
            weights = own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias
            x = torch._native_multi_head_attention(x, x, x, 8, 2, *weights, None, need_weights=False)[0]
            return product(self.exit(x).flatten(0, 1), x.new_ones(8, 3)).view(len(x), -1)

    x = torch.randn(3, 5, 8, generator=rng)
    study = sr.study(Fused().eval(), [x], data_free=True, progress=False)
    told = "MACs leave out aten._native_multi_head_attention, slimrank_tests.product:"
    assert any(note.where == "capture" and note.text.startswith(told) for note in study.notes)
    assert study.before.macs == 2 * 5 * 8 * 8


class _TwoParents(nn.Module):
    """A convolution, and a pair of layers, that stand under two parents each."""

    def __init__(self) -> None:
        super().__init__()
        conv, pair = nn.Conv2d(8, 16, 3), nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
        self.p, self.q = nn.Sequential(conv), nn.Sequential(conv, nn.ReLU())
        self.r, self.s = nn.Sequential(pair), nn.Sequential(pair, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8, H, W) to (N, 16)."""
        x = (self.p(x) + self.q(x)).mean((2, 3))
        return self.s(self.r(x))


def test_layers_under_two_parents_add_up(rng: torch.Generator) -> None:
    x = torch.randn(4, 8, 9, 9, generator=rng)
    study = sr.study(_TwoParents().eval(), [x], data_free=True, progress=False)
    result = study.apply(study.plan(macs=0.6))
    assert {layer.name for layer in result.layers} == {"p.0", "r.0.0", "r.0.1"}
    assert all(layer.after.macs > 0 for layer in result.layers)
    assert sum(layer.before.macs for layer in result.layers) == result.before.macs
    assert sum(layer.after.macs for layer in result.layers) == result.after.macs
