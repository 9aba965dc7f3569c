# SPDX-License-Identifier: Apache-2.0
"""One layer's factors or weight, chosen and refined by the error on held-out rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank._errors import OptionError
from slimrank.cost import is_wide
from slimrank.fitting._rows import Rows
from slimrank.linalg import Clipping, Moments, RidgedInverse, times_vector
from slimrank.methods import Factors, Target, fit_factors
from slimrank.records import LayerSpec, Setting

# Rounds in which the factors of a pair are refined in turn: less error for more time. What none and 12 of
# them bring stands in benchmarks/results, under ablation.
ALTERNATIONS = 3
# Rounds in which the wanted outputs move behind a clipping, and the step between the parts of the rows that
# each of them sees: where the first one leads to is corrected by the last. Each fits the pair anew, so it
# alternates less.
CLIPPED_STEPS = (2, 1)
# Rounds of refinement in each of these.
CLIPPED_ALTERNATIONS = 1
# Rounds of refinement of a wide layer's fits to each target: all but the first begin with the factors of the
# first.
_ROUNDS_OF_WIDE = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A fitted layer.

    Attributes:
        factors: what takes its place, or the (O, D) weight of a layer that stays one.
        bias: (O,) float64, of the last factor, or of the layer; None for none.
        kind: "sequential", "independent" or "weights".
        is_unpaired: it is to the original's inputs, since other rows reach the layer in the new model.
    """

    factors: Factors | Tensor
    bias: Tensor | None
    kind: str
    is_unpaired: bool = False

    def weight(self, spec: LayerSpec) -> Tensor:
        """The (O, D) float64 weight that the factors stand for."""
        return self.factors if isinstance(self.factors, Tensor) else self.factors.weight(spec)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerStatistics:
    """What is known of a layer's inputs and wanted outputs: a fit needs no more.

    Attributes:
        moments: of its inputs in the compressed model.
        cross: (O, D), covariance of wanted outputs and these inputs.
        mean_out: (O,) float64, of the wanted outputs.
        held_out: rows to choose by, in parts; () where there are none.
        rows: some of the rows that were summed, in parts; () where nothing is clipped.
        clipping: what follows the layer; None where nothing is known.
        n_groups: of its convolution: blocks on the diagonal of its weight.
    """

    moments: Moments
    cross: Tensor
    mean_out: Tensor
    held_out: Sequence[Rows]
    rows: Sequence[Rows]
    clipping: Clipping | None
    n_groups: int = 1


def best_fit(
    spec: LayerSpec,
    setting: Setting | None,
    statistics: LayerStatistics,
    targets: Iterable[tuple[str, Target]],
) -> Fit:
    """The target whose pair has the lowest error on held-out rows, refined as far as that holds there too.

    Args:
        spec: the layer.
        setting: form and rank; None to keep the layer in one piece.
        statistics: what the layer is fitted to.
        targets: kind and target, one after the other: each holds moments and their decompositions.

    Returns:
        The fit.

    Raises:
        OptionError: there is no target.
    """
    moments, mean_out = statistics.moments, statistics.mean_out

    def fitted(kind: str, target: Target, alternations: int, start: Factors | None = None) -> Fit:
        return _fitted(spec, setting, kind, target, moments.mean, mean_out, alternations, start)

    def error_of(fit: Fit, target: Target) -> float:
        # After the clipping, where there is one: a fit that is worse before it may be the better one.
        return _error(spec, statistics.held_out, fit, target.root, statistics.clipping)

    candidates = iter(targets)
    first = next(candidates, None)
    if first is None:
        raise OptionError(f"layer {spec.name!r}: there is nothing to fit to")
    kind, target = first
    # Fits without refinement, which takes time: it is left for the best. A single target has no rival. Of
    # wide layers, decompositions take longer than refinement: one serves all targets.
    rounds = _ROUNDS_OF_WIDE if is_wide(spec) else 0
    best: tuple[float, Fit] | None = None
    start: Factors | None = None
    for other_kind, other_target in candidates:
        if best is None:
            fit = fitted(kind, target, rounds)
            best = (error_of(fit, target), fit)
            start = _start_of(fit, spec)
        other_fit = fitted(other_kind, other_target, rounds, start)
        other_error = error_of(other_fit, other_target)
        if other_error < best[0]:
            kind, target, best = other_kind, other_target, (other_error, other_fit)
    fit = fitted(kind, target, ALTERNATIONS, None if best is None else _start_of(best[1], spec))
    has_clipping = statistics.clipping is not None and len(statistics.rows) > 0
    error = error_of(fit, target) if best is not None or has_clipping else 0.0
    if best is not None and best[0] < error:
        error, fit = best
    if statistics.clipping is None or not has_clipping:
        return fit
    clipped = _clipped_fit(spec, setting, statistics, statistics.clipping, fit, target)
    return clipped if error_of(clipped, target) < error else fit


def _fitted(
    spec: LayerSpec,
    setting: Setting | None,
    kind: str,
    target: Target,
    mean_in: Tensor,
    mean_out: Tensor,
    alternations: int,
    start: Factors | None = None,
) -> Fit:
    """Factors for the target, and the bias that maps the mean of the inputs to the wanted mean."""
    if setting is None:
        return Fit(factors=target.dense, bias=mean_out - times_vector(target.dense, mean_in), kind=kind)
    factors = fit_factors(spec, setting, target, alternations=alternations, start=start)
    return Fit(factors=factors, bias=mean_out - factors.outputs(spec, mean_in), kind=kind)


def _start_of(fit: Fit, spec: LayerSpec) -> Factors | None:
    """What a further fit of a layer begins with; None for a decomposition."""
    return None if isinstance(fit.factors, Tensor) or not is_wide(spec) else fit.factors


def _error(
    spec: LayerSpec, parts: Sequence[Rows], fit: Fit, root: Tensor, clipping: Clipping | None = None
) -> float:
    """Mean squared error on rows in the output metric, halved; after the clipping where one is given."""
    if not parts or fit.bias is None:
        return 0.0
    weight, bias, rough_root = fit.weight(spec).float(), fit.bias.float(), root.float()
    total = 0.0
    for rows in parts:
        predicted = torch.addmm(bias, rows.inputs, weight.T)
        if clipping is None:
            difference = predicted - rows.outputs
        else:
            difference = clipping.errors(rows.outputs, predicted, rows.offsets)
        total += float(_weighed(difference, rough_root).square().sum())
    return total / (2 * sum(len(rows.inputs) for rows in parts))


def _weighed(difference: Tensor, root: Tensor) -> Tensor:
    """(S, O) differences times the root of Q outputs; where O is a multiple of Q, each has several rows."""
    rows = difference.view(len(difference), len(root), -1).mT
    return (rows @ root.T if root.ndim == 2 else rows * root).flatten(1)


def _clipped_fit(
    spec: LayerSpec,
    setting: Setting | None,
    statistics: LayerStatistics,
    clipping: Clipping,
    fit: Fit,
    target: Target,
) -> Fit:
    """The fit, moved towards what is left of its outputs after the clipping.

    The wanted outputs move (``Clipping.wanted``), so only the covariance with them changes, and by little:
    the change is taken from some of the rows.
    """
    inverse = RidgedInverse(statistics.moments, ridge=target.ridge, n_groups=statistics.n_groups)
    newest = fit
    for step in CLIPPED_STEPS:
        cross_shift, mean_shift = _shift_behind(spec, statistics.rows[::step], newest, clipping)
        dense = inverse.moved(target.dense, cross_shift.__getitem__)
        moved_target = _with_dense(target, dense, statistics.moments)
        mean_in, mean_out = statistics.moments.mean, statistics.mean_out + mean_shift
        start = _start_of(newest, spec)
        newest = _fitted(
            spec, setting, fit.kind, moved_target, mean_in, mean_out, CLIPPED_ALTERNATIONS, start
        )
    return newest


def _shift_behind(
    spec: LayerSpec, parts: Sequence[Rows], fit: Fit, clipping: Clipping
) -> tuple[Tensor, Tensor]:
    """How the wanted outputs move once it is known what a fit predicts.

    Args:
        spec: the layer.
        parts: rows that were summed.
        fit: so far.
        clipping: what follows the layer.

    Returns:
        (O, D) float64, of wide layers float32, and (O,) float64: change of the covariance of wanted outputs
        and inputs, and of the mean.
    """
    weight = fit.weight(spec).float()
    bias = weight.new_zeros(len(weight)) if fit.bias is None else fit.bias.float()
    cross = torch.zeros_like(weight)
    shift_sum, input_sum = weight.new_zeros(1, len(weight)), weight.new_zeros(1, weight.shape[1])
    for rows in parts:
        predicted = torch.addmm(bias, rows.inputs, weight.T)
        shift = clipping.wanted(rows.outputs, predicted, rows.offsets).sub_(rows.outputs)
        cross.addmm_(shift.T, rows.inputs)
        ones = weight.new_ones(1, len(shift))
        shift_sum.addmm_(ones, shift)
        input_sum.addmm_(ones, rows.inputs)
    n_rows = sum(len(rows.inputs) for rows in parts)
    mean_shift = shift_sum[0].double() / n_rows
    if not is_wide(spec):
        cross = cross.double()
    mean_in = input_sum[0].double() / n_rows
    return cross.div_(n_rows).addr_(mean_shift.to(cross), mean_in.to(cross), alpha=-1), mean_shift


def _with_dense(target: Target, dense: Tensor, moments: Moments) -> Target:
    """The same metric and ridge for another weight, nothing decomposed yet."""
    return Target(
        dense=dense,
        moments=moments,
        root=target.root,
        inverse_root=target.inverse_root,
        ridge=target.ridge,
    )
