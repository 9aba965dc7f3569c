# SPDX-License-Identifier: Apache-2.0
"""Curves of layers: cost and damage at every rank, chunk by chunk."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from slimrank._progress import Phases
from slimrank.calibrate import collect_moments
from slimrank.cost import keeps_rows, row_cap, row_width
from slimrank.forward import OutputChoice, Trimmer
from slimrank.linalg import Moments, ridge_of
from slimrank.methods import (
    Target,
    anchored_curves,
    layer_curves,
    metric_roots,
    relative_curves,
    weights_target,
)
from slimrank.records import Curve, LayerSpec
from slimrank.store import Store
from slimrank.surgery import dense_weight
from slimrank.survey._anchors import Anchors
from slimrank.survey._curve_files import write_layer
from slimrank.survey._options import Options
from slimrank.survey._session import Opened

_MOMENT_BYTES = 600_000_000


def data_curves(
    opened: Opened,
    outputs: OutputChoice,
    options: Options,
    phases: Phases,
    store: Store | None,
    layers: list[LayerSpec],
    rest: Mapping[int, LayerSpec],
    grams: Mapping[str, Tensor],
) -> dict[int, tuple[Curve, ...]]:
    """Curves of layers from data, by index; a layer that no sample reaches loses its methods (in place)."""
    curves: dict[int, tuple[Curve, ...]] = {}
    # For all layers, also those of an earlier run: where that stopped must not change how many samples serve.
    evaluations = sum(4 * len(spec.methods) for spec in layers) if rest else 0
    anchors = Anchors(opened, outputs, evaluations)
    trim = Trimmer()
    for chunk in chunks_of(rest):
        with phases.phase("moments", len(opened.feed.fit)) as advance:
            moments = dict(
                collect_moments(opened.original, opened.feed, chunk, seed=options.seed, advance=advance)
            )
        with phases.phase("curves", len(chunk)) as advance:
            for index, spec in chunk.items():
                if spec.name not in moments:
                    layers[index] = replace(spec, methods=(), reason="no calibration sample reached it")
                    continue
                curves[index] = _curves_of(
                    spec, opened.original, moments.pop(spec.name), grams, anchors, options, phases
                )
                if store is not None:
                    write_layer(store, index, curves[index])
                trim.after(32 * row_width(spec) ** 2)
                advance(1)
    return curves


def chunks_of(layers: Mapping[int, LayerSpec]) -> Iterator[dict[int, LayerSpec]]:
    """Layers whose moments fit into memory together.

    Args:
        layers: by their index in the study.

    Yields:
        Some of them, in the same order.
    """
    chunk: dict[int, LayerSpec] = {}
    held = 0
    for index, spec in layers.items():
        width = row_width(spec)
        size = row_cap(spec) * width * 4 if keeps_rows(spec) else width * width * 8
        if chunk and held + size > _MOMENT_BYTES:
            yield chunk
            chunk, held = {}, 0
        chunk[index] = spec
        held += size
    if chunk:
        yield chunk


def target_of(spec: LayerSpec, layer: nn.Module, moments: Moments, grams: Mapping[str, Tensor]) -> Target:
    """What a pair shall reproduce where inputs are those of the original.

    Args:
        spec: the layer.
        layer: its module.
        moments: of its inputs.
        grams: (C_out, C_out) second moments of output gradients by layer; may lack it.

    Returns:
        The target.
    """
    weight = dense_weight(layer)
    root, inverse_root = metric_roots(grams.get(spec.name), len(weight), weight.device)
    ridge = ridge_of(moments.n_rows, row_width(spec))
    return Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=ridge)


def weight_curves(
    model: nn.Module, layers: Mapping[int, LayerSpec], options: Options, phases: Phases
) -> dict[int, tuple[Curve, ...]]:
    curves = {}
    with phases.phase("curves", len(layers)) as advance:
        for index, spec in layers.items():
            weight = dense_weight(model.get_submodule(spec.name))
            methods = [method for method in options.methods if method in spec.methods]
            own = layer_curves(spec, methods, weights_target(weight), has_bias=spec.has_bias)
            curves[index] = relative_curves(own, float(weight.square().sum() / 2))
            advance(1)
    return curves


def _curves_of(
    spec: LayerSpec,
    model: nn.Module,
    moments: Moments,
    grams: Mapping[str, Tensor],
    anchors: Anchors,
    options: Options,
    phases: Phases,
) -> tuple[Curve, ...]:
    target = target_of(spec, model.get_submodule(spec.name), moments, grams)
    methods = [method for method in options.methods if method in spec.methods]
    curves = layer_curves(spec, methods, target, has_bias=True)
    with phases.part("anchors", of="curves"):
        measured = anchors.measure(spec, target, curves)
    return anchored_curves(curves, measured)
