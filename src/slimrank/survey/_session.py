# SPDX-License-Identifier: Apache-2.0
"""The session: a model and its data, read and checked, and what was asked of them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from slimrank._errors import NonFiniteError, UnknownNameError
from slimrank._names import nearest
from slimrank._progress import Listener, Overall, Phases
from slimrank.calibrate import (
    Collecting,
    Feed,
    Likelihood,
    OwnLossFn,
    check_loss,
    evenly_spaced,
    first_batch,
    open_feed,
    read_likelihood,
    reference_outputs,
)
from slimrank.capture import SKIPPED, Captured, capture
from slimrank.cost import SAMPLING, MemoryBudgets
from slimrank.files import Store
from slimrank.fitting import Seen
from slimrank.forward import Batch, OutputChoice, Picked, alive_bytes, check_outputs
from slimrank.measured import Options
from slimrank.peaks import PeakProfile
from slimrank.records import LayerSpec, Note
from slimrank.surgery import copy_model, quiet_copy
from slimrank.survey._folded import folded_copy
from slimrank.survey._memory_need import MemoryNeeds, MemoryOption, check_needs, memory_of, needs_of
from slimrank.survey._skip import CallersModel

# Samples that tell how outputs are read: signs of classes show on some dozens, and less would mean numbers.
_SAMPLES_TO_READ = 64

Inputs = Callable[[object], object] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSource:
    """Data as the caller gave them, not read yet.

    Attributes:
        batches: re-iterable.
        inputs: turns what the loader yields into inputs of the model; None for as it is.
        outputs: which outputs matter.
        loss: the caller's, of outputs and the original's; None for divergences.
    """

    batches: Iterable[object]
    inputs: Inputs = None
    outputs: OutputChoice = None
    loss: OwnLossFn | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """A model, its data and what was asked: what measuring, fitting and verifying draw on.

    A study that was read from disk lacks it until it is given a model.

    Attributes:
        original: a private copy in eval mode, as the model was when it was opened.
        modes: training flag by module name, of the caller's model.
        trainable: requires_grad by parameter name, of the caller's model.
        captured: its layers.
        feed: the samples.
        likelihood: how outputs are read.
        outputs: which outputs matter.
        options: of the study.
        notes: what the user should know of model and data.
        needs: what the model and its data take beside the model.
        memory: bytes that a run may take beside the model, as the caller gave them; no number depends on it.
        budgets: what that leaves for all that can be cut.
        seen: what forwards of the original show builds beside it.
        progress: whether later work shows bars.
        listeners: each is called with every event of later work.
        run_dir: where fitted layers are kept, so that a killed run goes on; None for nowhere.
        fingerprint: ties what is kept there to structure, weights, inputs and options; empty for none.
        callers: the caller's model, by whose modules layers may be named.
        profiles: what is alive where in a forward pass, once a plan asked for it.
        overall: how far the call is that later work is part of; None where it stands alone.
    """

    original: nn.Module
    modes: Mapping[str, bool]
    trainable: Mapping[str, bool]
    captured: Captured
    feed: Feed
    likelihood: Likelihood
    outputs: OutputChoice
    options: Options
    notes: tuple[Note, ...]
    needs: MemoryNeeds
    memory: int | None
    budgets: MemoryBudgets
    seen: Seen
    progress: bool = False
    listeners: tuple[Listener, ...] = ()
    run_dir: Path | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    callers: CallersModel = field(default_factory=CallersModel)
    profiles: list[PeakProfile] = field(default_factory=list)
    overall: Overall | None = None

    def phases(self, *, shown: bool | None = None) -> Phases:
        """Phases of one piece of later work.

        Args:
            shown: whether bars are shown; None for what the session says.
        """
        phases = Phases(shown=self.progress if shown is None else shown, listeners=self.listeners)
        phases.overall = self.overall
        return phases

    @property
    def damage_unit(self) -> str:
        """Of the damage that a study of this session predicts."""
        return "share of weight energy" if self.options.data_free else self.likelihood.unit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What one call reports to and writes to.

    Attributes:
        phases: progress.
        store: where measurements are found again; None for nowhere.
        is_read_only: nothing is kept there: what the store holds measured more than this call asks for.
    """

    phases: Phases
    store: Store | None = None
    is_read_only: bool = False

    @property
    def kept_in(self) -> Store | None:
        """Where measurements are kept; None for nowhere."""
        return None if self.is_read_only else self.store

    def collecting(self, session: Session) -> Collecting:
        """A phase for each pass over the fit samples that gathers moments."""
        return lambda: self.phases.phase("moments", len(session.feed.fit))


def restored_copy(session: Session) -> nn.Module:
    """A copy of the model as the caller gave it: weights, modes and requires_grad of that moment."""
    model = copy_model(session.original)
    for name, module in model.named_modules():
        module.training = session.modes[name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(session.trainable[name])
    return model


def open_session(
    model: nn.Module,
    source: DataSource,
    options: Options,
    phases: Phases,
    *,
    memory: MemoryOption = None,
    names: Collection[str] | None = None,
    fold: bool = True,
) -> Session:
    """Reads model and data; measures nothing yet.

    Args:
        model: the caller's; it is copied.
        source: the caller's data.
        options: of the study.
        phases: progress.
        memory: bytes that a run may take beside the model, as the caller gave them; None for the default.
        names: layers that will be fitted; None for all that a method replaces.
        fold: exchange layers that compute their kernel for plain ones, where the outputs stay what they are.

    Returns:
        The session, without progress, run directory and fingerprint.

    Raises:
        SlimrankError: whatever is wrong with model, data or options; see ``slimrank.study``.
    """
    check_outputs(source.outputs)
    check_loss(source.loss, options.weights)
    n_bytes = memory_of(memory)
    original = quiet_copy(model)
    batch = first_batch(source.batches, source.inputs, original)
    with phases.phase("capture", 1) as advance:
        original, folded = folded_copy(original, batch, options.skip) if fold else (original, ())
        captured = capture(
            original,
            batch,
            methods=options.methods,
            skip=options.skip,
            has_bias=options.has_bias,
            outputs=source.outputs,
        )
        _check_skip(options.skip, captured.layers)
        feed = open_feed(
            source.batches,
            source.inputs,
            original,
            can_split=captured.can_split,
            output_elements=captured.output_elements,
            holdout=options.holdout,
            seed=options.seed,
        )
        notes = [*folded, *captured.notes]
        if feed.n_samples == 1:
            notes.append(
                Note(where="calibrate", text="there is one sample only; it serves both fit and hold-out")
            )
        likelihood = likelihood_on(original, feed, source, options)
        notes += [Note(where="outputs", text=reason) for reason in likelihood.reasons]
        # The new model holds about as much as the original.
        alive = alive_bytes(original, captured.sample, [spec.name for spec in captured.layers])
        paused = {name: 2 * n_bytes for name, n_bytes in alive.items()}
        advance(1)
    needs = needs_of(captured, feed, likelihood, options, names, paused=paused)
    check_needs(needs.of_layers(), n_bytes)
    return Session(
        original=original,
        modes={name: module.training for name, module in model.named_modules()},
        trainable=_trainable(original, model),
        captured=captured,
        feed=feed,
        likelihood=likelihood,
        outputs=source.outputs,
        options=options,
        notes=tuple(notes),
        needs=needs,
        memory=n_bytes,
        budgets=needs.budgets(n_bytes),
        seen=Seen(original, [spec.name for spec in captured.layers if spec.has_matrix], paused),
        callers=CallersModel(model),
    )


def _trainable(original: nn.Module, model: nn.Module) -> dict[str, bool]:
    """``requires_grad`` by name; of a folded kernel, whether what it is computed from asks for it."""
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return {
        name: asked[name]
        if name in asked
        else any(p.requires_grad for p in model.get_submodule(name.rpartition(".")[0]).parameters())
        for name, _ in original.named_parameters()
    }


def _check_skip(skip: Sequence[str], layers: Sequence[LayerSpec]) -> None:
    """Refuses globs that match no layer."""
    for pattern in skip:
        if not any(spec.reason == SKIPPED and fnmatchcase(spec.name, pattern) for spec in layers):
            names = [spec.name for spec in layers]
            raise UnknownNameError(f"skip: {pattern!r} matches no layer; {nearest(pattern, names)}")


def likelihood_on(model: nn.Module, feed: Feed, source: DataSource, options: Options) -> Likelihood:
    """How outputs are read: told from held-out ones, and others where these are few; all of them are checked.

    Args:
        model: the original, in eval mode.
        feed: the samples.
        source: which outputs matter, and the caller's loss.
        options: likelihood and weights, as asked for.

    Returns:
        The likelihood.

    Raises:
        SlimrankError: outputs that hold nan or inf, or options that do not fit them.
    """
    references: list[Picked] = []
    batches: list[Batch] = []
    n_bytes = 0
    n_others = max(0, _SAMPLES_TO_READ - len(feed.held_out))
    indices = sorted({*feed.held_out, *evenly_spaced(feed.fit, n_others)})
    for batch in feed.stream(indices):
        is_first = not references
        (picked,) = reference_outputs(
            model, [batch], source.outputs, whole=is_first and source.loss is not None
        )
        for name, tensor in picked.items():
            if not tensor.isfinite().all():
                raise NonFiniteError(
                    f"output {name or 'of the model'} holds nan or inf on calibration samples; "
                    "pass outputs= that picks finite tensors, or check weights and data"
                )
        size = sum(tensor.numel() * tensor.element_size() for tensor in picked.values())
        if is_first or n_bytes + size <= SAMPLING.outputs:
            references.append(picked)
            batches.append(batch)
            n_bytes += size
    return read_likelihood(references, batches, options.likelihood, weights=options.weights, loss=source.loss)
