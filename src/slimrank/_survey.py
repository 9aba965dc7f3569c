# SPDX-License-Identifier: Apache-2.0
"""The measurements behind a study, each kept on disk as it is done.

They are capture, gradients, moments, curves and anchors.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank._errors import NonFiniteError, OptionError, StudyError, UnknownNameError
from slimrank.calibrate import (
    Feed,
    GradientOptions,
    Likelihood,
    LikelihoodChoice,
    collect_gradients,
    collect_moments,
    first_batch,
    keeps_rows,
    measure_divergence,
    open_feed,
    read_likelihood,
    reference_outputs,
    row_cap,
    row_width,
    rows_available,
    spread,
)
from slimrank.cost import forms_of
from slimrank.deploy import Store
from slimrank.graph import (
    Batch,
    Captured,
    OutputChoice,
    Replay,
    Trimmer,
    capture,
    check_compressible,
    copy_model,
    quiet_copy,
    replace_module,
)
from slimrank.linalg import Moments, ridge_of
from slimrank.methods import (
    METHODS,
    Anchor,
    Pair,
    Target,
    anchor_points,
    anchored_curves,
    build_pair,
    dense_weight,
    effective_weight,
    fit_pair,
    layer_curves,
    metric_roots,
    relative_curves,
    weights_target,
)
from slimrank.plan import nearest
from slimrank.records import Curve, Form, LayerSpec, Method, Note
from slimrank.report import Phases

_MOMENT_BYTES = 600_000_000
_ANCHOR_MACS = 6e12
_MIN_ANCHOR_SAMPLES = 8
_ANCHOR_ALTERNATIONS = 1
_REPLAY_BYTES = 500_000_000
_OUTPUT_BYTES = 250_000_000
_FEW_ROWS = 10
_UNREACHED = "no gradient of the chosen outputs reaches it; choose others with outputs=, or pass fisher=False"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller asked of a study.

    Attributes:
        methods: methods to measure.
        skip: layer-name globs to leave alone.
        likelihood: how outputs are read, or "auto".
        fisher: gather output gradients.
        draws: label-free draws per sample.
        holdout: share of the samples kept out of fits.
        data_free: use weights only.
        seed: of everything drawn.
    """

    methods: tuple[Method, ...]
    skip: tuple[str, ...]
    likelihood: LikelihoodChoice
    fisher: bool
    draws: int
    holdout: float
    data_free: bool
    seed: int

    @property
    def has_bias(self) -> bool:
        """Whether pairs carry a bias even where the layer has none: it absorbs the mean, which data tell."""
        return not self.data_free


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        layers: as captured, less those that turned out to be out of reach.
        curves: cost and damage by rank.
        grams: output-gradient moments by layer.
        notes: what the user should know.
    """

    layers: tuple[LayerSpec, ...]
    curves: tuple[Curve, ...]
    grams: Mapping[str, Tensor]
    notes: tuple[Note, ...]


def restored_copy(opened: Opened) -> nn.Module:
    """A copy of the model as the caller gave it: weights, modes and requires_grad of that moment."""
    model = copy_model(opened.original)
    for name, module in model.named_modules():
        module.training = opened.modes[name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(opened.trainable[name])
    return model


def check_options(options: Options) -> None:
    """Refuses options outside their values.

    Raises:
        UnknownNameError: a method that does not exist.
        OptionError: a number out of range.
    """
    if not options.methods:
        raise OptionError(f"methods is empty; give some of {', '.join(METHODS)}")
    for method in options.methods:
        if method not in METHODS:
            raise UnknownNameError(f"method {method!r} does not exist; {nearest(method, METHODS)}")
    if not isinstance(options.draws, int) or options.draws < 1:
        raise OptionError(f"draws={options.draws!r}; give a whole number of at least 1 (4 is a good one)")
    if not isinstance(options.seed, int) or options.seed < 0:
        raise OptionError(f"seed={options.seed!r}; give a whole number of at least 0")
    if not isinstance(options.holdout, int | float) or not 0 < options.holdout < 1:
        raise OptionError(f"holdout={options.holdout!r}; give a share between 0 and 1, such as 0.2")


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
                spec.reason == "skipped by the caller" and fnmatch.fnmatchcase(spec.name, pattern)
                for spec in captured.layers
            ):
                names = [spec.name for spec in captured.layers]
                raise UnknownNameError(
                    f"skip pattern {pattern!r} matches no layer; {nearest(pattern, names)}"
                )
        check_compressible(captured.layers, original)
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
    layers = list(opened.captured.layers)
    names = [spec.name for spec in layers if spec.methods]
    grams = gather_gradients(opened, names, outputs, options, phases, store)
    notes: list[Note] = []
    if options.fisher and not options.data_free:
        layers = [_unless_unreached(spec, grams) for spec in layers]
        check_compressible(layers, opened.original)
    todo = {index: spec for index, spec in enumerate(layers) if spec.methods}
    curves: dict[int, tuple[Curve, ...]] = {}
    if store is not None:
        curves = {index: found for index, spec in todo.items() if (found := _read_curves(store, index, spec))}
    rest = {index: spec for index, spec in todo.items() if index not in curves}
    if options.data_free:
        curves |= _weight_curves(opened.original, rest, options, phases)
        notes.append(
            Note(
                where="study",
                text="data-free: factors come from the weights alone and damage is the share of "
                "each weight's energy that is lost; it is not anchored in measured divergences",
            )
        )
    else:
        anchors = _Anchors(opened, outputs, todo)
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
                        _write_curves(store, index, curves[index])
                    trim.after(32 * row_width(spec) ** 2)
                    advance(1)
        notes += _row_notes(opened, todo)
    flat = tuple(curve for index in sorted(curves) for curve in curves[index])
    return Measured(layers=tuple(layers), curves=flat, grams=grams, notes=tuple(notes))


def _unless_unreached(spec: LayerSpec, grams: Mapping[str, Tensor]) -> LayerSpec:
    if not spec.methods or (spec.name in grams and bool(grams[spec.name].any())):
        return spec
    return replace(spec, methods=(), reason=_UNREACHED)


def _row_notes(opened: Opened, todo: Mapping[int, LayerSpec]) -> list[Note]:
    n_fit = len(opened.feed.fit)
    poor = [spec.name for spec in todo.values() if rows_available(spec, n_fit) < _FEW_ROWS * row_width(spec)]
    if not poor:
        return []
    listed = ", ".join(poor[:4]) + (f" and {len(poor) - 4} more" if len(poor) > 4 else "")
    return [
        Note(
            where="calibrate",
            text=f"{n_fit} samples give fewer than {_FEW_ROWS} rows per column for {len(poor)} of "
            f"{len(todo)} layers ({listed}); their fits lean towards the original weights. More samples help",
        )
    ]


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


def _weight_curves(
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
    anchors: "_Anchors",
    options: Options,
    phases: Phases,
) -> tuple[Curve, ...]:
    target = target_of(spec, model.get_submodule(spec.name), moments, grams)
    methods = [method for method in options.methods if method in spec.methods]
    curves = layer_curves(spec, methods, target, has_bias=True)
    with phases.part("anchors", of="curves"):
        measured = anchors.measure(spec, target, curves)
    return anchored_curves(curves, measured)


def independent_pair(
    spec: LayerSpec, layer: nn.Module, form: Form, rank: int, target: Target
) -> tuple[Pair, Tensor]:
    """A pair fitted to the inputs of the original, everything else as it is there.

    Args:
        spec: the layer.
        layer: its module.
        form: how the kernel is split.
        rank: size between the factors.
        target: what to reproduce; it remembers its decompositions.

    Returns:
        The factors, and the bias of the second, (O,) float64, that keeps the mean of the outputs.
    """
    pair = fit_pair(spec, form, rank, target, alternations=_ANCHOR_ALTERNATIONS)
    lost = (target.dense - effective_weight(spec, pair)) @ target.moments.mean
    return pair, lost + layer.bias.detach().double() if isinstance(layer.bias, Tensor) else lost


class _Anchors:
    """Held-out divergences of the original with one layer replaced."""

    def __init__(self, opened: Opened, outputs: OutputChoice, layers: Mapping[int, LayerSpec]) -> None:
        self._model = opened.original
        self._outputs = outputs
        self._likelihood = opened.likelihood
        evaluations = sum(4 * len(spec.methods) for spec in layers.values())
        cost = max(1.0, 0.6 * evaluations * opened.captured.before.macs)
        held_out = opened.feed.held_out
        per_sample = 4 * sum(math.prod(output.shape) for output in opened.likelihood.outputs.values())
        limit = max(_MIN_ANCHOR_SAMPLES, int(_ANCHOR_MACS / cost))
        limit = min(limit, max(1, _OUTPUT_BYTES // max(1, per_sample)))
        self._batches: list[Batch] = list(opened.feed.stream(spread(held_out, limit))) if layers else []
        self._references = reference_outputs(self._model, self._batches, outputs)
        self._replay = Replay(self._model, self._batches, max_bytes=_REPLAY_BYTES)

    def measure(self, spec: LayerSpec, target: Target, curves: Sequence[Curve]) -> dict[Method, list[Anchor]]:
        """Divergences at a few ranks of each method."""
        layer = self._model.get_submodule(spec.name)
        self._replay.start_at(spec.name, self._references, self._outputs)
        measured: dict[Method, list[Anchor]] = {}
        for method in dict.fromkeys(curve.method for curve in curves):
            for form, rank, error in anchor_points(curves, method, spec.macs):
                pair, bias = independent_pair(spec, layer, form, rank, target)
                replace_module(self._model, spec.name, nn.Sequential(*build_pair(spec, layer, pair, bias)))
                try:
                    value = measure_divergence(
                        self._replay.stream(),
                        self._references,
                        self._batches,
                        self._likelihood,
                        self._outputs,
                    )
                finally:
                    replace_module(self._model, spec.name, layer)
                measured.setdefault(method, []).append(
                    Anchor(form=form, rank=rank, error=error, divergence=value)
                )
        return measured


_ARRAYS = ("ranks", "macs", "params", "bytes", "error", "damage")


def _write_curves(store: Store, index: int, curves: Sequence[Curve]) -> None:
    tensors = {
        f"{curve.method}.{curve.form}.{array}": torch.from_numpy(getattr(curve, array).copy())
        for curve in curves
        for array in _ARRAYS
    }
    store.write_tensors(
        f"curves-{index:04d}.safetensors", tensors, {"layer": curves[0].layer} if curves else None
    )


def _read_curves(store: Store, index: int, spec: LayerSpec) -> tuple[Curve, ...]:
    name = f"curves-{index:04d}.safetensors"
    if not store.has(name):
        return ()
    tensors = store.read_tensors(name)
    curves = []
    for method in METHODS:
        for form in forms_of(spec, method):
            if f"{method}.{form}.ranks" not in tensors:
                continue
            arrays = {array: tensors[f"{method}.{form}.{array}"].numpy() for array in _ARRAYS}
            curves.append(Curve(layer=spec.name, method=method, form=form, **arrays))
    return tuple(curves)


def write_curves(store: Store, layers: Sequence[LayerSpec], curves: Sequence[Curve]) -> None:
    """Writes the curves of a whole study."""
    for index, spec in enumerate(layers):
        own = [curve for curve in curves if curve.layer == spec.name]
        if own:
            _write_curves(store, index, own)


def read_curves(store: Store, layers: Sequence[LayerSpec]) -> tuple[Curve, ...]:
    """Reads the curves of a whole study.

    Raises:
        StudyError: a layer lacks its curves; the study was not finished.
    """
    curves: list[Curve] = []
    for index, spec in enumerate(layers):
        if spec.methods:
            own = _read_curves(store, index, spec)
            if not own:
                raise StudyError(
                    f"{store.root} holds no curves for layer {spec.name!r}: the study was not finished; run "
                    "sr.study(..., run_dir=) on it again to go on"
                )
            curves += own
    return tuple(curves)
