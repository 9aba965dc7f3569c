# SPDX-License-Identifier: Apache-2.0
"""Rows of a layer's input: positions drawn at random, patches cut out of the maps."""

from collections.abc import Mapping
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimrank.cost import RowView, row_view
from slimrank.forward import Batch
from slimrank.records import LayerSpec

# Keywords under which models take a mask of tokens. These say which tokens count (1 or True).
_TOKEN_MASKS = ("attention_mask",)
# These say which tokens are padding (True).
_PADDING_MASKS = ("src_key_padding_mask", "key_padding_mask", "padding_mask")

# Numbers in the maps that patches are cut out of at once, on the CPU: 2 MB. More would leave the cache, fewer
# would cost more calls.
_MAP_NUMBERS = 2**19


def token_mask(batch: Batch) -> Tensor | None:
    """Which tokens count, where the batch has a mask that says so.

    Args:
        batch: with an ``attention_mask`` (1 = token) or a ``..._padding_mask`` (True = padding) among its
            keywords.

    Returns:
        (N, T) bool, True for tokens that count; None where the batch has no such mask.
    """
    kwargs: Mapping[str, object] = batch.kwargs
    for key in _TOKEN_MASKS:
        mask = kwargs.get(key)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask.bool()
    for key in _PADDING_MASKS:
        mask = kwargs.get(key)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype == torch.bool:
            return ~mask
    return None


def is_mask_of(mask: Tensor | None, values: Tensor) -> TypeGuard[Tensor]:
    """Whether a mask tells of outputs: they have one row for each of its tokens.

    Args:
        mask: (N, T) bool; None for no mask.
        values: (N, T, ...) for it to be so.
    """
    return mask is not None and values.ndim >= 3 and values.shape[:2] == mask.shape


def draw_positions(
    spec: LayerSpec, x: Tensor, count: int, generator: torch.Generator, mask: Tensor | None
) -> Tensor:
    """Positions of a layer's output, drawn at random without repetition.

    Args:
        spec: the layer.
        x: its input.
        count: how many positions at most.
        generator: on the CPU.
        mask: (N, T) bool; rows of tokens that do not count are left out where the shapes agree.

    Returns:
        (S,) int64 on the CPU, ascending: indices into the flattened output positions, samples first.
    """
    total = n_positions(spec, tuple(x.shape))
    allowed: Tensor | None = None
    if mask is not None and spec.reads_last_dim:
        if tuple(x.shape[:2]) == tuple(mask.shape) and x.ndim > 2:
            allowed = mask.cpu().reshape(-1).repeat_interleave(total // mask.numel()).nonzero().flatten()
        elif x.ndim == 2 and total == mask.numel():
            allowed = mask.cpu().reshape(-1).nonzero().flatten()
    available = total if allowed is None else len(allowed)
    if available <= count:
        return torch.arange(total) if allowed is None else allowed
    # Drawn on the CPU: the same positions on every device.
    chosen = torch.randperm(available, generator=generator, device="cpu")[:count].sort().values
    return chosen if allowed is None else allowed[chosen]


def n_positions(spec: LayerSpec, input_shape: tuple[int, ...]) -> int:
    """Rows that a call of a layer gives, all samples: output positions; input ones where it is transposed."""
    view = row_view(spec)
    if view.is_linear:
        return prod(input_shape[:-1])
    dims = len(view.kernel)
    return prod(input_shape[: -dims - 1]) * prod(_n_patches(view, input_shape[-dims:]))


def input_rows(layer: nn.Module, spec: LayerSpec, x: Tensor, positions: Tensor) -> Tensor:
    """Rows of a layer's input at some positions.

    Args:
        layer: the module (its padding is taken from it).
        spec: the layer.
        x: its input.
        positions: (S,) int64 from ``draw_positions``, ascending.

    Returns:
        (S, D), dtype of x: rows in the order of ``weight.flatten(1)``.
    """
    positions = positions.to(x.device)
    view = row_view(spec)
    if view.is_linear:
        return x.reshape(-1, x.shape[-1])[positions]
    dims = len(view.kernel)
    x = x.reshape(-1, *x.shape[-dims - 1 :])
    pads: list[int] = list(getattr(layer, "_reversed_padding_repeated_twice", [0] * (2 * dims)))
    # Torch keeps a padding of a transposed layer there, too, which is one of its output.
    if view.padding == "valid":
        pads = [0] * (2 * dims)
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    out_size = _n_patches(view, tuple(x.shape[-dims:]))
    per_sample = prod(out_size)
    if not any(pads) and prod(view.kernel) == prod(view.stride) == 1:
        return x.flatten(2)[positions // per_sample, :, positions % per_sample]
    if x.device.type != "cpu":
        return _patches(view, functional.pad(x, pads, mode=mode), positions, out_size)
    # Some samples at a time: copies of their maps then stay in the cache.
    n_together = max(1, _MAP_NUMBERS // max(1, prod(x.shape[1:])))
    ends = torch.arange(n_together, len(x) + n_together, n_together) * per_sample
    rows = x.new_empty(len(positions), x.shape[1] * prod(view.kernel))
    start = 0
    for number, end in enumerate(torch.searchsorted(positions, ends).tolist()):
        if end > start:
            first = number * n_together
            maps = functional.pad(x[first : first + n_together], pads, mode=mode)
            rows[start:end] = _patches(view, maps, positions[start:end] - first * per_sample, out_size)
        start = end
    return rows


def _patches(view: RowView, maps: Tensor, positions: Tensor, out_size: tuple[int, ...]) -> Tensor:
    """Patches of padded maps: (N, C, *size) and (S,) positions of outputs -> (S, C * taps)."""
    size = tuple(maps.shape[2:])
    channels = maps.shape[1]
    # (N, C, *size) -> (N * prod(size), C)
    flat = maps.movedim(1, -1).reshape(-1, channels)
    per_sample = prod(out_size)
    sample, inside = positions // per_sample, positions % per_sample
    # Index into ``flat`` of the first tap of each patch; offsets lead from there to its other taps.
    start = sample * prod(size)
    offsets = torch.zeros(1, dtype=torch.int64, device=maps.device)
    for dim in range(len(size)):
        step_out, step = prod(out_size[dim + 1 :]), prod(size[dim + 1 :])
        start = start + (inside // step_out) * view.stride[dim] * step
        inside = inside % step_out
        taps = torch.arange(view.kernel[dim], device=maps.device) * view.dilation[dim] * step
        offsets = (offsets[:, None] + taps).reshape(-1)
    gathered = flat.index_select(0, (start[:, None] + offsets).reshape(-1))
    # (S * taps, C) -> (S, C, taps) -> (S, D)
    return gathered.view(len(positions), -1, channels).transpose(1, 2).reshape(len(positions), -1)


def output_rows(spec: LayerSpec, y: Tensor) -> Tensor:
    """Outputs of a layer as rows, samples and positions in the order of ``draw_positions``: (rows, C_out)."""
    if spec.reads_last_dim:
        return y.reshape(-1, y.shape[-1])
    dims = len(spec.kernel)
    y = y.reshape(-1, *y.shape[-dims - 1 :])
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def output_rows_at(spec: LayerSpec, y: Tensor, positions: Tensor) -> Tensor:
    """Outputs of a layer at some positions.

    Args:
        spec: the layer.
        y: its outputs.
        positions: (S,) int64 from ``draw_positions``.

    Returns:
        (S, C_out), as in ``output_rows``.
    """
    positions = positions.to(y.device)
    if spec.reads_last_dim:
        return y.reshape(-1, y.shape[-1])[positions]
    dims = len(spec.kernel)
    # (N, C_out, positions)
    y = y.reshape(-1, y.shape[-dims - 1], prod(y.shape[-dims:]))
    return y[positions // y.shape[2], :, positions % y.shape[2]]


def _n_patches(view: RowView, size: tuple[int, ...]) -> tuple[int, ...]:
    """Patches of a map of this size, per spatial dimension."""
    if view.padding == "same":
        return size
    padding = view.padding if isinstance(view.padding, tuple) else (0,) * len(size)
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, view.dilation, view.kernel, view.stride, strict=True)
    )
