# SPDX-License-Identifier: Apache-2.0
"""The empty torch modules of a pair, and of three factors."""

from collections.abc import Callable, Mapping

from torch import nn

from slimrank.cost import FORM_ROWS
from slimrank.records import Form, LayerSpec, Setting

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Factor = nn.Linear | _Conv
# Kinds of layers that become two convolutions.
_CONVS: Mapping[str, Callable[..., _Conv]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def empty_pair(spec: LayerSpec, form: Form, rank: int, *, has_bias: bool) -> tuple[_Factor, _Factor]:
    """Modules of the right shapes, on the meta device.

    Args:
        spec: the layer to replace.
        form: how the kernel is split.
        rank: size between the factors.
        has_bias: whether the second module has a bias.

    Returns:
        Two modules whose parameters hold no storage yet.
    """
    c_out, c_in, *_ = spec.weight_shape
    if form == "linear":
        return (
            nn.Linear(c_in, rank, bias=False, device="meta"),
            nn.Linear(rank, c_out, bias=has_bias, device="meta"),
        )
    row, n_dims = FORM_ROWS[form], len(spec.kernel)
    between = spec.groups * rank
    return (
        _factor(spec, spec.groups * c_in, between, row.first_taps(n_dims), has_bias=False),
        _factor(spec, between, c_out, row.second_taps(n_dims), has_bias=has_bias),
    )


def empty_triple(spec: LayerSpec, setting: Setting, *, has_bias: bool) -> tuple[nn.Module, ...]:
    """Modules of the right shapes, on the meta device: the one in the middle takes all taps.

    Args:
        spec: the layer to replace.
        setting: both ranks.
        has_bias: whether the last module has a bias.

    Returns:
        Three modules whose parameters hold no storage yet.
    """
    c_out, c_in, *_ = spec.weight_shape
    before, rank = setting.ranks
    none = (False,) * len(spec.kernel)
    every = (True,) * len(spec.kernel)
    return (
        _factor(spec, c_in, before, none, has_bias=False),
        _factor(spec, before, rank, every, has_bias=False),
        _factor(spec, rank, c_out, none, has_bias=has_bias),
    )


def _factor(spec: LayerSpec, n_in: int, n_out: int, taps: tuple[bool, ...], *, has_bias: bool) -> _Conv:
    """The convolution that takes the taps of some kernel dimensions."""

    def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(value if has_taps else neutral for value, has_taps in zip(values, taps, strict=True))

    padding = spec.padding if isinstance(spec.padding, str) else pick(spec.padding, 0)
    # A 1x1 factor needs no padding, whatever "same" or "valid" means for the other one.
    if not any(taps):
        padding = pick((0,) * len(taps), 0)
    return _CONVS[spec.kind](
        n_in,
        n_out,
        pick(spec.kernel, 1),
        stride=pick(spec.stride, 1),
        padding=padding,
        dilation=pick(spec.dilation, 1),
        bias=has_bias,
        padding_mode=spec.padding_mode if any(taps) else "zeros",
        groups=spec.groups,
        device="meta",
    )
