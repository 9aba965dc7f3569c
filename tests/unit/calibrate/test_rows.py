# SPDX-License-Identifier: Apache-2.0
"""Rows of a layer's input: torch's own unfolding, the layer's own output, and how positions are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimrank.calibrate import (
    draw_positions,
    input_rows,
    n_positions,
    output_rows,
    output_rows_at,
    token_mask,
)
from slimrank.capture import describe_layers
from slimrank.cost import keeps_rows, row_cap, row_width
from slimrank.forward import Batch
from slimrank.records import LayerSpec
from slimrank.surgery import dense_weight

# torch says so of the layer itself.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

_Layer = Callable[[], nn.Module]
_CONVS_2D: dict[str, dict[str, object]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": (2, 3), "padding": (1, 0)},
    "non-square": {"kernel_size": (1, 4), "padding": (0, 2)},
    "dilated": {"kernel_size": (3, 2), "dilation": (2, 3), "padding": (2, 1), "stride": (1, 2)},
    "1x1 strided": {"kernel_size": 1, "stride": 2},
    "valid": {"kernel_size": 3, "padding": "valid"},
}
_OTHER_LAYERS: dict[str, tuple[_Layer, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear on tokens": (lambda: nn.Linear(5, 3), (4, 6, 5)),
    "linear on 4-D": (lambda: nn.Linear(5, 3), (2, 3, 4, 5)),
    "linear on one vector": (lambda: nn.Linear(5, 3), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3, stride=2, padding=2, dilation=2), (3, 4, 11)),
    "conv1d same": (lambda: nn.Conv1d(4, 3, 4, padding="same", padding_mode="circular"), (3, 4, 11)),
    "conv2d same, even": (lambda: nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 2)), (2, 3, 8, 9)),
    "conv2d same, reflect": (
        lambda: nn.Conv2d(3, 4, (4, 3), padding="same", padding_mode="reflect"),
        (2, 3, 8, 9),
    ),
    "conv2d without a batch": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 7)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 2), padding=(1, 1, 0)), (2, 2, 4, 7, 5)),
    "conv3d replicate": (
        lambda: nn.Conv3d(2, 3, 3, padding=(1, 2, 1), padding_mode="replicate"),
        (2, 2, 4, 3, 5),
    ),
}


def _spec(layer: nn.Module) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    return spec


def _linear(n_in: int = 5) -> LayerSpec:
    return _spec(nn.Linear(n_in, 3))


def _randomised(layer: nn.Module, rng: torch.Generator) -> nn.Module:
    layer.double().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return layer


def _padded(x: Tensor, layer: nn.Conv2d, mode: str) -> Tensor:
    if isinstance(layer.padding, str):
        return x
    p_h, p_w = layer.padding
    return functional.pad(x, (p_w, p_w, p_h, p_h), mode="constant" if mode == "zeros" else mode)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", _CONVS_2D)
def test_rows_of_a_convolution_are_torchs_unfolding(name: str, mode: str, rng: torch.Generator) -> None:
    layer = nn.Conv2d(3, 4, padding_mode=mode, **_CONVS_2D[name])
    spec = _spec(layer)
    x = torch.randn((2, 3, 9, 10), dtype=torch.float64, generator=rng)
    unfolded = functional.unfold(
        _padded(x, layer, mode), layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )
    expected = unfolded.transpose(1, 2).flatten(0, 1)  # (N L, D)
    assert n_positions(spec, tuple(x.shape)) == len(expected)
    assert row_width(spec) == expected.shape[1]
    assert torch.equal(input_rows(layer, spec, x, torch.arange(len(expected))), expected)
    some = torch.tensor([0, 3, len(expected) - 1])
    assert torch.equal(input_rows(layer, spec, x, some), expected[some])


@pytest.mark.parametrize("name", [*_OTHER_LAYERS, *_CONVS_2D])
def test_the_layer_is_a_product_of_its_rows(name: str, rng: torch.Generator) -> None:
    if name in _OTHER_LAYERS:
        make, shape = _OTHER_LAYERS[name]
    else:
        make, shape = (lambda: nn.Conv2d(3, 4, **_CONVS_2D[name])), (2, 3, 9, 10)
    layer = _randomised(make(), rng)
    spec = _spec(layer)
    x = torch.randn(shape, dtype=torch.float64, generator=rng)
    outputs = output_rows(spec, layer(x))
    assert n_positions(spec, shape) == len(outputs)
    rows = input_rows(layer, spec, x, torch.arange(len(outputs)))
    assert rows.shape[1] == row_width(spec)
    torch.testing.assert_close(rows @ dense_weight(layer).T + layer.bias, outputs)


def test_a_transposed_layer_gives_its_taps_before_they_are_added_up(rng: torch.Generator) -> None:
    layer = _randomised(nn.ConvTranspose2d(4, 3, (2, 3), stride=(2, 3)), rng)
    spec = _spec(layer)
    x = torch.randn((2, 4, 5, 6), dtype=torch.float64, generator=rng)
    rows = input_rows(layer, spec, x, torch.arange(n_positions(spec, tuple(x.shape))))
    assert rows.shape == (2 * 5 * 6, row_width(spec))
    taps = (rows @ dense_weight(layer).T).view(2, 5, 6, 3, 2, 3)  # (N, H, W, C_out, K_h, K_w)
    # Side by side, no two taps reach the same place: (N, C_out, H K_h, W K_w).
    outputs = taps.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 10, 18)
    torch.testing.assert_close(outputs + layer.bias[:, None, None], layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_keep_the_dtype(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(1, 1, 2, dtype=dtype)
    x = torch.arange(9, dtype=dtype).view(1, 1, 3, 3)
    rows = input_rows(layer, _spec(layer), x, torch.tensor([3]))
    assert torch.equal(rows, torch.tensor([[4, 5, 7, 8]], dtype=dtype))


@pytest.mark.parametrize("count", [1, 7, 23, 24])
def test_positions_are_drawn_without_repetition_up_to_the_count(count: int, rng: torch.Generator) -> None:
    positions = draw_positions(_linear(), torch.zeros(4, 6, 5), count, rng, None)
    assert positions.dtype == torch.int64
    assert len(positions) == len(positions.unique()) == count
    assert positions.tolist() == sorted(positions.tolist())
    assert positions.min() >= 0
    assert positions.max() < 24


def test_all_positions_are_taken_where_there_are_few(rng: torch.Generator) -> None:
    positions = draw_positions(_linear(), torch.zeros(4, 6, 5), 100, rng, None)
    assert torch.equal(positions, torch.arange(24))


def test_the_draw_follows_the_generator() -> None:
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return draw_positions(_linear(), torch.zeros(100, 5), 20, generator, None).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_every_position_can_be_drawn() -> None:
    seen = {
        int(p)
        for seed in range(60)
        for p in draw_positions(_linear(), torch.zeros(6, 5), 2, torch.Generator().manual_seed(seed), None)
    }
    assert seen == set(range(6))


_MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 5), [0, 1, 3]),
        ((6, 5), [0, 1, 3]),
        # (N, T, heads, C): both heads of a token count or do not.
        ((2, 3, 2, 5), [0, 1, 2, 3, 6, 7]),
        # Pooled over the tokens, or another length: the mask says nothing about these rows.
        ((2, 5), [0, 1]),
        ((2, 4, 5), list(range(8))),
    ],
    ids=str,
)
def test_padding_tokens_are_left_out(
    shape: tuple[int, ...], expected: list[int], rng: torch.Generator
) -> None:
    positions = draw_positions(_linear(), torch.zeros(shape), 100, rng, _MASK)
    assert positions.tolist() == expected


def test_drawn_positions_keep_to_the_mask(rng: torch.Generator) -> None:
    mask = torch.rand((20, 30), generator=rng) > 0.5
    positions = draw_positions(_linear(), torch.zeros(20, 30, 5), 50, rng, mask)
    assert len(positions.unique()) == 50
    assert mask.reshape(-1)[positions].all()


def test_a_mask_does_not_touch_convolutions(rng: torch.Generator) -> None:
    spec = _spec(nn.Conv1d(3, 2, 1))
    assert len(draw_positions(spec, torch.zeros(2, 3, 5), 100, rng, _MASK)) == 10


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"attention_mask": torch.tensor([[1, 0]])}, [[True, False]]),
        ({"attention_mask": torch.tensor([[1.0, 0.0]])}, [[True, False]]),
        ({"src_key_padding_mask": torch.tensor([[False, True]])}, [[True, False]]),
        ({"padding_mask": torch.tensor([[True, True]])}, [[False, False]]),
        # Additive masks, and masks over pairs of tokens, say nothing about tokens.
        ({"padding_mask": torch.tensor([[0.0, -1e9]])}, None),
        ({"attention_mask": torch.ones(1, 1, 2, 2)}, None),
        ({"attention_mask": None}, None),
        ({"input_ids": torch.ones(1, 2)}, None),
    ],
)
def test_token_mask(kwargs: Mapping[str, object], expected: list[list[bool]] | None) -> None:
    mask = token_mask(Batch(args=(), kwargs=kwargs))
    assert (None if mask is None else mask.tolist()) == expected


def test_rows_are_kept_where_their_square_would_be_too_large() -> None:
    spec = _linear(64)
    wide = replace(spec, weight_shape=(3, 8193))
    assert not keeps_rows(replace(spec, weight_shape=(3, 8192)))
    assert keeps_rows(wide)
    # Enough rows for ten a column, and no more of the wide ones than memory allows.
    assert row_cap(spec) >= 10 * 64
    assert row_cap(replace(spec, weight_shape=(3, 8192))) >= 10 * 8192
    assert row_cap(wide) < row_cap(spec)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (5, 4, 6, 7)),
        (nn.Conv1d(3, 4, 3), (2, 4, 9)),
        (nn.Linear(3, 4), (2, 5, 4)),
    ],
)
def test_outputs_at_positions_are_some_of_all(
    layer: nn.Module, shape: tuple[int, ...], rng: torch.Generator
) -> None:
    y = torch.randn(shape, generator=rng)
    rows = output_rows(_spec(layer), y)
    some = torch.tensor([0, 4, len(rows) - 1])
    assert torch.equal(output_rows_at(_spec(layer), y, some), rows[some])


@pytest.mark.parametrize("kernel", [1, 3])
def test_many_samples_are_cut_part_by_part(kernel: int, rng: torch.Generator) -> None:
    layer = nn.Conv2d(16, 4, kernel, padding=kernel // 2)
    x = torch.randn((24, 16, 64, 64), generator=rng)
    # Of some samples no position is drawn, of others all or the last one.
    positions = torch.tensor([5, 64**2 - 1, *range(3 * 64**2, 4 * 64**2), 23 * 64**2, 24 * 64**2 - 1])
    rows = input_rows(layer, _spec(layer), x, positions)
    for sample in (0, 3, 23):
        inside = (positions // 64**2) == sample
        alone = input_rows(layer, _spec(layer), x[sample : sample + 1], positions[inside] - sample * 64**2)
        assert torch.equal(rows[inside], alone)
