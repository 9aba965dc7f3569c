# SPDX-License-Identifier: Apache-2.0
"""Attention with heads of any number and width, beside torch's own."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from slimrank.surgery import SlimAttention

_LENGTH, _OTHERS = 4, 5


def _inputs(rng: torch.Generator, layer: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((_LENGTH, layer.embed_dim), (_OTHERS, layer.kdim), (_OTHERS, layer.vdim))
    query, key, value = (torch.randn(3, *size, generator=rng) for size in sizes)
    if layer.batch_first:
        return query, key, value
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def _pair(**options: object) -> tuple[nn.MultiheadAttention, SlimAttention]:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer, SlimAttention.of(copy.deepcopy(layer))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"batch_first": True, "bias": False},
        {"kdim": 6, "vdim": 3},
        {"batch_first": True, "add_bias_kv": True},
        {"add_zero_attn": True, "add_bias_kv": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", ["", "rows", "heads", "padding", "both"])
def test_uncut_it_is_torchs(
    options: dict[str, bool], need_weights: bool, masked: str, rng: torch.Generator
) -> None:
    layer, slim = _pair(**options)
    given: dict[str, Tensor | None] = {"attn_mask": None, "key_padding_mask": None}
    if masked in {"rows", "both"}:
        given["attn_mask"] = torch.ones(_LENGTH, _OTHERS, dtype=torch.bool).triu(2)
    if masked == "heads":
        given["attn_mask"] = torch.randn(3 * 2, _LENGTH, _OTHERS, generator=rng)
    if masked in {"padding", "both"}:
        given["key_padding_mask"] = torch.arange(_OTHERS)[None] >= torch.tensor([[5], [4], [3]])
    inputs = _inputs(rng, layer)
    for averages in (True, False):
        kwargs = {**given, "need_weights": need_weights, "average_attn_weights": averages}
        torch.testing.assert_close(slim(*inputs, **kwargs), layer(*inputs, **kwargs))


@pytest.mark.parametrize("need_weights", [True, False])
def test_single_samples_and_causal_masks(need_weights: bool, rng: torch.Generator) -> None:
    layer, slim = _pair(batch_first=True)
    x = torch.randn(_LENGTH, 8, generator=rng)
    torch.testing.assert_close(slim(x, x, x), layer(x, x, x))
    mask = nn.Transformer.generate_square_subsequent_mask(_LENGTH)
    kwargs = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
    torch.testing.assert_close(slim(x, x, x, **kwargs), layer(x, x, x, **kwargs))
    with pytest.raises(RuntimeError, match="is_causal needs attn_mask as well"):
        slim(x, x, x, is_causal=True)


def test_it_is_copied_pickled_and_drops_out(rng: torch.Generator) -> None:
    _, slim = _pair(dropout=0.5)
    x = torch.randn(_LENGTH, 3, 8, generator=rng)
    expected = slim(x, x, x)
    for other in (copy.deepcopy(slim), pickle.loads(pickle.dumps(slim))):
        torch.testing.assert_close(other(x, x, x), expected)
    slim.train()
    for need_weights in (True, False):
        assert not torch.equal(
            slim(x, x, x, need_weights=need_weights)[0], slim(x, x, x, need_weights=need_weights)[0]
        )
