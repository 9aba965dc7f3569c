# SPDX-License-Identifier: Apache-2.0
"""Measured held-out divergences of the original with one layer, group or block changed."""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from slimrank.calibrate import OutputModel, evenly_spaced, measure_divergence, reference_outputs
from slimrank.cost import SAMPLING
from slimrank.forward import Batch, Replay, run
from slimrank.linalg import times_vector
from slimrank.methods import Anchor, Factors, Target, anchor_points, build_replacement, fit_factors
from slimrank.records import Curve, LayerSpec, Setting
from slimrank.surgery import bias_of, put_back, replace_module
from slimrank.survey._session import Session

# What a study spends at most on all divergences of layers, and again on those of groups, in MACs, and in
# passes forward and backward over all samples. More means more held-out samples in each divergence, so that
# an anchor depends less on which samples those are. On four networks of 8 to 26 layers, at 0.5 and 0.25 of
# the MACs and with two seeds, 1.5 passes lost as many points as these; 0.4 lost up to 0.9 more on one.
_ANCHOR_MACS, _ANCHOR_PASSES = 6e12, 0.75
# Share of the MACs of a forward that one from a layer on takes, on average over the layers.
_SHARE_FROM_LAYER = 0.6
_FEW_MACS = 2e10
# MACs of a pass forward and backward over one of a forward.
_PASS = 3
# Held-out samples of a divergence even where these cost more than that. A classifier of pictures lost 0 to 4
# points more at a quarter of the MACs with 8 of them. Of maps and tokens fewer serve, since each sample has
# many terms: with 4 the plans of six networks from pictures to pictures were the same, or as good.
_MIN_SAMPLES, _MIN_MAPS = 16, 4
# Dimensions of one sample, and its terms, from which on an output counts as such.
_MAP_DIMS, _TERMS_OF_MAP = 2, 16
# Samples that tell whether forwards which start at a layer give what whole ones do.
_CHECK_SAMPLES = 2
# Rounds in which factors that only serve a measurement are refined; a result's factors take more.
_ALTERNATIONS = 1


def independent_pair(
    spec: LayerSpec, layer: nn.Module, setting: Setting, target: Target
) -> tuple[Factors, Tensor]:
    """Factors fitted to the inputs of the original, everything else as it is there.

    Args:
        spec: the layer.
        layer: its module.
        setting: what takes its place.
        target: what to reproduce; it remembers its decompositions.

    Returns:
        The factors, and the bias of the last, (O,) float64, that keeps the mean of the outputs.
    """
    factors = fit_factors(spec, setting, target, alternations=_ALTERNATIONS)
    mean = target.moments.mean
    lost = times_vector(target.dense, mean) - factors.outputs(spec, mean)
    bias = bias_of(layer)
    return factors, lost if bias is None else lost + bias.double()


def count_samples(session: Session, evaluations: int) -> int:
    """Held-out samples of each divergence.

    Args:
        session: model and data.
        evaluations: about how many divergences will be measured, each from a layer on; of none, no sample is
            needed.
    """
    if not evaluations:
        return 0
    cost = max(1.0, _SHARE_FROM_LAYER * evaluations * session.captured.before.macs)
    # Bytes of the reference outputs of one sample, in float32.
    per_sample = 4 * sum(math.prod(output.shape) for output in session.likelihood.outputs.values())
    is_map = min(map(_terms, session.likelihood.outputs.values()), default=1) >= _TERMS_OF_MAP
    limit = max(
        _MIN_MAPS if is_map else _MIN_SAMPLES, int(macs_within(session, _ANCHOR_MACS, _ANCHOR_PASSES) / cost)
    )
    return min(limit, max(1, SAMPLING.outputs // max(1, per_sample)), len(session.feed.held_out))


def _terms(output: OutputModel) -> int:
    """How many places of a map or a sequence the divergence of one sample is about; 1 of a vector."""
    if len(output.shape) < _MAP_DIMS:
        return 1
    return math.prod(output.shape[1:]) if output.family == "gaussian" else output.positions


def macs_within(session: Session, macs: float, passes: float) -> float:
    """The lesser of so many MACs, and of those of some passes forward and backward over all samples.

    Few are not worth saving: 2e10 at least, a second or less.
    """
    n_samples = len(session.feed.fit) + len(session.feed.held_out)
    return min(macs, max(_FEW_MACS, passes * _PASS * n_samples * session.captured.before.macs))


def as_evaluations(whole_forwards: int) -> int:
    """How many divergences from a layer on take as long as so many of the whole model."""
    return math.ceil(whole_forwards / _SHARE_FROM_LAYER)


class Anchors:
    """Held-out divergences of the original with one thing changed.

    Args:
        session: model and data.
        evaluations: about how many will be measured, to size the share of the held-out samples.
        ratios: shares of the MACs of a layer at which it is measured.
    """

    def __init__(self, session: Session, evaluations: int, ratios: Sequence[float] = ()) -> None:
        self._model = session.original
        self._ratios = ratios
        self._outputs = session.outputs
        self._likelihood = session.likelihood
        self._replay_bytes = session.budgets.replay
        indices = evenly_spaced(session.feed.held_out, count_samples(session, evaluations))
        # Apart from the others, a few samples with which every start at a layer is checked.
        parts = (indices[:_CHECK_SAMPLES], indices[_CHECK_SAMPLES:])
        self._batches: list[Batch] = [batch for part in parts if part for batch in session.feed.stream(part)]
        self._references = reference_outputs(
            self._model, self._batches, self._outputs, whole=self._likelihood.loss is not None
        )
        self._replay = self._new_replay()

    def _new_replay(self) -> Replay:
        return Replay(self._model, self._batches, max_bytes=self._replay_bytes)

    def start_at(self, layer: str, touched: Collection[str] = ()) -> None:
        """Lets the measurements that follow begin at a layer; call in execution order.

        Args:
            layer: dotted name.
            touched: other modules that change.
        """
        self._replay.start_at(layer, self._references, self._outputs, touched)

    def start_anew(self) -> None:
        """Lets the measurements that follow run the whole model."""
        self._replay = self._new_replay()

    def divergence_with(self, change: Callable[[nn.Module], None]) -> float:
        """Divergence of the model with a change.

        Args:
            change: works on the model it is given by exchanging modules, tensors and attributes, nothing
                before the layer of ``start_at``; all is put back.

        Returns:
            The divergence, in the unit of the likelihood.
        """
        with put_back(self._model):
            change(self._model)
            return measure_divergence(
                self._replay.stream(), self._references, self._batches, self._likelihood, self._outputs
            )

    def divergence_of(self, model: nn.Module) -> float:
        """Divergence of another model.

        Args:
            model: in eval mode; takes the same inputs.

        Returns:
            The divergence, in the unit of the likelihood.
        """
        with torch.no_grad():
            results = (run(model, batch) for batch in self._batches)
            return measure_divergence(
                results, self._references, self._batches, self._likelihood, self._outputs
            )

    def measure_layer(self, spec: LayerSpec, target: Target, curves: Sequence[Curve]) -> list[Anchor]:
        """Divergences with a few pairs in place of a layer.

        Args:
            spec: the layer; call in execution order.
            target: what its pairs reproduce.
            curves: of the layer.

        Returns:
            Anchors.
        """
        layer = self._model.get_submodule(spec.name)
        self.start_at(spec.name)
        anchors = []
        for setting, error in anchor_points(curves, spec.macs, self._ratios):
            factors, bias = independent_pair(spec, layer, setting, target)
            new = build_replacement(spec, layer, factors, bias)

            def change(model: nn.Module, new: nn.Module = new) -> None:
                replace_module(model, spec.name, new)

            anchors.append(Anchor(setting=setting, error=error, divergence=self.divergence_with(change)))
        return anchors
