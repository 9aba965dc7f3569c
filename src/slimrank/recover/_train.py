# SPDX-License-Identifier: Apache-2.0
"""The training loop: held-out batches judge every epoch, and the best state is what comes out."""

import contextlib
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from slimrank._errors import FileError, GradientError, ModelError, NonFiniteError, OptionError
from slimrank._numbers import plain_number
from slimrank._progress import EVENTS_FILE, EventFile, Phases
from slimrank.files import Json
from slimrank.forward import eval_mode
from slimrank.recover._checkpoint import (
    Checkpoint,
    TrainingState,
    load_optimizer_,
    optimizer_state,
    restore_,
    snapshot,
    tensors_of,
)
from slimrank.recover._examples import Example, TrainingData
from slimrank.recover._norms import reestimate_, running_norms
from slimrank.surgery import copy_model
from slimrank.tensors import describe, digest_tensors

NormsChoice = Literal["frozen", "reestimated"]
ScheduleChoice = Literal["cosine", "constant"]
MakeOptimizer = Callable[..., torch.optim.Optimizer]
# Share of the steps in which the learning rate rises: without a rise the first steps may undo what the fits
# reached; a longer one wastes steps.
_WARM_UP = 0.05
_LOG = logging.getLogger("slimrank.recover")


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch did.

    Attributes:
        epoch: its number, from 1.
        training_loss: mean per sample while it trained, of what was minimised.
        held_out_loss: mean per sample over the held-out batches, in eval mode, after it.
        held_out_before: the same for the model that came in.
        learning_rate: of its last step.
        is_best: whether no state so far has a lower held-out loss.
        seconds: wall time, the judging included.
    """

    epoch: int
    training_loss: float
    held_out_loss: float
    held_out_before: float
    learning_rate: float
    is_best: bool
    seconds: float


OnEpoch = Callable[[Epoch], object]


# The name of the class and the order of its fields are part of the fingerprint of a run, by its repr.
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How training goes; as in ``finetune``.

    Attributes:
        epochs, lr, norms, weight_decay, clip_norm, schedule, seed: of the caller.
    """

    epochs: int
    lr: float
    norms: NormsChoice
    weight_decay: float
    clip_norm: float | None
    schedule: ScheduleChoice
    seed: int

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "weight_decay", "clip_norm", "seed"):
            # Of whatever kind it is given, a number is the same in files and fingerprints.
            object.__setattr__(self, name, plain_number(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """What training is for.

    Attributes:
        name: "finetune" or "distill", for messages.
        loss: what is minimised: a scalar with gradient, the mean over the samples of a batch.
        judge: what is compared on held-out batches: the mean per sample, lower is better.
        facts: what ties a run directory to it, by topic.
    """

    name: str
    loss: Callable[[nn.Module, Example], Tensor]
    judge: Callable[[nn.Module, Example], float]
    facts: Mapping[str, str]


def check_training(
    model: object, options: Options, optimizer: MakeOptimizer | None, on_epoch: OnEpoch | None
) -> None:
    """Refuses what no training can start with, before any data are read.

    Args:
        model: of the caller.
        options: of the caller.
        optimizer: of the caller.
        on_epoch: of the caller.

    Raises:
        OptionError: an option outside its range.
        ModelError: no trainable parameter, or one that cannot take small steps.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}; give a torch.nn.Module, e.g. result.model")
    _check_numbers(options)
    if options.norms not in ("frozen", "reestimated"):
        raise OptionError(f"norms={options.norms!r}; it is one of 'frozen', 'reestimated'")
    if options.schedule not in ("cosine", "constant"):
        raise OptionError(f"schedule={options.schedule!r}; it is one of 'cosine', 'constant'")
    if isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(
            f"optimizer is a {type(optimizer).__name__} that exists already, over parameters of its own; "
            "give what makes one, e.g. optimizer=functools.partial(torch.optim.SGD, momentum=0.9)"
        )
    for keyword, function in (("optimizer", optimizer), ("on_epoch", on_epoch)):
        if function is not None and not callable(function):
            raise OptionError(f"{keyword} is a {type(function).__name__}; give a function, or leave it out")
    _check_parameters(model)


def _check_numbers(options: Options) -> None:
    for keyword, least in (("epochs", 1), ("seed", None)):
        count = getattr(options, keyword)
        if not isinstance(count, int) or isinstance(count, bool) or (least is not None and count < least):
            raise OptionError(
                f"{keyword}={count!r}; give a whole number" + ("" if least is None else f" from {least}")
            )
    for keyword, value, may_be_zero in (
        ("lr", options.lr, False),
        ("weight_decay", options.weight_decay, True),
        ("clip_norm", math.inf if options.clip_norm is None else options.clip_norm, False),
    ):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        limit = math.inf if keyword == "clip_norm" else 1e9
        if not is_number or not (0 <= value <= limit) or (value == 0 and not may_be_zero):
            kind = "a number from 0" if may_be_zero else "a positive number"
            cure = ", or None for no clipping" if keyword == "clip_norm" else ""
            raise OptionError(f"{keyword}={value!r}; give {kind}{cure}")


def _check_parameters(model: nn.Module) -> None:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ModelError(
            f"no parameter of {type(model).__name__} is trainable; call model.requires_grad_(), or set "
            "requires_grad on those to train"
        )
    for name, parameter in trainable.items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            short = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} is {short}, in which small steps round to nothing; train "
                "copy.deepcopy(model).float() on float32 inputs, and turn what comes out back with "
                f".to({parameter.dtype})"
            )


@contextlib.contextmanager
def seeded_apart(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from a seed while the context lasts; then the caller's generators are put back.

    Args:
        model: the generators of its devices are seeded, too.
        seed: that they start from.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        _seed_all(model, seed)
        yield


def _seed_all(model: nn.Module, seed: int) -> None:
    """Seeds the CPU and the devices of the model; ``torch.manual_seed`` would seed every device."""
    torch.default_generator.manual_seed(seed)
    for device in {p.device for p in model.parameters() if p.device.type == "cuda"}:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def train(
    model: nn.Module,
    data: TrainingData,
    objective: Objective,
    options: Options,
    *,
    optimizer: MakeOptimizer | None,
    on_epoch: OnEpoch | None,
    run_dir: str | os.PathLike[str] | None,
    in_place: bool,
    progress: bool,
) -> nn.Module:
    """Trains a model, and gives back the best state that held-out batches have seen.

    Args:
        model: checked by ``check_training``; changed only with ``in_place``.
        data: its batches.
        objective: what training is for.
        options: how it goes.
        optimizer: called as ``optimizer(parameters, lr=, weight_decay=)``; None for AdamW.
        on_epoch: told every epoch.
        run_dir: where the run is kept; None for nowhere.
        in_place: train the caller's own module.
        progress: show bars.

    Returns:
        The trained copy, or the caller's module; modes and ``requires_grad`` as they came in.

    Raises:
        NonFiniteError: the held-out loss of the incoming model is no number.
        GradientError: no gradient reaches a trainable parameter.
        StudyError: ``run_dir`` holds another run.
    """
    if in_place and any(tensor.is_inference() for _, tensor in tensors_of(model)):
        raise ModelError(
            "the model was made under torch.inference_mode, so it cannot be trained in place; "
            "build it outside, or leave in_place out"
        )
    if data.is_shared:
        _LOG.warning("%s: there is one batch only; it is trained on and judges as well", objective.name)
    working = model if in_place else copy_model(model)
    modes = {module: module.training for module in working.modules()}
    run = _TrainingRun(working, data, objective, options, optimizer)
    try:
        checkpoint = None
        if run_dir is not None:
            checkpoint = Checkpoint(run_dir, _fingerprint(working, data, objective, options, optimizer))
        run.start(checkpoint)
        listeners = () if run_dir is None else (EventFile(Path(run_dir) / EVENTS_FILE),)
        phases = Phases(shown=progress, listeners=listeners)
        with phases.phase(objective.name, total=options.epochs * len(data.fit)) as advance:
            advance(run.step)
            while len(run.history) < options.epochs:
                epoch = run.train_epoch(advance)
                if epoch is None:
                    break
                if checkpoint is not None:
                    checkpoint.store(run.state(), epoch.epoch)
                _tell(phases, objective.name, epoch)
                if on_epoch is not None:
                    on_epoch(epoch)
                if not math.isfinite(epoch.held_out_loss):
                    break
    finally:
        # Also after an error or Ctrl-C the caller's module holds the best state, not the last one.
        run.finish(modes)
    if not any(epoch.is_best for epoch in run.history):
        _LOG.warning(
            "%s: no epoch had a lower held-out loss than what came in (%.4g), which is returned unchanged; "
            "try a lower lr or more data",
            objective.name,
            run.before,
        )
    return working


def _tell(phases: Phases, name: str, epoch: Epoch) -> None:
    """Tells listeners of an epoch."""
    phases.emit(
        "epoch",
        phase=name,
        epoch=epoch.epoch,
        training_loss=epoch.training_loss,
        held_out_loss=epoch.held_out_loss,
        held_out_before=epoch.held_out_before,
        learning_rate=epoch.learning_rate,
        is_best=epoch.is_best,
    )


class _TrainingRun:
    """A training run: the model, its optimiser, and the best state so far."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        objective: Objective,
        options: Options,
        optimizer: MakeOptimizer | None,
    ) -> None:
        self._model = model
        self._data = data
        self._objective = objective
        self._options = options
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._grads = [p.grad for p in self._parameters]
        self._optimizer = _make_optimizer(optimizer, self._parameters, options)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._total = options.epochs * len(data.fit)
        self._best: Mapping[str, Tensor] = snapshot(model)
        self._best_loss = math.inf
        self.before = math.inf
        self.history: list[Epoch] = []
        self.step = 0

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Judges the model that came in, or goes on where a run stopped."""
        state = None if checkpoint is None else checkpoint.load()
        if state is None:
            self.before = self._best_loss = self._judge()
            if not math.isfinite(self.before):
                raise NonFiniteError(
                    f"the held-out loss of the model that came in is {self.before}; look at the data, at the "
                    "weights and at the loss first"
                )
            return
        restore_(self._model, state.model)
        self._best = {name: tensor.to(_device_of(self._model)) for name, tensor in state.best.items()}
        load_optimizer_(self._optimizer, state.tensors, state.numbers)
        self.before, self._best_loss = (_number_of(state.facts, key) for key in ("before", "best_loss"))
        self.history = _epochs_of(state.facts)
        self.step = len(self.history) * len(self._data.fit)

    def train_epoch(self, advance: Callable[[int], None]) -> Epoch | None:
        """One epoch.

        Args:
            advance: told every step.

        Returns:
            What it did; None where it diverged.
        """
        epoch_number, begin = len(self.history) + 1, time.perf_counter()
        # Seeded for each epoch, so that a run that goes on draws what the killed one would have drawn.
        seed = (self._options.seed * 1_000_003 + epoch_number) % 2**63
        _seed_all(self._model, seed)
        self._set_training()
        total, n_samples = 0.0, 0
        for example in self._data.stream_fit(seed):
            loss = self._train_step(example)
            if not math.isfinite(loss):
                self._warn_diverged(epoch_number, "training", loss)
                return None
            total += loss * example.batch.n_samples
            n_samples += example.batch.n_samples
            advance(1)
        if self._options.norms == "reestimated":
            reestimate_(self._model, (example.batch for example in self._data.stream_fit(None)))
        held_out = self._judge()
        is_best = held_out < self._best_loss
        if is_best:
            self._best, self._best_loss = snapshot(self._model), held_out
        epoch = Epoch(
            epoch=epoch_number,
            training_loss=total / max(n_samples, 1),
            held_out_loss=held_out,
            held_out_before=self.before,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]),
            is_best=is_best,
            seconds=time.perf_counter() - begin,
        )
        self.history.append(epoch)
        self._log(epoch)
        return epoch

    def state(self) -> TrainingState:
        """Where the run stands."""
        tensors, numbers = optimizer_state(self._optimizer)
        # One object where the last epoch is the best, so that it is written once.
        model = self._best if self.history[-1].is_best else snapshot(self._model)
        history: list[Json] = [asdict(epoch) for epoch in self.history]
        return TrainingState(
            model=model,
            best=self._best,
            tensors=tensors,
            numbers=numbers,
            facts={"before": self.before, "best_loss": self._best_loss, "history": history},
        )

    def finish(self, modes: Mapping[nn.Module, bool]) -> None:
        """Puts the best state and the modes in; gradients are as they came."""
        restore_(self._model, self._best)
        for module, training in modes.items():
            module.training = training
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad

    def _set_training(self) -> None:
        """Train mode; frozen norms stay in eval mode."""
        # Not chained: train() methods that users override often forget to return the module.
        self._model.train()
        if self._options.norms == "frozen":
            for norm in running_norms(self._model):
                norm.training = False

    def _train_step(self, example: Example) -> float:
        """One step; the loss before it. A loss that is no number leaves the weights alone."""
        with torch.enable_grad():
            loss = self._objective.loss(self._model, example)
        if not loss.requires_grad:
            raise GradientError(self._no_gradient())
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if all(parameter.grad is None for parameter in self._parameters):
            raise GradientError(self._no_gradient())
        if self._options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._options.clip_norm)
        factor = _share_of_rate(self.step, self._total, self._options.schedule)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self.step += 1
        return value

    def _no_gradient(self) -> str:
        return (
            f"{self._objective.name}: no gradient reaches a trainable parameter from the loss; compute it "
            "with torch operations on the outputs, without detach, argmax or no_grad on the way"
        )

    def _judge(self) -> float:
        """Mean held-out loss per sample."""
        total, n_samples = 0.0, 0
        with eval_mode(self._model), torch.no_grad():
            for example in self._data.stream_held_out():
                total += self._objective.judge(self._model, example) * example.batch.n_samples
                n_samples += example.batch.n_samples
        return total / max(n_samples, 1)

    def _log(self, epoch: Epoch) -> None:
        _LOG.info(
            "%s: epoch %d of %d: training loss %.4g, held-out loss %.4g (%.4g before), lr %.3g, %.1f s%s",
            self._objective.name,
            epoch.epoch,
            self._options.epochs,
            epoch.training_loss,
            epoch.held_out_loss,
            epoch.held_out_before,
            epoch.learning_rate,
            epoch.seconds,
            ", best so far" if epoch.is_best else "",
        )
        if not math.isfinite(epoch.held_out_loss):
            self._warn_diverged(epoch.epoch, "held-out", epoch.held_out_loss)

    def _warn_diverged(self, epoch_number: int, which: str, loss: float) -> None:
        _LOG.warning(
            "%s: the %s loss of epoch %d is %s; training stopped, and the state with the lowest held-out "
            "loss so far (%.4g) is returned; lower lr",
            self._objective.name,
            which,
            epoch_number,
            loss,
            self._best_loss,
        )


def _make_optimizer(
    optimizer: MakeOptimizer | None, parameters: list[nn.Parameter], options: Options
) -> torch.optim.Optimizer:
    """The optimiser over these parameters: the caller's, or AdamW."""
    if optimizer is None:
        return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    try:
        made: object = optimizer(parameters, lr=options.lr, weight_decay=options.weight_decay)
    except TypeError as error:
        raise OptionError(
            f"optimizer cannot be called as optimizer(parameters, lr=, weight_decay=): {error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(f"optimizer made a {type(made).__name__}; make a torch.optim.Optimizer of it")
    return made


def _share_of_rate(step: int, total: int, schedule: ScheduleChoice) -> float:
    """Share of the full learning rate: a short rise, then half a cosine down to zero, or constant."""
    rise = int(_WARM_UP * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _fingerprint(
    model: nn.Module,
    data: TrainingData,
    objective: Objective,
    options: Options,
    optimizer: MakeOptimizer | None,
) -> dict[str, str]:
    """What a run directory is tied to, by topic."""
    kinds = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    options_text = repr((options, describe(optimizer)))
    return {
        "kind": objective.name,
        "weights": digest_tensors(dict(tensors_of(model))),
        "modules": hashlib.sha256(repr((kinds, trained)).encode()).hexdigest(),
        "data": data.fingerprint,
        "options": hashlib.sha256(options_text.encode()).hexdigest(),
        **objective.facts,
    }


def _number_of(facts: Mapping[str, Json], key: str) -> float:
    value = facts.get(key)
    if not isinstance(value, int | float):
        raise FileError(
            f"recover-state.json: {key} is {value!r}, no number; delete the directory and run again"
        )
    return float(value)


def _epochs_of(facts: Mapping[str, Json]) -> list[Epoch]:
    history = facts.get("history")
    epochs = []
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict):
            numbers = {key: _number_of(entry, key) for key in entry if key not in ("epoch", "is_best")}
            epoch, is_best = int(_number_of(entry, "epoch")), entry.get("is_best") is True
            epochs.append(Epoch(epoch=epoch, is_best=is_best, **numbers))
    return epochs
