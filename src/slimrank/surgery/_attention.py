# SPDX-License-Identifier: Apache-2.0
"""Torch's attention with heads of any number and width."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class SlimAttention(nn.MultiheadAttention):
    """What ``nn.MultiheadAttention`` becomes when it loses heads, or a part of all of them.

    Torch's own forward takes the width of a head from the size of the embedding. Parameters, their names and
    what is returned are the same, and so is the scale of the scores.
    """

    scale: float

    @classmethod
    def of(cls, attention: nn.MultiheadAttention) -> Self:
        """Makes torch's attention one of these (in place), which computes the same until it is cut."""
        scale = attention.head_dim**-0.5
        attention.__class__ = cls
        if not isinstance(attention, cls):
            raise TypeError(f"{type(attention).__name__} cannot be changed")
        attention.scale = scale
        return attention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's.

        Raises:
            RuntimeError: ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs attn_mask as well; give the causal mask")
        is_batched = query.ndim == 3
        if not is_batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        queries, keys, values = self._projected(query, key, value)
        is_hint = is_causal and key_padding_mask is None and not need_weights and not self._adds_positions
        mask = None if is_hint else self._mask(attn_mask, key_padding_mask, queries, keys)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = self.scale * queries @ keys.transpose(-2, -1)
            shares = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(shares, dropout) if dropout else shares
            mixed = weights @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=is_hint, scale=self.scale
            )
        output = functional.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    @property
    def _adds_positions(self) -> bool:
        return self.bias_k is not None or self.add_zero_attn

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, (N, heads, positions, width)."""
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        queries, keys, values = (
            functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        if self.bias_k is not None and self.bias_v is not None:
            keys = torch.cat([keys, self.bias_k.expand(len(keys), -1, -1)], 1)
            values = torch.cat([values, self.bias_v.expand(len(values), -1, -1)], 1)
        if self.add_zero_attn:
            keys, values = functional.pad(keys, (0, 0, 0, 1)), functional.pad(values, (0, 0, 0, 1))
        queries, keys, values = (
            x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (queries, keys, values)
        )
        return queries, keys, values

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, queries: Tensor, keys: Tensor
    ) -> Tensor | None:
        """Both masks as one that is added to the scores."""
        masks = []
        if attn_mask is not None:
            mask = _added(attn_mask, queries)
            # One for each sample and head, or one for all.
            masks.append(mask.unflatten(0, (-1, self.num_heads)) if mask.ndim == 3 else mask)
        if padding is not None:
            masks.append(_added(padding, queries)[:, None, None])
        if not masks:
            return None
        mask = sum(masks[1:], masks[0])
        return functional.pad(mask, (0, keys.shape[2] - mask.shape[-1]))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers that are added to scores."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
