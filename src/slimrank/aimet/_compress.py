# SPDX-License-Identifier: Apache-2.0
"""The one call: AIMET's arguments in, a compressed model and statistics out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

import torch
from torch import nn

from slimrank._errors import BudgetError, OptionError, ScoreError
from slimrank._numbers import real_number
from slimrank._result import Result
from slimrank._study import Study, study
from slimrank.aimet._inputs import (
    InputSampler,
    Raw,
    from_loader,
    made_up,
    read_input_shape,
    shapes_of,
)
from slimrank.aimet._layers import (
    eval_scores,
    floor_in_aimets_words,
    layers_of,
    manual_settings,
    names_to_score,
    ratios_reached,
)
from slimrank.aimet._parameters import ChannelPruningParameters, CompressionScheme, CostMetric, Parameters
from slimrank.aimet._request import Greedy, Request, read_request
from slimrank.aimet._statistics import CompressionStats, GreedyCompressionRatioSelectionStats
from slimrank.fitting import OnLayer
from slimrank.forward import eval_mode, outside_inference_mode
from slimrank.interop import receive
from slimrank.plan import Plan
from slimrank.recipes import measure_scores
from slimrank.records import PRUNING
from slimrank.scores import ScoreEntry, Scores
from slimrank.surgery import copy_model

# eval_callback(model, iterations, use_cuda)
EvalCallback = Callable[[nn.Module, object, bool], float]


class Trainer(Protocol):
    """What trains after each compressed layer."""

    train_model: Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedLayer:
    """The layer that a trainer is told of.

    Attributes:
        module: what stands in the model under the name now: of a pair both factors.
        name: dotted.
        weight_shape: of the original weight, (out, in / groups, height, width); a linear layer has 1 and 1.
        output_shape: of one sample, with the batch dimension.
        parent_module: that holds the module.
        var_name_of_module_in_parent: under which it does.
        input_shape: always None, as AIMET leaves it.
        picked_for_compression: always, since a trainer is not called for others.
    """

    module: nn.Module
    name: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parent_module: nn.Module
    var_name_of_module_in_parent: str
    input_shape: None = None
    picked_for_compression: bool = True


class ModelCompressor:
    """AIMET's entry to compression."""

    @staticmethod
    def compress_model(
        model: nn.Module,
        eval_callback: EvalCallback,
        eval_iterations: object,
        input_shape: Sequence[int] | Sequence[Sequence[int]],
        compress_scheme: CompressionScheme,
        cost_metric: CostMetric,
        parameters: Parameters,
        trainer: Trainer | None = None,
        visualization_url: str | None = None,
    ) -> tuple[nn.Module, CompressionStats]:
        """Compresses a model as a script written for AIMET asks for it.

        Args:
            model: any module; it is copied, and not changed in any way.
            eval_callback: called as ``eval_callback(model, iterations, use_cuda)``; returns a number, higher
                is better. It gets copies of models, in eval mode.
            eval_iterations: passed on while candidates are scored; the original and the compressed model
                are evaluated with None.
            input_shape: with the batch dimension; a list of shapes for several inputs. Used where there are
                no real inputs.
            compress_scheme: how layers shrink.
            cost_metric: what ratios are of.
            parameters: of that scheme.
            trainer: ``train_model(model, layer)`` is called after each compressed layer, with the new module
                in ``layer.module``; and once before, ``train_model(model, model, train_flag=False)``.
            visualization_url: accepted and not used; ``statistics.result.report("page.html")`` needs no
                server.

        Returns:
            The compressed model in eval mode, and statistics.

        Raises:
            OptionError: an argument of another kind or out of range, or a layer that the scheme cannot take.
            ScoreError: the callback returns no finite number, or the scores are a pickle or of another study.
            FileError: the scores cannot be read or written.
            BudgetError: the target is out of reach; the message names the lowest that is not.
            SlimrankError: as in ``slimrank.study`` and ``Study.apply``.
        """
        model = receive(model).model
        if not callable(eval_callback):
            raise OptionError(
                f"eval_callback is a {type(eval_callback).__name__}; give a function "
                "(model, iterations, use_cuda) that returns a number"
            )
        if trainer is not None and not callable(getattr(trainer, "train_model", None)):
            raise OptionError(
                f"trainer is a {type(trainer).__name__} without train_model; give an object with "
                "train_model(model, layer, train_flag=True)"
            )
        shapes = read_input_shape(input_shape)
        request = read_request(model, compress_scheme, cost_metric, parameters)
        run = _Run(
            request=request,
            eval_callback=eval_callback,
            eval_iterations=eval_iterations,
            shapes=shapes,
            trainer=trainer,
        )
        done, statistics = run.compress(model, parameters)
        if visualization_url:
            statistics.notes = (
                *statistics.notes,
                "visualization_url: nothing is sent there; "
                'statistics.result.report("page.html") writes a page',
            )
        return done, statistics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """A call of ``compress_model`` whose arguments are checked."""

    request: Request
    eval_callback: EvalCallback
    eval_iterations: object
    shapes: tuple[tuple[int, ...], ...]
    trainer: Trainer | None

    @outside_inference_mode
    def compress(self, model: nn.Module, parameters: Parameters) -> tuple[nn.Module, CompressionStats]:
        """The compressed model, and statistics."""
        original = copy_model(model)
        original.eval()
        if self.trainer is not None:
            self.trainer.train_model(original, original, train_flag=False)
            original.eval()
        device = next((p.device for p in original.parameters()), torch.device("cpu"))
        sampler = InputSampler(device)
        notes: list[str] = []
        if isinstance(parameters, ChannelPruningParameters):
            # Read first: a loader that cannot be used is told before the callback takes its time.
            batches = self._from_loader(parameters, device, notes)
            baseline = self._accuracy(original)
        else:
            baseline = self._accuracy(original, sampler)
            batches = self._seen(sampler, original, notes)
        measured = study(
            original,
            batches,
            methods=(self.request.method,),
            data_free=not isinstance(parameters, ChannelPruningParameters) and not sampler.n_kept,
            # Scores decide, so no predicted damage needs to be anchored.
            effort="fast",
        )
        plan, layers, scores = self._plan(measured, notes)
        result = measured.apply(plan, on_layer=self._hook(measured))
        result.model.eval()
        notes += [str(note) for note in result.notes if note.is_warning]
        return result.model, self._statistics(
            measured, original, result, layers=layers, scores=scores, baseline=baseline, notes=notes
        )

    def _accuracy(self, model: nn.Module, sampler: InputSampler | None = None) -> float:
        """What the callback says of a model, evaluated in full."""
        copy = copy_model(model)
        copy.eval()
        use_cuda = _is_on_cuda(model)
        if sampler is None:
            value = self.eval_callback(copy, None, use_cuda)
        else:
            with sampler.watching(copy):
                value = self.eval_callback(copy, None, use_cuda)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        number = real_number(value)
        if number is None:
            raise ScoreError(
                f"eval_callback returned a {type(value).__name__}; return one number, e.g. the accuracy"
            )
        if not isfinite(number):
            raise ScoreError(f"eval_callback returned {number}; return a finite number, e.g. the accuracy")
        return number

    def _seen(self, sampler: InputSampler, original: nn.Module, notes: list[str]) -> list[Raw]:
        """The inputs that the callback ran, or made-up ones where it ran none."""
        if not sampler.n_kept:
            notes.append(
                "warning: eval_callback never called the model itself, so there are no inputs to fit layers "
                "to: factors come from the weights alone, and accuracy may be lower. Call the model it is "
                "given: model(inputs)"
            )
            return made_up(self.shapes, original)
        batches = sampler.batches()
        notes.append(
            f"inputs: layers were fitted to {sampler.n_kept} of {sampler.n_seen} samples that eval_callback "
            "ran on the original; no labels were used"
        )
        self._compare_shapes(batches, "eval_callback ran", notes)
        return batches

    def _from_loader(
        self, parameters: ChannelPruningParameters, device: torch.device, notes: list[str]
    ) -> list[Raw]:
        """The inputs that the data loader yields."""
        batches, taken, wanted = from_loader(parameters, len(self.shapes), device)
        few = f" (the loader or memory has no more; {wanted} were wanted)" if taken < wanted else ""
        notes.append(
            f"inputs: layers were fitted to {taken} samples of data_loader{few}, with all their pixels; no "
            "labels were used"
        )
        self._compare_shapes(batches, "data_loader yields", notes)
        if parameters.allow_custom_downsample_ops:
            notes.append(
                "allow_custom_downsample_ops: none were needed; layers that share channels are slimmed "
                "together"
            )
        return batches

    def _compare_shapes(self, batches: Sequence[Raw], who: str, notes: list[str]) -> None:
        found, given = shapes_of(batches), tuple(shape[1:] for shape in self.shapes)
        if found != given:
            notes.append(
                f"input_shape: without batch it is {given}, {who} {found}; costs are counted with these"
            )

    def _plan(self, measured: Study, notes: list[str]) -> tuple[Plan, tuple[str, ...], Scores | None]:
        """The plan, the layers that the statistics tell of, and the scores."""
        request = self.request
        if isinstance(request.chosen, Greedy):
            return self._greedy_plan(measured, request.chosen, notes)
        settings, more = manual_settings(
            measured, request.method, request.metric, request.chosen, request.multiple_of
        )
        notes += more
        plan = Plan.manual(measured, settings, multiple_of=request.multiple_of)
        return plan, tuple(request.chosen), None

    def _greedy_plan(
        self, measured: Study, greedy: Greedy, notes: list[str]
    ) -> tuple[Plan, tuple[str, ...], Scores]:
        request = self.request
        layers = layers_of(measured, request.method, greedy.ignored)
        names = names_to_score(measured, request.method, layers)
        candidates: int | Sequence[float] = greedy.candidates
        scores = None
        if greedy.path is not None and greedy.path.exists():
            stored = Scores.load(greedy.path)
            # What is in the file counts, as in AIMET.
            candidates = stored.candidates
            scores = self._of_other_inputs(stored, measured, names)
            if scores is not None:
                notes.append(
                    "saved_eval_scores_dict: the scores were measured with other inputs of the same model, "
                    "as of data that are shuffled; they were used as they are"
                )

        def score(model: nn.Module) -> float:
            # A callback may leave the model in training mode; it gets it back in eval mode next time.
            with eval_mode(model):
                return self.eval_callback(model, self.eval_iterations, _is_on_cuda(model))

        if scores is None:
            scores = measure_scores(measured, score, layers=names, candidates=candidates, path=greedy.path)
        if request.method == PRUNING:
            # A name may stand for several groups, and a file may hold more than is asked for now.
            scores = replace(scores, groups=_only(scores.groups, names))
        else:
            scores = replace(scores, entries=_only(scores.entries, names))
        try:
            plan = measured.plan(
                macs=greedy.target if request.metric == "macs" else None,
                params=greedy.target if request.metric == "params" else None,
                select="greedy",
                multiple_of=request.multiple_of,
                scores=scores,
                monotonic=greedy.monotonic,
            )
        except BudgetError as error:
            raise BudgetError(floor_in_aimets_words(str(error), measured, greedy.ignored)) from error
        return plan, layers, scores

    def _of_other_inputs(self, stored: Scores, measured: Study, names: Sequence[str]) -> Scores | None:
        """Stored scores that differ from the study in its inputs alone, as scores of it; None for others.

        A loader that shuffles gives other inputs in every run, and the callback scores the same model.
        """
        keys = {*stored.fingerprint, *measured.fingerprint}
        differing = {key for key in keys if stored.fingerprint.get(key) != measured.fingerprint.get(key)}
        table = stored.groups if self.request.method == PRUNING else stored.entries
        if (
            differing != {"inputs"}
            or stored.methods != (self.request.method,)
            or not set(names) <= table.keys()
        ):
            return None
        return replace(stored, fingerprint=dict(measured.fingerprint))

    def _hook(self, measured: Study) -> OnLayer | None:
        """Calls the trainer after each compressed layer."""
        if self.trainer is None:
            return None
        train_model = self.trainer.train_model

        def train(model: nn.Module, name: str) -> None:
            spec = measured.structure.layers[name]
            shape = (*spec.weight_shape, 1, 1) if spec.kind == "linear" else spec.weight_shape
            parent, _, child = name.rpartition(".")
            layer = TrainedLayer(
                module=model.get_submodule(name),
                name=name,
                weight_shape=shape,
                output_shape=spec.calls[-1].output_shape if spec.calls else (),
                parent_module=model.get_submodule(parent),
                var_name_of_module_in_parent=child,
            )
            train_model(model, layer)

        return train

    def _statistics(
        self,
        measured: Study,
        original: nn.Module,
        result: Result,
        *,
        layers: Sequence[str],
        scores: Scores | None,
        baseline: float,
        notes: Sequence[str],
    ) -> CompressionStats:
        request = self.request
        ratios = ratios_reached(measured, request.method, request.metric, layers, result, original)
        selection = None
        if scores is not None:
            selection = GreedyCompressionRatioSelectionStats(eval_scores(measured, scores, request.metric))
        return CompressionStats(
            baseline=baseline,
            compressed=self._accuracy(result.model),
            ratios=ratios,
            selection=selection,
            notes=notes,
            result=result,
            scores=scores,
        )


def _only(
    table: Mapping[str, tuple[ScoreEntry, ...]], names: Sequence[str]
) -> dict[str, tuple[ScoreEntry, ...]]:
    return {name: entries for name, entries in table.items() if name in names}


def _is_on_cuda(model: nn.Module) -> bool:
    first = next(model.parameters(), None)
    return first is not None and first.is_cuda
