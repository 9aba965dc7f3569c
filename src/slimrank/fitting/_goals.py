# SPDX-License-Identifier: Apache-2.0
"""What a layer is fitted to, and how much the fit is held back."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slimrank.cost import block_width, rows_available
from slimrank.fitting._context import BuildContext, PendingLayer
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.fitting._rows import Gathered
from slimrank.linalg import Moments, least_squares_weight, narrowed_weight, ridge_of
from slimrank.methods import Target, metric_roots
from slimrank.surgery import bias_of, dense_weight

# Ridges above the least one, as shares of the mean diagonal of the moments. A finer list might come closer to
# the best ridge; each of them costs a fit of every layer.
_RIDGES = (1e-3, 1e-2, 1e-1)
# Rows per column of a layer from which on a fit to inputs that have moved is trusted. With fewer, larger
# ridges and the inputs of the original are tried as well, which costs a fit each.
ENOUGH_ROWS = 20


def wanted_outputs(layer: PendingLayer, rows: Tensor, rows_hat: Tensor) -> Tensor:
    """What the outputs that stay should be: those of the original, or of the layer that ``on_layer`` changed.

    Args:
        layer: to be fitted.
        rows: (S, D) float32, inputs in the original.
        rows_hat: (S, D') float32, the same inputs in the new model.

    Returns:
        (S, O') float32; what a transposed convolution gives through its taps is without a bias.
    """
    source, inputs = (layer.current, rows_hat) if layer.is_changed else (layer.original, rows)
    weight = dense_weight(source).float()
    outputs = inputs @ weight.T
    if not layer.task.is_transposed:
        outputs = outputs + bias_like(source, weight)
    # A changed layer is slimmed already, its outputs are those that stay.
    return outputs if layer.is_changed else layer.task.slimmed_outputs(outputs)


def wanted_weight(layer: PendingLayer) -> Tensor:
    """(O', D) float64: the original's weight for the outputs that stay, of all its columns."""
    return layer.task.slimmed_outputs(dense_weight(layer.original).T).T


def bias_like(layer: nn.Module, like: Tensor) -> Tensor:
    """(O,) in the dtype of ``like`` (O, ...): the layer's bias, zeros where it has none."""
    bias = bias_of(layer)
    return like.new_zeros(len(like)) if bias is None else bias.to(like.dtype)


def output_roots(context: BuildContext, task: LayerTask, device: torch.device) -> tuple[Tensor, Tensor]:
    """Roots of the output metric, of the channels that stay.

    Args:
        context: of the build.
        task: of the layer.
        device: where to compute.

    Returns:
        G^(1/2), G^(-1/2), float64: (C_out', C_out'), or (C_out',) where they are diagonal.
    """
    gram = task.slimmed_gram(context.data.grams.get(task.spec.name))
    return metric_roots(gram, task.n_channels, device)


def is_scarce(context: BuildContext, task: LayerTask) -> bool:
    """Whether fewer rows reach a layer than a fit to inputs that have moved wants."""
    n_rows = rows_available(task.spec, context.alive[task.spec.name].n_fit_samples)
    return n_rows < ENOUGH_ROWS * block_width(task.spec)


def ridges_to_try(least: float, n_rows: int, n_columns: int) -> tuple[float, ...]:
    """Ridges to choose among on held-out samples: more where rows are few."""
    larger = tuple(value for value in _RIDGES if value > least)
    return (least, *larger[:1]) if n_rows >= ENOUGH_ROWS * n_columns else (least, *larger)


def moments_in_original(task: LayerTask, gathered: Gathered) -> Moments:
    """Moments of the inputs in the original."""
    moments = gathered.original_sums.moments()
    return moments.about_zero() if task.is_transposed else moments


def targets(
    context: BuildContext, layer: PendingLayer, gathered: Gathered, moments: Moments, cross: Tensor
) -> Iterator[tuple[str, Target]]:
    """What a layer may be fitted to, one after the other, since each holds large matrices.

    Args:
        context: of the build.
        layer: to be fitted.
        gathered: its rows.
        moments: of its D' inputs in the new model.
        cross: (O', D') float64, covariance of the wanted outputs and these inputs.

    Yields:
        The kind of the fit, "sequential" or "independent", and its target.
    """
    columns = layer.task.columns
    # Where on_layer changed the layer, its weight has the columns that stay and no others.
    if columns is None or layer.is_changed:
        return _targets_of_whole(context, layer, gathered, moments, cross)
    return _targets_of_narrowed(context, layer, columns, gathered, moments, cross)


def _targets_of_whole(
    context: BuildContext, layer: PendingLayer, gathered: Gathered, moments: Moments, cross: Tensor
) -> Iterator[tuple[str, Target]]:
    """Of a layer that keeps its columns: the weight as it stands, or moved towards the wanted outputs."""
    task, is_sequential = layer.task, context.data.sequential
    weight = dense_weight(layer.current)
    n_rows, n_columns = gathered.joint_sums.n_rows, block_width(task.slimmed)
    root, inverse_root = output_roots(context, task, weight.device)
    ridge = ridge_of(n_rows, n_columns)
    is_joint = gathered.has_moved and is_sequential
    base = moments if is_joint or not gathered.has_moved else moments_in_original(task, gathered)
    for value in ridges_to_try(ridge, n_rows, n_columns):
        dense = weight
        if is_joint:
            dense = least_squares_weight(weight, cross, moments, ridge=value, n_groups=task.n_groups)
        yield (
            "sequential" if is_sequential else "independent",
            Target(dense=dense, moments=base, root=root, inverse_root=inverse_root, ridge=value),
        )
    # With few rows the moved inputs may mislead; the held-out rows then choose the original's.
    if is_joint and gathered.original_sums.n_rows:
        in_original = moments_in_original(task, gathered)
        yield (
            "independent",
            Target(dense=weight, moments=in_original, root=root, inverse_root=inverse_root, ridge=ridge),
        )


def _targets_of_narrowed(
    context: BuildContext,
    layer: PendingLayer,
    columns: Tensor,
    gathered: Gathered,
    moments: Moments,
    cross: Tensor,
) -> Iterator[tuple[str, Target]]:
    """Of a layer that lost columns; more ridge trusts the old inputs more."""
    task = layer.task
    n_rows, n_columns = gathered.joint_sums.n_rows, block_width(task.slimmed)
    full = wanted_weight(layer)
    root, inverse_root = output_roots(context, task, full.device)
    in_original = moments_in_original(task, gathered) if gathered.original_sums.n_rows else None
    for value in ridges_to_try(ridge_of(n_rows, n_columns), n_rows, n_columns):
        if in_original is None:
            # Rows are in plenty: they tell by themselves what the columns that stay have to take over.
            prior, restricted = full[:, columns.to(full.device)], moments
        else:
            prior, restricted = narrowed_weight(
                full, in_original, columns, ridge=value, n_groups=task.n_groups
            )
        if not context.data.sequential:
            yield (
                "independent",
                Target(dense=prior, moments=restricted, root=root, inverse_root=inverse_root, ridge=value),
            )
            continue
        dense = least_squares_weight(prior, cross, moments, ridge=value, n_groups=task.n_groups)
        yield (
            "sequential",
            Target(dense=dense, moments=moments, root=root, inverse_root=inverse_root, ridge=value),
        )
