# SPDX-License-Identifier: Apache-2.0
"""What a layer is fitted to, and how much the fit is held back."""

from dataclasses import replace

from torch import Tensor, nn

from slimrank.cost import gains_bias
from slimrank.fitting._fit import ALTERNATIONS, Fit
from slimrank.fitting._gather import Gathered
from slimrank.fitting._layer_tasks import Work
from slimrank.linalg import Moments
from slimrank.methods import fit_factors, weights_target
from slimrank.surgery import bias_of_taps, dense_weight

_RIDGES = (1e-3, 1e-2, 1e-1)
ENOUGH_ROWS = 20


def ridges_to_try(least: float, n_rows: int, width: int) -> tuple[float, ...]:
    """Ridges to choose among on held-out samples: more where rows are few."""
    larger = tuple(value for value in _RIDGES if value > least)
    return (least, *larger[:1]) if n_rows >= ENOUGH_ROWS * width else (least, *larger)


def fit_from_weights(work: Work, layer: nn.Module, *, has_bias: bool) -> Fit:
    weight, setting = dense_weight(layer), work.setting
    bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else None
    if gains_bias(has_bias=bias is not None, has_norm=work.norm is not None, plan_has_bias=has_bias):
        # The plan counts one, and a later step may build on it.
        bias = weight.new_zeros(work.n_channels)
    if setting is None:
        return Fit(factors=weight, bias=bias, kind="weights")
    factors = fit_factors(work.slimmed, setting, weights_target(weight), alternations=ALTERNATIONS)
    return Fit(factors=factors, bias=bias, kind="weights")


def moments_in_original(work: Work, seen: Gathered) -> Moments:
    """Moments of the inputs in the original."""
    return seen.own.moments().about_zero() if work.is_transposed else seen.own.moments()


def with_tap_bias(work: Work, fit: Fit, source: nn.Module, mean_in: Tensor, mean_out: Tensor) -> Fit:
    """The fit of a transposed convolution with the bias that makes up, on average, for what its taps miss.

    Args:
        work: of the layer; any other than a transposed convolution keeps its fit.
        fit: of the layer.
        source: the layer as it stands.
        mean_in: (D',) float64, of its inputs.
        mean_out: (O',) float64, of what its taps should give.
    """
    if not work.is_transposed or not isinstance(fit.factors, Tensor):
        return fit
    bias = bias_of_taps(source, work.spec.calls, mean_out - fit.factors @ mean_in)
    known = source.bias
    return replace(fit, bias=bias + known.detach().double() if isinstance(known, Tensor) else bias)


def bias_of(layer: nn.Module, like: Tensor) -> Tensor:
    if isinstance(layer.bias, Tensor):
        return layer.bias.detach().to(like.dtype)
    return like.new_zeros(len(like))
