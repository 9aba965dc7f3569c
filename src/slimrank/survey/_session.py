# SPDX-License-Identifier: Apache-2.0
"""A model and its data, read and checked, and what goes with them through a study."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from slimrank._errors import NonFiniteError, UnknownNameError
from slimrank._names import nearest
from slimrank._progress import Phases
from slimrank.calibrate import Feed, Likelihood, first_batch, open_feed, read_likelihood, reference_outputs
from slimrank.capture import SKIPPED, Captured, capture
from slimrank.forward import OutputChoice
from slimrank.records import Note
from slimrank.surgery import copy_model, quiet_copy
from slimrank.survey._options import Options

_OUTPUT_BYTES = 250_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A model and its data, read but not measured.

    Attributes:
        original: a private copy in eval mode, as the model was when it was opened.
        modes: training flag by module name, of the caller's model.
        trainable: requires_grad by parameter name, of the caller's model.
        captured: its layers.
        feed: the samples.
        likelihood: how outputs are read.
        notes: what the user should know.
    """

    original: nn.Module
    modes: Mapping[str, bool]
    trainable: Mapping[str, bool]
    captured: Captured
    feed: Feed
    likelihood: Likelihood
    notes: tuple[Note, ...]


def restored_copy(opened: Opened) -> nn.Module:
    """A copy of the model as the caller gave it: weights, modes and requires_grad of that moment."""
    model = copy_model(opened.original)
    for name, module in model.named_modules():
        module.training = opened.modes[name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(opened.trainable[name])
    return model


def open_data(
    model: nn.Module,
    batches: Iterable[object],
    inputs: Callable[[object], object] | None,
    outputs: OutputChoice,
    options: Options,
    phases: Phases,
) -> Opened:
    """Reads model and data.

    Args:
        model: the caller's; it is copied.
        batches: re-iterable.
        inputs: turns what the loader yields into inputs of the model.
        outputs: which outputs matter.
        options: of the study.
        phases: progress.

    Returns:
        The opened study.

    Raises:
        SlimrankError: whatever is wrong with model, data or options; see ``slimrank.study``.
    """
    original = quiet_copy(model)
    batch = first_batch(batches, inputs, original)
    with phases.phase("capture", 1) as advance:
        captured = capture(
            original,
            batch,
            methods=options.methods,
            skip=options.skip,
            has_bias=options.has_bias,
            outputs=outputs,
        )
        for pattern in options.skip:
            if not any(
                spec.reason == SKIPPED and fnmatch.fnmatchcase(spec.name, pattern) for spec in captured.layers
            ):
                names = [spec.name for spec in captured.layers]
                raise UnknownNameError(
                    f"skip pattern {pattern!r} matches no layer; {nearest(pattern, names)}"
                )
        feed = open_feed(
            batches,
            inputs,
            original,
            can_split=captured.can_split,
            output_elements=captured.output_elements,
            holdout=options.holdout,
            seed=options.seed,
        )
        notes = list(captured.notes)
        if feed.n_samples == 1:
            notes.append(
                Note(where="calibrate", text="there is one sample only; it serves both fit and hold-out")
            )
        likelihood = read_likelihood(_some_outputs(original, feed, outputs), options.likelihood)
        notes.append(Note(where="outputs", text=likelihood.reason))
        advance(1)
    return Opened(
        original=original,
        modes={name: module.training for name, module in model.named_modules()},
        trainable={name: parameter.requires_grad for name, parameter in model.named_parameters()},
        captured=captured,
        feed=feed,
        likelihood=likelihood,
        notes=tuple(notes),
    )


def _some_outputs(model: nn.Module, feed: Feed, outputs: OutputChoice) -> list[Mapping[str, Tensor]]:
    """Held-out outputs, as many as are needed to read them; all are checked."""
    kept: list[Mapping[str, Tensor]] = []
    held = 0
    for batch in feed.stream(feed.held_out):
        (picked,) = reference_outputs(model, [batch], outputs)
        for name, tensor in picked.items():
            if not tensor.isfinite().all():
                raise NonFiniteError(
                    f"output {name or 'of the model'} holds nan or inf on held-out samples; "
                    "pass outputs= that picks finite tensors, or check weights and data"
                )
        size = sum(tensor.numel() * tensor.element_size() for tensor in picked.values())
        if not kept or held + size <= _OUTPUT_BYTES:
            kept.append(picked)
            held += size
    return kept


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """What applying needs and a study read from disk may lack."""

    opened: Opened
    outputs: OutputChoice
    options: Options
    progress: bool
    run_dir: Path | None
    fingerprint: Mapping[str, str]

    @property
    def damage_unit(self) -> str:
        """Of the damage that a study of this session predicts."""
        return "share of weight energy" if self.options.data_free else self.opened.likelihood.unit


Inputs = Callable[[object], object] | None
