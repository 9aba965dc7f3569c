# SPDX-License-Identifier: Apache-2.0
"""The ordinary torch modules that take the place of a layer."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from slimrank.cost import FORM_ROWS
from slimrank.methods._pair import Pair
from slimrank.records import Form, LayerSpec

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Factor = nn.Linear | _Conv
_CONVS: Mapping[str, Callable[..., _Conv]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def build_pair(
    spec: LayerSpec, layer: nn.Module, pair: Pair, bias: Tensor | None
) -> tuple[nn.Module, nn.Module]:
    """The two modules that replace a layer.

    Args:
        spec: its geometry.
        layer: the original; dtype, device, mode and requires_grad are taken from it.
        pair: the factors.
        bias: (O,) of the second module; None for none.

    Returns:
        Two ordinary torch modules, without bias in the first.
    """
    modules = empty_pair(spec, pair.form, pair.rank, has_bias=bias is not None)
    shapes = [module.weight.shape for module in modules]
    weights = (pair.first, pair.second)
    reference = layer.weight
    if not isinstance(reference, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    for module, weight, shape in zip(modules, weights, shapes, strict=True):
        module.weight = nn.Parameter(
            weight.reshape(shape).to(device=reference.device, dtype=reference.dtype),
            requires_grad=reference.requires_grad,
        )
        module.train(layer.training)
    if bias is not None:
        own = layer.bias if isinstance(layer.bias, Tensor) else reference
        modules[1].bias = nn.Parameter(
            bias.to(device=reference.device, dtype=own.dtype, copy=True), requires_grad=own.requires_grad
        )
    return modules


def empty_pair(spec: LayerSpec, form: Form, rank: int, *, has_bias: bool) -> tuple[_Factor, _Factor]:
    """Modules of the right shapes, on the meta device.

    Args:
        spec: the layer to replace.
        form: how the kernel is split.
        rank: size between the factors.
        has_bias: whether the second has a bias.

    Returns:
        Two modules whose parameters hold no storage yet.
    """
    c_out, c_in, *_ = spec.weight_shape
    if form == "linear":
        return (
            nn.Linear(c_in, rank, bias=False, device="meta"),
            nn.Linear(rank, c_out, bias=has_bias, device="meta"),
        )
    conv = _CONVS[spec.kind]
    row, n_dims = FORM_ROWS[form], len(spec.kernel)

    def factor(n_in: int, n_out: int, taps: tuple[bool, ...], bias: bool) -> _Conv:
        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if used else neutral for v, used in zip(values, taps, strict=True))

        padding = spec.padding if isinstance(spec.padding, str) else pick(spec.padding, 0)
        if not any(taps):
            padding = pick((0,) * len(taps), 0)
        return conv(
            n_in,
            n_out,
            pick(spec.kernel, 1),
            stride=pick(spec.stride, 1),
            padding=padding,
            dilation=pick(spec.dilation, 1),
            bias=bias,
            padding_mode=spec.padding_mode if any(taps) else "zeros",
            device="meta",
        )

    return factor(c_in, rank, row.first_taps(n_dims), bias=False), factor(
        rank, c_out, row.second_taps(n_dims), bias=has_bias
    )
