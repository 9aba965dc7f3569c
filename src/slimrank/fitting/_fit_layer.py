# SPDX-License-Identifier: Apache-2.0
"""The fit of one layer: to its rows, to moments that its calls share, or from its weights alone."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from slimrank.cost import block_width, carries_mean, gains_bias
from slimrank.fitting._context import BuildContext, PendingLayer
from slimrank.fitting._fit import ALTERNATIONS, Fit, LayerStatistics, best_fit
from slimrank.fitting._goals import bias_like, output_roots, targets, wanted_weight
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.fitting._rows import Gathered, thinned_rows
from slimrank.linalg import narrowed_weight, ridge_of, times_vector
from slimrank.methods import Target, fit_factors, weights_target
from slimrank.surgery import bias_of, bias_of_taps, dense_weight

# Rows that fits are compared on. More choose more surely; each candidate is applied to all of them.
_HELD_OUT_ROWS = 4096


def fit_layer(context: BuildContext, layer: PendingLayer, gathered: Gathered | None) -> Fit:
    """Fits one layer.

    Args:
        context: of the build.
        layer: to be fitted.
        gathered: its rows; None where its calls share moments.

    Returns:
        The fit; of kind "weights" where no sample reached the layer.
    """
    if gathered is None:
        fit = _fit_to_shared_moments(context, layer)
    elif gathered.joint_sums.n_rows:
        fit = _fit_to_rows(context, layer, gathered)
        if gathered.is_unpaired:
            fit = replace(fit, kind="independent", is_unpaired=True)
    else:
        return fit_from_weights(layer.task, layer.current, has_bias=context.has_bias)
    return fit if _keeps_mean(context, layer) else replace(fit, bias=None)


def _keeps_mean(context: BuildContext, layer: PendingLayer) -> bool:
    """Whether something takes up a mean that moves: a bias that the plan counts, or the norm behind."""
    has_bias = bias_of(layer.current) is not None
    return layer.task.norm is not None or carries_mean(has_bias=has_bias, plan_has_bias=context.has_bias)


def fit_from_weights(task: LayerTask, layer: nn.Module, *, has_bias: bool) -> Fit:
    """Fits one layer to itself.

    Args:
        task: what is asked of it.
        layer: as it stands in the new model.
        has_bias: whether the plan counts a bias where the layer has none.

    Returns:
        The plain, unweighted decomposition; the weight itself where the layer stays one.
    """
    weight, setting = dense_weight(layer), task.setting
    bias = bias_of(layer)
    bias = None if bias is None else bias.double()
    if gains_bias(has_bias=bias is not None, has_norm=task.norm is not None, plan_has_bias=has_bias):
        # The plan counts one, and a later step may build on it.
        bias = weight.new_zeros(task.n_channels)
    if setting is None:
        return Fit(factors=weight, bias=bias, kind="weights")
    factors = fit_factors(task.slimmed, setting, weights_target(weight), alternations=ALTERNATIONS)
    return Fit(factors=factors, bias=bias, kind="weights")


def _fit_to_rows(context: BuildContext, layer: PendingLayer, gathered: Gathered) -> Fit:
    """The best fit to what was gathered, in the inputs of the new model."""
    task = layer.task
    moments = gathered.joint_sums.moments()
    cross, mean_out = gathered.joint_sums.cross()
    means = (moments.mean, mean_out)
    if task.is_transposed or not _keeps_mean(context, layer):
        # A channel has one bias for all its taps, or none: the weight has to keep the means.
        moments, cross = moments.about_zero(), cross.addr(mean_out, moments.mean)
        mean_out = torch.zeros_like(mean_out)
    statistics = LayerStatistics(
        moments=moments,
        cross=cross,
        mean_out=mean_out,
        held_out=thinned_rows(gathered.held_out, _HELD_OUT_ROWS),
        rows=gathered.rows,
        clipping=gathered.clipping,
        n_groups=task.n_groups,
    )
    candidates = targets(context, layer, gathered, moments, cross)
    fit = best_fit(task.slimmed, task.setting, statistics, candidates)
    return _with_tap_bias(task, fit, layer.current, *means)


def _fit_to_shared_moments(context: BuildContext, layer: PendingLayer) -> Fit:
    """Of a layer that is called several times: one fit for all calls, to the original's inputs."""
    task = layer.task
    moments = context.shared_moments[task.spec.name]
    full = wanted_weight(layer)
    means = (moments.mean, times_vector(full, moments.mean))
    if task.is_transposed or not _keeps_mean(context, layer):
        moments, mean_out = moments.about_zero(), torch.zeros_like(means[1])
    else:
        mean_out = means[1] + task.slimmed_outputs(bias_like(layer.original, dense_weight(layer.original)))
    ridge = ridge_of(moments.n_rows, block_width(task.slimmed))
    dense, mean_in = full, means[0]
    if task.columns is not None:
        dense, moments = narrowed_weight(full, moments, task.columns, ridge=ridge, n_groups=task.n_groups)
        mean_in = mean_in[task.columns.to(full.device)]
    root, inverse_root = output_roots(context, task, full.device)
    target = Target(dense=dense, moments=moments, root=root, inverse_root=inverse_root, ridge=ridge)
    # Rows of several calls were not kept, so there is nothing to choose by and nothing that is clipped.
    statistics = LayerStatistics(
        moments=moments, cross=dense, mean_out=mean_out, held_out=(), rows=(), clipping=None
    )
    fit = best_fit(task.slimmed, task.setting, statistics, [("independent", target)])
    return _with_tap_bias(task, fit, layer.current, mean_in, means[1])


def _with_tap_bias(task: LayerTask, fit: Fit, current: nn.Module, mean_in: Tensor, mean_out: Tensor) -> Fit:
    """The fit of a transposed convolution with the bias that makes up, on average, for what its taps miss.

    Args:
        task: of the layer; any other than a transposed convolution keeps its fit.
        fit: of the layer.
        current: the layer as it stands.
        mean_in: (D',) float64, of its inputs.
        mean_out: (O',) float64, of what its taps should give.
    """
    if not task.is_transposed or not isinstance(fit.factors, Tensor):
        return fit
    bias = bias_of_taps(current, task.spec.calls, mean_out - times_vector(fit.factors, mean_in))
    old_bias = current.bias
    return replace(fit, bias=bias + old_bias.detach().double() if isinstance(old_bias, Tensor) else bias)
