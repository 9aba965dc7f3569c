# SPDX-License-Identifier: Apache-2.0
"""One layer's factors or weight, chosen and refined by the error on held-out rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank._errors import OptionError
from slimrank.fitting._rows import Rows
from slimrank.linalg import Clipping, Moments, least_squares_weight
from slimrank.methods import Factors, Target, fit_factors
from slimrank.records import LayerSpec, Setting

# Rounds in which the factors of a pair are refined in turn: less error for more time. What none and 12 of
# them bring stands in benchmarks/results, under ablation.
ALTERNATIONS = 3
# Rounds in which the wanted outputs move behind a clipping. Each fits the pair anew, so it alternates less.
CLIPPED_ROUNDS = 2
# Rounds of refinement in each of these.
CLIPPED_ALTERNATIONS = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A fitted layer.

    Attributes:
        factors: what takes its place, or the (O, D) float64 weight of a layer that stays one.
        bias: (O,) float64, of the last factor, or of the layer; None for none.
        kind: "sequential", "independent" or "weights".
    """

    factors: Factors | Tensor
    bias: Tensor | None
    kind: str

    def weight(self, spec: LayerSpec) -> Tensor:
        """The (O, D) float64 weight that the factors stand for."""
        return self.factors if isinstance(self.factors, Tensor) else self.factors.weight(spec)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerStatistics:
    """What is known of a layer's inputs and wanted outputs: a fit needs no more.

    Attributes:
        moments: of its inputs in the compressed model.
        cross: (O, D) float64, covariance of wanted outputs and these inputs.
        mean_out: (O,) float64, of the wanted outputs.
        held_out: rows to choose by; None where there are none.
        rows: some of the rows that were summed; None where nothing is clipped.
        clipping: what follows the layer; None where nothing is known.
        n_groups: of its convolution: blocks on the diagonal of its weight.
    """

    moments: Moments
    cross: Tensor
    mean_out: Tensor
    held_out: Rows | None
    rows: Rows | None
    clipping: Clipping | None
    n_groups: int = 1


def best_fit(
    spec: LayerSpec,
    setting: Setting | None,
    statistics: LayerStatistics,
    weight: Tensor,
    targets: Iterable[tuple[str, Target]],
) -> Fit:
    """The target whose pair has the lowest error on held-out rows, refined as far as that holds there too.

    Args:
        spec: the layer.
        setting: form and rank; None to keep the layer in one piece.
        statistics: what the layer is fitted to.
        weight: (O, D) float64, of the layer.
        targets: kind and target, one after the other: each holds moments and their decompositions.

    Returns:
        The fit.

    Raises:
        OptionError: there is no target.
    """

    def fitted(kind: str, target: Target, alternations: int) -> Fit:
        return _fitted(
            spec, setting, kind, target, statistics.moments.mean, statistics.mean_out, alternations
        )

    best: tuple[float, Fit, Target] | None = None
    # Refinement takes time: it is left for the best of them.
    for kind, target in targets:
        fit = fitted(kind, target, 0)
        error = _error(spec, statistics.held_out, fit, target.root)
        if best is None or error < best[0]:
            best = (error, fit, target)
    if best is None:
        raise OptionError(f"layer {spec.name!r}: there is nothing to fit to")
    error, fit, target = best
    if setting is not None:
        refined = fitted(fit.kind, target, ALTERNATIONS)
        if _error(spec, statistics.held_out, refined, target.root) <= error:
            fit = refined
    if statistics.clipping is None or statistics.rows is None:
        return fit
    return _clipped_fit(spec, setting, statistics, statistics.rows, statistics.clipping, weight, fit, target)


def _fitted(
    spec: LayerSpec,
    setting: Setting | None,
    kind: str,
    target: Target,
    mean_in: Tensor,
    mean_out: Tensor,
    alternations: int,
) -> Fit:
    """Factors for the target, and the bias that maps the mean of the inputs to the wanted mean."""
    if setting is None:
        return Fit(factors=target.dense, bias=mean_out - target.dense @ mean_in, kind=kind)
    factors = fit_factors(spec, setting, target, alternations=alternations)
    return Fit(factors=factors, bias=mean_out - factors.outputs(spec, mean_in), kind=kind)


def _error(
    spec: LayerSpec, rows: Rows | None, fit: Fit, root: Tensor, clipping: Clipping | None = None
) -> float:
    """Mean squared error on rows in the output metric, halved; after the clipping where one is given."""
    if rows is None or fit.bias is None:
        return 0.0
    predicted = _predicted(spec, rows, fit)
    if clipping is None:
        difference = predicted - rows.outputs
    else:
        difference = clipping.errors(rows.outputs, predicted, rows.offsets)
    return float(_weighed(difference, root.float()).square().sum(1).mean() / 2)


def _weighed(difference: Tensor, root: Tensor) -> Tensor:
    """(S, O) differences times the root of Q outputs; where O is a multiple of Q, each has several rows."""
    rows = difference.view(len(difference), len(root), -1).mT
    return (rows @ root.T if root.ndim == 2 else rows * root).flatten(1)


def _predicted(spec: LayerSpec, rows: Rows, fit: Fit) -> Tensor:
    predicted = rows.inputs @ fit.weight(spec).float().T
    return predicted if fit.bias is None else predicted + fit.bias.float()


def _clipped_fit(
    spec: LayerSpec,
    setting: Setting | None,
    statistics: LayerStatistics,
    rows: Rows,
    clipping: Clipping,
    weight: Tensor,
    fit: Fit,
    target: Target,
) -> Fit:
    """The fit, improved for what is left of its outputs after the clipping; guarded on held-out rows.

    The wanted outputs move (``Clipping.wanted``), so only the covariance with them changes, and by little:
    the change is taken from some of the rows.
    """
    # Compared after the clipping: a fit that is worse before it may be the better one.
    error = _error(spec, statistics.held_out, fit, target.root, clipping)
    centred = rows.inputs - rows.inputs.mean(0)
    newest = fit
    for _ in range(CLIPPED_ROUNDS):
        wanted = clipping.wanted(rows.outputs, _predicted(spec, rows, newest), rows.offsets)
        shift = wanted - rows.outputs
        cross = statistics.cross + (shift.T @ centred).double() / len(shift)
        mean_out = statistics.mean_out + shift.mean(0, dtype=torch.float64)
        dense = least_squares_weight(
            weight, cross, statistics.moments, ridge=target.ridge, n_groups=statistics.n_groups
        )
        moved_target = _with_dense(target, dense, statistics.moments)
        mean_in = statistics.moments.mean
        newest = _fitted(spec, setting, fit.kind, moved_target, mean_in, mean_out, CLIPPED_ALTERNATIONS)
        new_error = _error(spec, statistics.held_out, newest, target.root, clipping)
        if new_error >= error:
            break
        error, fit = new_error, newest
    return fit


def _with_dense(target: Target, dense: Tensor, moments: Moments) -> Target:
    """The same metric and ridge for another weight, nothing decomposed yet."""
    return Target(
        dense=dense,
        moments=moments,
        root=target.root,
        inverse_root=target.inverse_root,
        ridge=target.ridge,
    )
