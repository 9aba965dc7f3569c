# SPDX-License-Identifier: Apache-2.0
"""Curves of layers: cost and damage at every rank, chunk by chunk."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from slimrank.calibrate import Chunk, Collecting, moment_chunks
from slimrank.cost import block_width, working_bytes
from slimrank.forward import Trimmer, out_of_memory_at
from slimrank.linalg import Moments, ridge_of
from slimrank.measured import read_layer, write_layer
from slimrank.methods import (
    Target,
    anchored_curves,
    layer_curves,
    metric_roots,
    relative_curves,
    weights_target,
)
from slimrank.records import Curve, LayerSpec, Method
from slimrank.surgery import dense_weight
from slimrank.survey._anchors import Anchors
from slimrank.survey._effort import effort_row
from slimrank.survey._session import Run, Session
from slimrank.survey._told import tell_curves


def stored_curves(layers: Sequence[LayerSpec], run: Run) -> dict[int, tuple[Curve, ...]]:
    """Curves that an earlier run left, by index of the layer."""
    if run.store is None:
        return {}
    found = {index: read_layer(run.store, index, spec) for index, spec in enumerate(layers) if spec.methods}
    # The store may be that of more methods.
    asked = {
        index: tuple(curve for curve in curves if curve.method in layers[index].methods)
        for index, curves in found.items()
    }
    return {index: curves for index, curves in asked.items() if curves}


def measure_layers(
    session: Session,
    layers: Sequence[LayerSpec],
    grams: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    run: Run,
) -> dict[int, tuple[Curve, ...]]:
    """Curves of every layer that a pair may replace.

    Args:
        session: model, data and options.
        layers: all of them, in execution order.
        grams: second moments of output gradients by layer, (C_out, C_out) or diagonal; may lack some.
        moments: of inputs by layer, as far as they were gathered before.
        run: progress, and where measurements are kept and found again.

    Returns:
        Curves by index of the layer; a layer that no sample reaches has none.
    """
    curves = stored_curves(layers, run)
    rest = {index: spec for index, spec in enumerate(layers) if spec.methods and index not in curves}
    if session.options.data_free:
        return curves | _weight_curves(session, rest, run)
    # Sized for all layers, also those of an earlier run: where that stopped must not change the numbers.
    n_layers = sum(1 for spec in layers if spec.methods)
    ratios = effort_row(session.options).ratios_for(n_layers)
    anchors = Anchors(session, len(ratios) * n_layers if rest else 0, ratios)
    trim = Trimmer(session.budgets.freed)
    for chunk in layer_chunks(session, rest, run.collecting(session), moments):
        with run.phases.phase("curves", len(chunk.indices)) as advance:
            for index in chunk.indices:
                spec = rest[index]
                if spec.name in chunk.moments:
                    layer = session.original.get_submodule(spec.name)
                    # The target is not kept: its matrices are freed before the next layer needs memory.
                    curves[index] = _curves_of(
                        session,
                        spec,
                        target_of(spec, layer, chunk.moments.pop(spec.name), grams),
                        anchors,
                        run,
                    )
                    if run.kept_in is not None:
                        write_layer(run.kept_in, index, curves[index])
                    tell_curves(run.phases, spec, curves[index])
                    trim.after(working_bytes(spec))
                advance(1)
    return curves


def layer_chunks(
    session: Session,
    layers: Mapping[int, LayerSpec],
    collecting: Collecting,
    moments: Mapping[str, Moments] | None = None,
) -> Iterator[Chunk]:
    """Moments of the inputs of layers, as many at a time as fit into memory.

    Args:
        session: model, data and options.
        layers: by their index in the study.
        collecting: opened around each pass over the samples, as in ``moment_chunks``.
        moments: by layer, as far as they were gathered before.

    Returns:
        Chunks of the layers, in the same order.
    """
    return moment_chunks(
        session.original,
        session.feed,
        {index: {index: spec} for index, spec in layers.items()},
        seed=session.options.seed,
        max_bytes=session.budgets.layer_moments,
        collecting=collecting,
        known=moments,
    )


def target_of(spec: LayerSpec, layer: nn.Module, moments: Moments, grams: Mapping[str, Tensor]) -> Target:
    """What a pair shall reproduce where inputs are those of the original.

    Args:
        spec: the layer.
        layer: its module.
        moments: of its inputs.
        grams: second moments of output gradients by layer, (C_out, C_out) or diagonal; may lack it.

    Returns:
        The target.
    """
    weight = dense_weight(layer)
    root, inverse_root = metric_roots(grams.get(spec.name), len(weight), weight.device)
    ridge = ridge_of(moments.n_rows, block_width(spec))
    return Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=ridge)


def _weight_curves(
    session: Session, layers: Mapping[int, LayerSpec], run: Run
) -> dict[int, tuple[Curve, ...]]:
    """Curves from the weights alone: shares of their energy."""
    curves = {}
    with run.phases.phase("curves", len(layers)) as advance:
        for index, spec in layers.items():
            weight = dense_weight(session.original.get_submodule(spec.name))
            shares = layer_curves(
                spec, methods_of(session, spec), weights_target(weight), has_bias=spec.has_bias
            )
            curves[index] = relative_curves(shares, float(weight.square().sum() / 2))
            tell_curves(run.phases, spec, curves[index])
            advance(1)
    return curves


def _curves_of(
    session: Session, spec: LayerSpec, target: Target, anchors: Anchors, run: Run
) -> tuple[Curve, ...]:
    """Curves of one layer, anchored by measured divergences."""
    with out_of_memory_at(f"layer {spec.name!r}"):
        curves = layer_curves(spec, methods_of(session, spec), target, has_bias=True)
        with run.phases.part("anchors", of="curves"):
            measured = anchors.measure_layer(spec, target, curves)
        return anchored_curves(curves, measured)


def methods_of(session: Session, spec: LayerSpec) -> list[Method]:
    """Methods that were asked for and that a layer can take."""
    return [method for method in session.options.methods if method in spec.methods]
