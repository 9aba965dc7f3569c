# SPDX-License-Identifier: Apache-2.0
"""The measurements behind a study, each kept on disk as it is done.

They are capture, gradients, moments, curves and anchors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from slimrank._names import listed
from slimrank.calibrate import GradientOptions, collect_gradients, fit_together, layers_that_count
from slimrank.capture import DEPTHWISE, SKIPPED, check_compressible, find_blocks, find_norms
from slimrank.channels import freeze, read_groups, try_groups, without_layers
from slimrank.cost import block_width, matrix_tensor, rows_available
from slimrank.forward import Batch, few_samples
from slimrank.linalg import Moments
from slimrank.measured import GRADIENT_FILE
from slimrank.methods import possible_curves
from slimrank.plan import slimmable_groups, structure_of
from slimrank.records import (
    PRUNING,
    BlockDamage,
    ChannelMap,
    Curve,
    GroupCurve,
    LayerSpec,
    Note,
    replaces_groups,
)
from slimrank.survey._blocks import DamageAt, Known, block_notes, measure_blocks
from slimrank.survey._effort import effort_row
from slimrank.survey._estimate import tell_estimate
from slimrank.survey._group_memory import pass_notes, with_room_for_groups
from slimrank.survey._groups import GroupSurvey, measure_groups, stored_groups
from slimrank.survey._layers import layer_chunks, measure_layers, methods_of, stored_curves
from slimrank.survey._session import Run, Session
from slimrank.tensors import read_tensors, write_tensors

# Rows per column below which the user is told to give more samples: such second moments are poor estimates.
_FEW_ROWS = 10
# Samples that tell whether outputs depend on a layer that no gradient reaches.
_SAMPLES_TO_DISTURB = 4
# Reasons of layers and groups that are left alone.
_UNREACHED = (
    "no gradient of the chosen outputs reaches it (or they are saturated); choose others with outputs=, or "
    "pass fisher=False"
)
_STILL = (
    "its inputs do not vary beyond rounding on these samples (a dead branch, or a network whose values fade "
    "away), so nothing seems lost at any rank"
)
_STILL_GROUP = (
    "what reads these channels sees them vary by no more than rounding on these samples, so nothing seems "
    "lost at any width"
)
_NO_SAMPLE = "no calibration sample reached it"
_DATA_FREE = Note(
    where="study",
    text="data-free: factors come from the weights alone and damage is the share of each weight's energy "
    "that is lost; it is not anchored in measured divergences. Channels go by the norms of the weights that "
    "read them, blocks stay",
    is_warning=True,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        layers: as captured, less those that turned out to be out of reach.
        channels: groups and blocks of the model.
        curves: cost and damage by rank.
        group_curves: damage by the channels that stay.
        block_damages: damage of blocks that go.
        grams: output-gradient moments by layer.
        notes: what the user should know.
    """

    layers: tuple[LayerSpec, ...]
    channels: ChannelMap
    curves: tuple[Curve, ...]
    group_curves: tuple[GroupCurve, ...]
    block_damages: tuple[BlockDamage, ...]
    grams: Mapping[str, Tensor]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradients:
    """What is known of output gradients.

    Attributes:
        grams: (C_out, C_out) float32 second moments by layer, or the diagonal; empty without data or without
            ``fisher``.
        blind: layers that the outputs depend on, though no gradient reaches them: inputs alone weigh errors.
    """

    grams: Mapping[str, Tensor]
    blind: frozenset[str] = frozenset()

    def reach(self, name: str) -> bool:
        """Whether anything tells what a change of a layer would do."""
        return name in self.blind or (name in self.grams and bool(self.grams[name].any()))

    def notes(self, n_layers: int) -> list[Note]:
        """What the user should know of layers without gradients, of so many."""
        if not self.blind:
            return []
        text = (
            f"no gradient reaches {len(self.blind)} of {n_layers} layers ({listed(sorted(self.blind), 4)}), "
            "though the outputs depend on them (values are detached behind them, or an operation of the "
            "model gives no gradient back); their errors are weighed by their inputs alone"
        )
        return [Note(where="gradients", text=text)]


def gather_gradients(session: Session, names: Sequence[str], run: Run) -> Gradients:
    """Output-gradient moments of layers; from disk where an earlier run left them.

    Args:
        session: model, data and options.
        names: layers.
        run: progress, and where to keep them.

    Returns:
        The moments, and layers that go without.
    """
    options = session.options
    if options.data_free or not options.fisher or not names:
        return Gradients(grams={})
    grams = _grams(session, names, run)
    unreached = [name for name in names if name not in grams or not bool(grams[name].any())]
    if not unreached:
        return Gradients(grams=grams)
    feed = session.feed
    few = next(iter(feed.stream(feed.fit[: min(feed.micro_size, _SAMPLES_TO_DISTURB) or 1])))
    blind = layers_that_count(session.original, few, unreached, session.outputs)
    return Gradients(grams={n: gram for n, gram in grams.items() if n not in blind}, blind=blind)


def _grams(session: Session, names: Sequence[str], run: Run) -> Mapping[str, Tensor]:
    """Of the layers that gradients reach, zeros and all."""
    options, store = session.options, run.store
    if store is not None and store.has(GRADIENT_FILE):
        device, wanted = next(session.original.parameters()).device, set(names)
        stored = read_tensors(store.root / GRADIENT_FILE)
        return {name: gram.to(device) for name, gram in stored.items() if name in wanted}
    specs = [spec for spec in session.captured.layers if spec.name in set(names)]
    gradient_options = GradientOptions(
        likelihood=session.likelihood,
        outputs=session.outputs,
        draws=options.draws,
        in_full=effort_row(options).samples_drawn_in_full,
    )
    with run.phases.phase("gradients", len(session.feed.fit)) as advance:
        grams = collect_gradients(
            session.original, session.feed, specs, gradient_options, seed=options.seed, advance=advance
        )
    if run.kept_in is not None:
        write_tensors(run.kept_in.path_of(GRADIENT_FILE), grams)
    return grams


def measure(
    session: Session, run: Run, damage_at: DamageAt, check: Callable[[Known], object] | None = None
) -> Measured:
    """Curves of every compressible layer, group and block.

    Args:
        session: model, data and options.
        run: progress, and where measurements are kept and found again.
        damage_at: what plans without blocks cost, which tells whether blocks are worth measuring.
        check: called before anything is measured, with all that may come out, of no damage; what it raises
            ends the study.

    Returns:
        Layers, curves, gradients and notes.
    """
    options = session.options
    channels = _channels_of(session, run)
    if check is not None:
        check(_possible(session, channels))
    session = with_room_for_groups(session, channels)
    tell_estimate(session, channels, run)
    layers = list(session.captured.layers)
    readers = {
        spec.name
        for spec in layers
        if (tensor := matrix_tensor(spec, channels)) is not None
        and any(axis.role == "input" for axis in tensor.axes)
    }
    # A recurrent matrix reads as well, and its gates are those of the input matrix.
    readers |= {spec.name for spec in layers if f"{spec.name}.weight_hh_l0" in channels.tensors}
    names = [spec.name for spec in layers if spec.methods or (spec.name in readers and spec.has_matrix)]
    gradients = gather_gradients(session, names, run)
    grams = gradients.grams
    if options.fisher and not options.data_free:
        layers = [_unless_unreached(spec, gradients) for spec in layers]
        channels = _without_unreached(channels, names, gradients)
    check_compressible(_with_groups(layers, channels), session.original)
    survey = GroupSurvey(
        session=session,
        layers={spec.name: spec for spec in layers},
        channels=channels,
        grams=grams,
        blind=gradients.blind,
    )
    moments = _moments_of_all(survey, layers, run)
    curves = measure_layers(session, layers, grams, moments, run)
    notes = [_DATA_FREE] if options.data_free else _row_notes(session, layers)
    layers = [
        spec if index in curves or not spec.methods else replace(spec, methods=(), reason=_NO_SAMPLE)
        for index, spec in enumerate(layers)
    ]
    survey = replace(survey, layers={spec.name: spec for spec in layers})
    group_curves = measure_groups(survey, moments, run)
    moments.clear()
    pairs = tuple(curve for index in sorted(curves) for curve in curves[index])
    known = Known(
        structure=structure_of(_with_groups(layers, channels), channels),
        before=session.captured.before,
        has_bias=options.has_bias,
        curves=pairs,
        group_curves=group_curves,
        methods=options.methods,
    )
    shown = _with_groups(layers, channels)
    # Their methods name channels only, and no longer say why.
    notes += [
        Note(where=spec.name, text=f"only its channels may go: {_UNREACHED}")
        for spec, with_group in zip(layers, shown, strict=True)
        if spec.reason == _UNREACHED and with_group.reason is None
    ]
    block_damages = measure_blocks(survey, known, damage_at, run)
    return Measured(
        layers=tuple(shown),
        channels=channels,
        curves=pairs,
        group_curves=group_curves,
        block_damages=block_damages,
        grams=grams,
        notes=(
            *notes,
            *gradients.notes(len(names)),
            *_still_notes(pairs, group_curves, channels),
            *survey.notes(),
            *block_notes(survey),
            *pass_notes(survey),
        ),
    )


def _still_notes(
    curves: Sequence[Curve], group_curves: Sequence[GroupCurve], channels: ChannelMap
) -> list[Note]:
    """One on each layer whose inputs hardly vary, and on each group that others read of which that is true.

    With inputs that are constant up to rounding, nothing is lost at any size.
    """
    errors: dict[str, float] = {}
    for curve in curves:
        errors[curve.layer] = max(errors.get(curve.layer, 0.0), float(curve.error.max(initial=0)))
    still = {name for name, error in errors.items() if error == 0}
    return [
        *(Note(where=name, text=_STILL) for name in errors if name in still),
        *(
            Note(where=curve.group, text=_STILL_GROUP)
            for curve in group_curves
            if len(curve.error)
            and not curve.error.any()
            and still.isdisjoint(channels.groups[curve.group].consumers)
        ),
    ]


def _moments_of_all(survey: GroupSurvey, layers: Sequence[LayerSpec], run: Run) -> dict[str, Moments]:
    """Input moments of all that is left to measure, from one pass; none where they cannot be held at once."""
    session = survey.session
    if session.options.data_free:
        return {}
    is_stored, groups = stored_curves(layers, run), stored_groups(survey, run)
    needed = {index: spec for index, spec in enumerate(layers) if spec.methods and index not in is_stored}
    for index, group in survey.slimmable.items():
        if index not in groups:
            needed |= survey.layers_needed(group)
    if not needed or not fit_together(needed.values(), session.budgets.layer_moments):
        return {}
    chunk = next(layer_chunks(session, dict(sorted(needed.items())), run.collecting(session)))
    return dict(chunk.moments)


def _channels_of(session: Session, run: Run) -> ChannelMap:
    """Groups and blocks of a model, each tried; those that a skipped layer is part of are frozen."""
    if not any(replaces_groups(method) for method in session.options.methods):
        return ChannelMap()
    model, captured = session.original, session.captured
    skipped = [spec.name for spec in captured.layers if spec.reason == SKIPPED]
    with run.phases.phase("channels", 3) as advance:
        channels = read_groups(model, captured.sample, captured.layers)
        advance(1)
        channels = try_groups(model, _few_samples(session), without_layers(channels, skipped))
        advance(1)
        blocks = find_blocks(model, captured.sample, [spec.name for spec in captured.layers])
        advance(1)
    readers = {name for group in channels.groups.values() if group.reason is None for name in group.consumers}
    without_bias = [spec.name for spec in captured.layers if spec.name in readers and not spec.has_bias]
    norms = find_norms(model, captured.sample, without_bias) if without_bias else {}
    return without_layers(replace(channels, blocks=blocks, norms=norms), skipped)


def _possible(session: Session, channels: ChannelMap) -> Known:
    """All that may be measured: every rank of every layer, every width of every group, each block."""
    layers, options = session.captured.layers, session.options
    groups = slimmable_groups(channels)
    return Known(
        structure=structure_of(_with_groups(layers, channels), channels),
        before=session.captured.before,
        has_bias=options.has_bias,
        curves=tuple(
            curve
            for spec in layers
            for curve in possible_curves(spec, methods_of(session, spec), has_bias=options.has_bias)
        ),
        group_curves=tuple(
            GroupCurve(
                group=name,
                order=tuple(range(group.units)),
                kept=np.arange(1, group.units, dtype=np.int64),
                error=np.zeros(group.units - 1),
                damage=np.zeros(group.units - 1),
            )
            for name, group in groups.items()
        ),
        methods=options.methods,
        block_damages=tuple(BlockDamage(block=name, damage=0.0) for name in channels.blocks),
    )


def _few_samples(session: Session) -> Batch:
    """Two samples, or more where the model asks for more: code which works for a single one fails here."""
    feed = session.feed
    if feed.micro_size:
        return next(iter(replace(feed, micro_size=max(feed.micro_size, 2)).stream(feed.fit[:2])))
    whole = next(iter(feed.stream(feed.fit[:1])))
    return few_samples(session.original, replace(whole, is_whole=False))


def _without_unreached(channels: ChannelMap, names: Sequence[str], gradients: Gradients) -> ChannelMap:
    """The map without the groups of which nothing reaches any layer: to lose them would seem free."""
    reached = {name for name in names if gradients.reach(name)}
    asked = set(names)
    reasons = {}
    for group in channels.groups.values():
        layers = asked.intersection((*group.producers, *group.consumers))
        if group.reason is None and layers and not layers & reached:
            reasons[group.name] = _UNREACHED
    return freeze(channels, reasons)


def _with_groups(layers: Sequence[LayerSpec], channels: ChannelMap) -> list[LayerSpec]:
    """Layers; where channels that one makes can go, its methods say so, and a depthwise one tells why not."""
    makers = {name for group in channels.groups.values() if group.reason is None for name in group.producers}
    frozen = {
        name: f"its channels stay: {group.reason}"
        for group in reversed(tuple(channels.groups.values()))
        if group.reason is not None
        for name in group.producers
    }
    return [
        replace(spec, methods=(*spec.methods, PRUNING), reason=None)
        if spec.name in makers
        # Nothing but its channels could go, so what holds these is the whole answer.
        else replace(spec, reason=frozen[spec.name])
        if spec.reason == DEPTHWISE and spec.name in frozen
        else spec
        for spec in layers
    ]


def _unless_unreached(spec: LayerSpec, gradients: Gradients) -> LayerSpec:
    """The layer; without methods where the outputs do not depend on it: to change it would seem free."""
    if not spec.methods or gradients.reach(spec.name):
        return spec
    return replace(spec, methods=(), reason=_UNREACHED)


def _row_notes(session: Session, layers: Sequence[LayerSpec]) -> list[Note]:
    n_fit = len(session.feed.fit)
    measured = [spec for spec in layers if spec.methods]
    poor = [spec.name for spec in measured if rows_available(spec, n_fit) < _FEW_ROWS * block_width(spec)]
    if not poor:
        return []
    return [
        Note(
            where="calibrate",
            text=f"{n_fit} samples give fewer than {_FEW_ROWS} rows per column for {len(poor)} of "
            f"{len(measured)} layers ({listed(poor, 4)}); their fits lean towards the original weights. More "
            "samples help",
        )
    ]
