# SPDX-License-Identifier: Apache-2.0
"""Training towards the original's outputs: no labels, never worse than what came in."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank._errors import NonFiniteError, OptionError, OutputError, UnknownNameError
from slimrank._live_view import shown_live_in_run_dir
from slimrank._names import nearest
from slimrank._numbers import real_number
from slimrank.calibrate import (
    Likelihood,
    OwnLossFn,
    check_loss,
    divergence,
    is_mask_of,
    read_likelihood,
    readings_tried,
    reference_outputs,
    token_mask,
)
from slimrank.cost import SAMPLING
from slimrank.forward import (
    Batch,
    OutputChoice,
    Picked,
    check_outputs,
    outside_inference_mode,
    path_within,
    pick_outputs,
    run,
    tap_layers,
)
from slimrank.records import Family, LikelihoodChoice, Weights
from slimrank.recover._checkpoint import stored_run, tensors_of
from slimrank.recover._examples import Example, Inputs, TrainingData, open_training_data, read_with
from slimrank.recover._train import (
    MakeOptimizer,
    NormsChoice,
    Objective,
    OnEpoch,
    Options,
    ScheduleChoice,
    check_training,
    seeded_apart,
    train,
)
from slimrank.surgery import quiet_copy
from slimrank.tensors import describe, digest_tensors

# Outputs of modules, by name of the module and number of its call in one forward.
Features = Mapping[tuple[str, int], Tensor]


@shown_live_in_run_dir
@outside_inference_mode
def distill(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[object],
    *,
    epochs: int = 1,
    lr: float = 1e-4,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    weights: Weights = None,
    loss: OwnLossFn | None = None,
    temperature: float = 1.0,
    features: Sequence[str] = (),
    feature_weight: float = 1.0,
    holdout: float | Iterable[object] = 0.2,
    norms: NormsChoice = "frozen",
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    schedule: ScheduleChoice = "cosine",
    optimizer: MakeOptimizer | None = None,
    on_epoch: OnEpoch | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    in_place: bool = False,
    progress: bool = True,
    serve: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A model trained towards its original's outputs, in its best state on held-out batches.

    Needs no labels. What is minimised is the divergence that ``study`` measures, per position of an output
    (a token, a pixel), plus feature terms; what judges on held-out batches is the divergence alone, per
    sample. As with ``finetune``, what is returned is never worse there than what came in.

    Args:
        model: e.g. ``result.model``; as in ``finetune``.
        teacher: the original; it runs as a private copy in eval mode.
        batches: a re-iterable of inputs, as in ``slimrank.study``; moved and ordered as in ``finetune``.
        epochs: as in ``finetune``.
        lr: as in ``finetune``.
        inputs: as in ``slimrank.study``, e.g. ``lambda b: b[0]`` for a loader with labels.
        outputs: as in ``slimrank.study``: which of the tensors that both models return matter.
        likelihood: as in ``slimrank.study``, chosen on the teacher's outputs for held-out batches.
        weights: as in ``slimrank.study``.
        loss: as in ``slimrank.study``: then this is what is minimised and what judges.
        temperature: of categorical outputs while training, above 0: higher ones weigh unlikely classes more.
        features: names of modules of both models whose outputs are to agree as well.
        feature_weight: of the mean over ``features`` of the squared error relative to the teacher's variance.
        holdout: as in ``finetune``.
        norms: as in ``finetune``.
        weight_decay: as in ``finetune``.
        clip_norm: as in ``finetune``.
        schedule: as in ``finetune``.
        optimizer: as in ``finetune``.
        on_epoch: as in ``finetune``.
        run_dir: as in ``finetune``.
        in_place: as in ``finetune``.
        progress: as in ``finetune``.
        serve: as in ``finetune``.
        seed: as in ``finetune``.

    Returns:
        The trained model, training flags and ``requires_grad`` as in ``model``.

    Raises:
        UnknownNameError: a feature that one of the models lacks.
        OptionError: an option out of range, or features of unequal shape.
        OutputError: outputs of the two models that cannot be compared.
        SlimrankError: as in ``finetune``, for model, batches and ``run_dir``.

    Example:
        >>> import torch
        >>> import slimrank as sr
        >>> generator = torch.Generator().manual_seed(0)
        >>> batches = [torch.randn(16, 4, generator=generator) for _ in range(5)]
        >>> teacher, model = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> tuned = sr.distill(model, teacher, batches, epochs=5, lr=0.05, progress=False)
        >>> wanted = teacher(batches[0])
        >>> bool((tuned(batches[0]) - wanted).norm() < (model(batches[0]) - wanted).norm())
        True
    """
    options = Options(
        epochs=epochs,
        lr=lr,
        norms=norms,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=schedule,
        seed=seed,
    )
    check_training(model, options, optimizer, on_epoch)
    _check_options(teacher, temperature, feature_weight)
    check_outputs(outputs)
    check_loss(loss, weights)
    names = (features,) if isinstance(features, str) else tuple(features)
    _check_names(names, model, teacher)
    with seeded_apart(model, options.seed):
        private_teacher = quiet_copy(teacher)
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) == 1:
            private_teacher.to(next(iter(devices)))
        read = read_with(inputs, None, model, labelled=False)
        data = open_training_data(batches, read, model, holdout=holdout, seed=options.seed)
        distillation = _Distillation(
            teacher=private_teacher,
            outputs=outputs,
            likelihood=_likelihood_on(private_teacher, data, outputs, likelihood, weights, loss),
            temperature=float(temperature),
            features=names,
            weight=float(feature_weight),
        )
        if likelihood == "auto":
            # A run on disk goes on as it began, should its outputs be read otherwise by now.
            families = distillation.read_as(stored_run(run_dir).get("objective"))
            if families is not None:
                choice = families.get("", families)
                same = _likelihood_on(private_teacher, data, outputs, choice, weights, loss)
                distillation = replace(distillation, likelihood=same)
        distillation.check(model, next(data.stream_held_out()))
        objective = Objective(
            name="distill",
            loss=distillation.loss,
            judge=distillation.judge,
            facts={
                "teacher": digest_tensors(dict(tensors_of(private_teacher))),
                "objective": distillation.digest(),
            },
        )
        return train(
            model,
            data,
            objective,
            options,
            optimizer=optimizer,
            on_epoch=on_epoch,
            run_dir=run_dir,
            in_place=in_place,
            progress=progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Distillation:
    """What the model is trained towards, and how far it is from there.

    Attributes:
        teacher: a private copy in eval mode.
        outputs: which tensors matter.
        likelihood: how they are read.
        temperature: of categorical outputs in training.
        features: names of modules whose outputs are to agree.
        weight: of that.
    """

    teacher: nn.Module
    outputs: OutputChoice
    likelihood: Likelihood
    temperature: float
    features: tuple[str, ...]
    weight: float

    def digest(self, families: Mapping[str, Family] | None = None) -> str:
        """What is minimised, as a digest; with outputs read as other families."""
        likelihood = self.likelihood
        read = families or {path: output.family for path, output in likelihood.outputs.items()}
        facts: tuple[object, ...] = (
            # A key or an index did not stand before the paths of the first runs.
            [
                (path_within(path, self.outputs), family, likelihood.outputs[path].shape)
                for path, family in read.items()
            ],
            (describe(self.outputs), self.temperature, self.features, self.weight),
        )
        weights = [output.weight for output in likelihood.outputs.values()]
        if likelihood.loss is not None or set(weights) != {1.0}:
            facts += (weights, None if likelihood.loss is None else describe(likelihood.loss.function))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def read_as(self, digest: object) -> Mapping[str, Family] | None:
        """Families that make what is minimised the same as a digest says; None where it is, or none do."""
        if digest is None or digest == self.digest():
            return None
        paths = list(self.likelihood.outputs)
        return next((tried for tried in readings_tried(paths) if self.digest(tried) == digest), None)

    def check(self, model: nn.Module, example: Example) -> None:
        """One forward of both, before training: outputs and features must fit each other."""
        _softened(self.likelihood, self.temperature)
        with torch.no_grad():
            # A copy: some models keep what they computed on themselves.
            trained = quiet_copy(model)
            result, features = _run_with_features(trained, example.batch, self.features)
            wanted, teacher_features = self._teacher_outputs(example.batch)
        self._picked_outputs(result, wanted)
        for name in self.features:
            in_model, in_teacher = (
                [y for (module, _), y in outputs.items() if module == name]
                for outputs in (features, teacher_features)
            )
            if not in_model or not in_teacher:
                raise OptionError(
                    f"feature {name!r} takes or gives no tensor in the {'teacher' if in_model else 'model'}; "
                    "name a module that is called with a tensor and returns one"
                )
            shapes = [[list(y.shape) for y in outputs] for outputs in (in_model, in_teacher)]
            if shapes[0] != shapes[1]:
                raise OptionError(
                    f"feature {name!r} is {shapes[0][0]} in the model and {shapes[1][0]} in the teacher "
                    f"({len(in_model)} and {len(in_teacher)} calls); name one that has the same shape in both"
                )

    def judge(self, model: nn.Module, example: Example) -> float:
        """Mean divergence per sample."""
        wanted, _ = self._teacher_outputs(example.batch, with_features=False)
        picked = self._picked_outputs(run(model, example.batch), wanted)
        mask, n_samples = token_mask(example.batch), example.batch.n_samples
        return float(divergence(self.likelihood, wanted, picked, mask, n_samples).double().mean())

    def loss(self, model: nn.Module, example: Example) -> Tensor:
        """Divergence per position, softened by the temperature, plus the feature terms."""
        batch = example.batch
        wanted, teacher_features = self._teacher_outputs(batch)
        result, features = _run_with_features(model, batch, self.features)
        picked, mask = self._picked_outputs(result, wanted), token_mask(batch)
        total = picked[next(iter(picked))].new_zeros((), dtype=torch.float32)
        for likelihood, factor in _softened(self.likelihood, self.temperature):
            before, after = (self._at_temperature(values, factor) for values in (wanted, picked))
            part = divergence(likelihood, before, after, mask, batch.n_samples).mean()
            # Gradients shrink with the square of the temperature: the factor makes up for that.
            total = total + part * factor**2
        if self.likelihood.loss is None:
            total = total / max(output.positions for output in self.likelihood.outputs.values())
        errors = [
            _relative_error(features[call], feature, mask)
            for call, feature in teacher_features.items()
            if call in features
        ]
        return total + self.weight * torch.stack(errors).mean() if errors else total

    def _teacher_outputs(self, batch: Batch, *, with_features: bool = True) -> tuple[Picked, Features]:
        with torch.no_grad():
            result, features = _run_with_features(self.teacher, batch, self.features if with_features else ())
        return pick_outputs(result, self.outputs), features

    def _at_temperature(self, tensors: Picked, temperature: float) -> Picked:
        """Logits at a temperature; probabilities become logits first."""
        if temperature == 1:
            return tensors
        # The logarithm of a probability of zero would be infinite.
        logits = {
            name: values.float().clamp_min(1e-12).log() if output.is_probability else values.float()
            for name, output in self.likelihood.outputs.items()
            for values in (tensors[name],)
        }
        return Picked(None, {name: values / temperature for name, values in logits.items()})

    def _picked_outputs(self, result: object, wanted: Picked) -> Picked:
        picked = pick_outputs(result, self.outputs)
        shapes, teacher_shapes = (
            {name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (picked, wanted)
        )
        if shapes != teacher_shapes:
            raise OutputError(
                f"the model gives {shapes or 'nothing'}, the teacher {teacher_shapes}; pass outputs= "
                "that picks tensors that both return, in train mode as well"
            )
        return picked


def _run_with_features(model: nn.Module, batch: Batch, names: Sequence[str]) -> tuple[object, Features]:
    """One forward, with the outputs of some modules by name and call."""
    features: dict[tuple[str, int], Tensor] = {}

    def tap(name: str, call: int, _x: Tensor, y: Tensor) -> None:
        # A copy: what follows may change it in place.
        features[name, call] = y.clone()

    with tap_layers(model, names, tap):
        return run(model, batch), features


def _relative_error(feature: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error over the teacher's variance; padding tokens do not count."""
    feature, wanted = feature.float(), wanted.float()
    if is_mask_of(mask, wanted):
        feature, wanted = feature[mask], wanted[mask]
    # A feature that is constant has no variance.
    return (feature - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12)


def _softened(likelihood: Likelihood, temperature: float) -> list[tuple[Likelihood, float]]:
    """The likelihood in parts, each with the temperature of its outputs."""
    if temperature == 1:
        return [(likelihood, 1.0)]
    if likelihood.loss is not None:
        raise OptionError(
            f"temperature={temperature} and loss= are given; a loss of your own softens outputs itself, so "
            "leave temperature= out"
        )
    soft = {
        n: replace(o, is_probability=False)
        for n, o in likelihood.outputs.items()
        if o.family == "categorical"
    }
    if not soft:
        raise OptionError(
            f"temperature={temperature} is for categorical outputs, and there is none "
            f"({'; '.join(likelihood.reasons)}); leave it out, or pass likelihood='categorical'"
        )
    hard = {name: output for name, output in likelihood.outputs.items() if name not in soft}
    parts = [(replace(likelihood, outputs=soft), temperature)]
    return [*parts, (replace(likelihood, outputs=hard), 1.0)] if hard else parts


def _likelihood_on(
    teacher: nn.Module,
    data: TrainingData,
    outputs: OutputChoice,
    choice: LikelihoodChoice,
    weights: Weights,
    loss: OwnLossFn | None,
) -> Likelihood:
    """How outputs are read: from the teacher's for held-out batches, as many as memory allows."""
    references: list[Picked] = []
    batches: list[Batch] = []
    n_bytes = 0
    for example in data.stream_held_out():
        is_whole = loss is not None and not references
        (picked,) = reference_outputs(teacher, [example.batch], outputs, whole=is_whole)
        for name, tensor in picked.items():
            if not tensor.isfinite().all():
                raise NonFiniteError(
                    f"{example.batch.where}: output {name or 'of the teacher'} holds nan or inf; pass "
                    "outputs= that picks finite tensors, or check weights and data"
                )
        n_bytes += sum(tensor.numel() * tensor.element_size() for tensor in picked.values())
        if references and n_bytes > SAMPLING.outputs:
            break
        references.append(picked)
        batches.append(example.batch)
    return read_likelihood(references, batches, choice, weights=weights, loss=loss)


def _check_options(teacher: object, temperature: object, feature_weight: object) -> None:
    if not isinstance(teacher, nn.Module):
        raise OptionError(f"teacher is a {type(teacher).__name__}; give the original torch.nn.Module")
    for keyword, value in (("temperature", temperature), ("feature_weight", feature_weight)):
        number = real_number(value)
        if number is None or not 0 < number < math.inf:
            raise OptionError(f"{keyword}={value!r}; give a positive number, e.g. {keyword}=1.0")


def _check_names(names: Sequence[str], model: nn.Module, teacher: nn.Module) -> None:
    for owner, module in (("the model", model), ("the teacher", teacher)):
        known = [name for name, _ in module.named_modules() if name]
        for name in names:
            if name not in known:
                raise UnknownNameError(f"features: {owner} has no module {name!r}; {nearest(name, known)}")
