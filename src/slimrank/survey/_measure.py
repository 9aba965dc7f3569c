# SPDX-License-Identifier: Apache-2.0
"""The measurements behind a study, each kept on disk as it is done.

They are capture, gradients, moments, curves and anchors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from slimrank._names import listed
from slimrank._progress import Phases
from slimrank.calibrate import GradientOptions, collect_gradients
from slimrank.capture import SKIPPED, check_compressible, find_blocks, find_norms
from slimrank.channels import freeze, read_groups, try_groups, without_layers
from slimrank.cost import row_width, rows_available
from slimrank.forward import OutputChoice
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
from slimrank.store import Store
from slimrank.survey._blocks import measure_blocks
from slimrank.survey._curve_files import read_layer
from slimrank.survey._groups import GroupSurvey, measure_groups
from slimrank.survey._layers import data_curves, weight_curves
from slimrank.survey._options import Options
from slimrank.survey._session import Opened

_FEW_ROWS = 10
_UNREACHED = (
    "no gradient of the chosen outputs reaches it (or they are saturated); choose others with outputs=, or "
    "pass fisher=False"
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


def gather_gradients(
    opened: Opened,
    names: Sequence[str],
    outputs: OutputChoice,
    options: Options,
    phases: Phases,
    store: Store | None,
) -> Mapping[str, Tensor]:
    """Output-gradient moments of layers; from disk where an earlier run left them.

    Args:
        opened: model and data.
        names: layers.
        outputs: which outputs matter.
        options: of the study.
        phases: progress.
        store: where to keep them; None for nowhere.

    Returns:
        (C_out, C_out) float32 by layer name.
    """
    if options.data_free or not options.fisher or not names:
        return {}
    if store is not None and store.has("gradients.safetensors"):
        device = next(opened.original.parameters()).device
        return {name: gram.to(device) for name, gram in store.read_tensors("gradients.safetensors").items()}
    specs = [spec for spec in opened.captured.layers if spec.name in set(names)]
    gradient_options = GradientOptions(likelihood=opened.likelihood, outputs=outputs, draws=options.draws)
    with phases.phase("gradients", len(opened.feed.fit)) as advance:
        grams = collect_gradients(
            opened.original, opened.feed, specs, gradient_options, seed=options.seed, advance=advance
        )
    if store is not None:
        store.write_tensors("gradients.safetensors", grams)
    return grams


def measure(
    opened: Opened,
    outputs: OutputChoice,
    options: Options,
    phases: Phases,
    store: Store | None,
) -> Measured:
    """Curves of every compressible layer.

    Args:
        opened: model and data.
        outputs: which outputs matter.
        options: of the study.
        phases: progress.
        store: where measurements are kept and found again; None for nowhere.

    Returns:
        Layers, curves, gradients and notes.
    """
    channels = _channels_of(opened, options, phases)
    layers = list(opened.captured.layers)
    read = {
        tensor.name.removesuffix(".weight")
        for tensor in channels.tensors.values()
        if any(axis.role == "input" for axis in tensor.axes)
    }
    names = [spec.name for spec in layers if spec.methods or (spec.name in read and spec.has_matrix)]
    grams = gather_gradients(opened, names, outputs, options, phases, store)
    notes: list[Note] = []
    if options.fisher and not options.data_free:
        layers = [_unless_unreached(spec, grams) for spec in layers]
        channels = _without_unreached(channels, names, grams)
    check_compressible(_with_groups(layers, channels), opened.original)
    todo = {index: spec for index, spec in enumerate(layers) if spec.methods}
    curves: dict[int, tuple[Curve, ...]] = {}
    if store is not None:
        curves = {index: found for index, spec in todo.items() if (found := read_layer(store, index, spec))}
    rest = {index: spec for index, spec in todo.items() if index not in curves}
    if options.data_free:
        curves |= weight_curves(opened.original, rest, options, phases)
        notes.append(
            Note(
                where="study",
                text="data-free: factors come from the weights alone and damage is the share of "
                "each weight's energy that is lost; it is not anchored in measured divergences. Channels go "
                "by the norms of the weights that read them, blocks stay",
            )
        )
    else:
        curves |= data_curves(opened, outputs, options, phases, store, layers, rest, grams)
        notes += _row_notes(opened, todo)
    by_name = {spec.name: spec for spec in layers}
    survey = GroupSurvey(
        opened=opened, outputs=outputs, options=options, layers=by_name, channels=channels, grams=grams
    )
    group_curves = measure_groups(survey, phases, store)
    block_damages = measure_blocks(survey, phases, store)
    notes += survey.notes()
    flat = tuple(curve for index in sorted(curves) for curve in curves[index])
    return Measured(
        layers=tuple(_with_groups(layers, channels)),
        channels=channels,
        curves=flat,
        group_curves=group_curves,
        block_damages=block_damages,
        grams=grams,
        notes=tuple(notes),
    )


def _channels_of(opened: Opened, options: Options, phases: Phases) -> ChannelMap:
    """Groups and blocks of a model, each tried; those that a skipped layer is part of are frozen."""
    if not any(replaces_groups(method) for method in options.methods):
        return ChannelMap()
    captured, feed = opened.captured, opened.feed
    skipped = [spec.name for spec in captured.layers if spec.reason == SKIPPED]
    with phases.phase("channels", 3) as advance:
        found = read_groups(opened.original, captured.sample, captured.layers)
        advance(1)
        # Two samples: code that fits one sample only shows itself.
        several = next(iter(replace(feed, micro=max(feed.micro, 2)).stream(feed.fit[:2])))
        found = try_groups(opened.original, several, without_layers(found, skipped))
        advance(1)
        blocks = find_blocks(opened.original, captured.sample, [spec.name for spec in captured.layers])
        advance(1)
    read = {name for group in found.groups.values() if group.reason is None for name in group.consumers}
    bare = [spec.name for spec in captured.layers if spec.name in read and not spec.has_bias]
    norms = find_norms(opened.original, captured.sample, bare) if bare else {}
    return without_layers(replace(found, blocks=blocks, norms=norms), skipped)


def _without_unreached(channels: ChannelMap, names: Sequence[str], grams: Mapping[str, Tensor]) -> ChannelMap:
    """The map without the groups of which no gradient reaches any layer: to lose them would seem free."""
    reached = {name for name in names if name in grams and bool(grams[name].any())}
    asked = set(names)
    reasons = {}
    for group in channels.groups.values():
        own = asked.intersection((*group.producers, *group.consumers))
        if group.reason is None and own and not own & reached:
            reasons[group.name] = _UNREACHED
    return freeze(channels, reasons)


def _with_groups(layers: Sequence[LayerSpec], channels: ChannelMap) -> list[LayerSpec]:
    """Layers, those that make channels which can go told so."""
    makers = {name for group in channels.groups.values() if group.reason is None for name in group.producers}
    return [
        replace(spec, methods=(*spec.methods, PRUNING), reason=None) if spec.name in makers else spec
        for spec in layers
    ]


def _unless_unreached(spec: LayerSpec, grams: Mapping[str, Tensor]) -> LayerSpec:
    if not spec.methods or (spec.name in grams and bool(grams[spec.name].any())):
        return spec
    return replace(spec, methods=(), reason=_UNREACHED)


def _row_notes(opened: Opened, todo: Mapping[int, LayerSpec]) -> list[Note]:
    n_fit = len(opened.feed.fit)
    poor = [spec.name for spec in todo.values() if rows_available(spec, n_fit) < _FEW_ROWS * row_width(spec)]
    if not poor:
        return []
    return [
        Note(
            where="calibrate",
            text=f"{n_fit} samples give fewer than {_FEW_ROWS} rows per column for {len(poor)} of "
            f"{len(todo)} layers ({listed(poor, 4)}); their fits lean towards the original weights. More "
            "samples help",
        )
    ]
