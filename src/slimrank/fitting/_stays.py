# SPDX-License-Identifier: Apache-2.0
"""What of a layer's matrix stays when groups are slimmed."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from slimrank.cost import matrix_tensor, query_scales, stays
from slimrank.records import ChannelMap, LayerSpec


def what_stays(
    channels: ChannelMap, spec: LayerSpec, kept: Mapping[str, Sequence[int]]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Rows and columns of a layer's matrix that stay when groups are slimmed, and the scales of the rows.

    Args:
        channels: of the model.
        spec: the layer, before.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        (O',) and (D',) int64, ascending, on the CPU; None each where no named group touches that side. Then
        (O',) float64, what the outputs that stay are multiplied by; None where they are not.
    """
    tensor = matrix_tensor(spec, channels)
    if tensor is None:
        return None, None, None
    staying = {dim: torch.from_numpy(indices) for dim, indices in stays(tensor, kept).items()}
    scales = {dim: torch.from_numpy(factors) for dim, factors in query_scales(tensor, kept).items()}
    # Each channel of dimension 1 is a column for each tap; in a transposed convolution a row for each tap.
    n_taps = prod(spec.kernel)
    second, second_scales = staying.get(1), scales.get(1)
    if spec.groups > 1:
        second = _in_each_kernel_group(spec, second, staying.get(0))
    if second is not None:
        second = (second[:, None] * n_taps + torch.arange(n_taps)).flatten()
    if not spec.is_transposed:
        return staying.get(0), second, scales.get(0)
    return second, staying.get(0), None if second_scales is None else second_scales.repeat_interleave(n_taps)


def _in_each_kernel_group(spec: LayerSpec, inside: Tensor | None, outputs: Tensor | None) -> Tensor | None:
    """Channels that a grouped convolution reads: the same of each kernel group that still has outputs.

    Args:
        spec: the convolution, before.
        inside: input channels of one kernel group that stay; None where all do.
        outputs: output channels that stay; None where all do.

    Returns:
        Input channels that stay, counted over all kernel groups; None where all do.
    """
    kernel_groups = torch.arange(spec.groups)
    if outputs is not None:
        kernel_groups = (outputs // (spec.weight_shape[0] // spec.groups)).unique()
    if inside is None and len(kernel_groups) == spec.groups:
        return None
    inputs = torch.arange(spec.weight_shape[1]) if inside is None else inside
    return (kernel_groups[:, None] * spec.weight_shape[1] + inputs).flatten()


def channels_left(channels: ChannelMap, spec: LayerSpec, kept: Mapping[str, Sequence[int]]) -> Tensor | None:
    """Of the channels that a layer makes, those that stay when groups are slimmed.

    Args:
        channels: of the model.
        spec: the layer, before.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        (C_out',) int64, ascending, on the CPU; None where no named group touches them.
    """
    outputs, _, _ = what_stays(channels, spec, kept)
    n_taps = prod(spec.kernel) if spec.is_transposed else 1
    return outputs if outputs is None else outputs[::n_taps] // n_taps
