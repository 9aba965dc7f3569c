# SPDX-License-Identifier: Apache-2.0
"""Model + plan -> new model: layers fitted in execution order to what reaches them."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank._fits import ALTERNATIONS, Fit, Rows, Sample, best_fit
from slimrank.calibrate import (
    Feed,
    collect_moments,
    draw_positions,
    input_rows,
    keeps_rows,
    layer_seed,
    output_rows,
    row_cap,
    row_width,
    rows_available,
    rows_wanted,
    spread,
    token_mask,
)
from slimrank.graph import (
    Batch,
    Lockstep,
    OneByOne,
    Tail,
    Trimmer,
    can_interleave,
    copy_model,
    find_tails,
    replace_module,
    take_samples,
)
from slimrank.linalg import Clipping, Moments, MomentSums, least_squares_weight, reaching, ridge_of
from slimrank.methods import (
    Pair,
    Target,
    build_pair,
    dense_weight,
    effective_weight,
    empty_pair,
    fit_pair,
    metric_roots,
    weights_target,
)
from slimrank.plan import Plan
from slimrank.records import LayerSpec, Note, Setting

OnLayer = Callable[[nn.Module, str], object]
_LIVE_BYTES = 2_000_000_000
_MIN_LIVE_SAMPLES = 32
_HELD_OUT_ROWS = 8192
_MAX_FORWARDS = 64
_FORWARDS_PER_MICRO = 4
_RIDGES = (1e-3, 1e-2, 1e-1)
_ENOUGH_ROWS = 20
_CLIPPED_BYTES = 250_000_000
_CLIPPED_ROWS = 16_384


class Journal(Protocol):
    """Where fitted layers are kept, so that a killed run goes on."""

    def load(self, name: str) -> Mapping[str, Tensor] | None:
        """Tensors of a layer that was fitted before; None where it was not."""
        ...

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors of a fitted layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """A new model, and how its layers were fitted.

    Attributes:
        model: the copy with pairs in place; modes and requires_grad as in the caller's model.
        fits: "sequential", "independent" or "weights" by layer name.
        notes: what the user should know.
    """

    model: nn.Module
    fits: Mapping[str, str]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """What fits draw on.

    Attributes:
        original: a private copy of the model in eval mode.
        feed: the samples.
        grams: (C_out, C_out) second moments of output gradients by layer; may lack layers.
        seed: of the rows drawn.
        sequential: fit to the inputs of the compressed model; False fits every layer on its own.
    """

    original: nn.Module
    feed: Feed
    grams: Mapping[str, Tensor]
    seed: int
    sequential: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Reached:
    """One batch at a layer, in the original and in the new model.

    Attributes:
        x, x_hat: inputs of the layer.
        shortcut, shortcut_hat: what will be added to its output; None where that is not known.
    """

    x: Tensor | None
    x_hat: Tensor | None
    shortcut: Tensor | None
    shortcut_hat: Tensor | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Gathered:
    """What is known of one layer once all batches have reached it.

    Attributes:
        own: sums over the inputs in the original; empty where rows are plenty.
        joint: sums over the inputs in the new model, with the wanted outputs.
        held_out: rows of held-out samples, per batch.
        rows: some of the other rows, per batch, where a clipping follows.
        moved: whether anything differs from the original.
        clipping: what follows.
    """

    own: MomentSums
    joint: MomentSums
    clipping: Clipping | None
    held_out: list[Rows] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    moved: bool = False


def _every(rows: Rows, step: int) -> Rows:
    """One of so many rows, each a copy, so that the others can be freed."""
    parts = (rows.inputs, rows.outputs, rows.offsets)
    inputs, outputs, offsets = (part[::step].clone() if step > 1 else part for part in parts)
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def _joined(parts: Sequence[Rows], limit: int | None) -> Rows | None:
    """Rows of all batches; at most so many of them."""
    if not parts:
        return None
    step = 1 if limit is None else max(1, sum(len(part.inputs) for part in parts) // limit)
    inputs = torch.cat([part.inputs for part in parts])[::step]
    outputs = torch.cat([part.outputs for part in parts])[::step]
    offsets = torch.cat([part.offsets for part in parts])[::step]
    return Rows(inputs=inputs, outputs=outputs, offsets=offsets)


def check_on_layer(on_layer: OnLayer | None) -> None:
    """Refuses a hook that cannot be called with a model and a name.

    Raises:
        OptionError: its signature does not fit.
    """
    if on_layer is None:
        return
    if not callable(on_layer):
        raise OptionError(f"on_layer is a {type(on_layer).__name__}; give a function fn(model, layer_name)")
    try:
        inspect.signature(on_layer).bind(nn.Identity(), "layer")
    except TypeError as error:
        raise OptionError(f"on_layer cannot be called as fn(model, layer_name): {error}") from error


def apply_plan(
    model: nn.Module,
    plan: Plan,
    *,
    data: Data | None,
    on_layer: OnLayer | None,
    journal: Journal | None,
    advance: Callable[[str], None],
) -> Applied:
    """Builds the compressed model.

    Args:
        model: the caller's; it is copied.
        plan: checked against the model by the caller.
        data: what fits draw on; None takes factors from the weights alone.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer.
        journal: fitted layers of an earlier, killed run, and where to keep new ones.
        advance: told every layer that is done.

    Returns:
        The new model, and how its layers were fitted.
    """
    check_on_layer(on_layer)
    working = copy_model(model)
    modes = {name: module.training for name, module in working.named_modules()}
    working.eval()
    layers = plan.steps[-1].structure.layers if plan.steps else {}
    names = list(plan.settings)
    fits: dict[str, str] = {}
    notes: list[Note] = []
    if data is None:
        for name in names:
            layer = working.get_submodule(name)
            fit = _fit_weights(layers[name], plan.settings[name], layer)
            _install(working, name, layers[name], layer, fit)
            fits[name] = fit.kind
            _call(on_layer, working, name)
            advance(name)
    else:
        builder = _Builder(working, plan, data, notes, knows_tails=on_layer is None)
        fits = builder.build(names, on_layer, journal, advance)
    for name, module in working.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], module.training))
    return Applied(model=working, fits=fits, notes=tuple(notes))


def empty_replacement(spec: LayerSpec, setting: Setting, *, has_bias: bool) -> nn.Sequential:
    """The container that takes the place of a layer, its parameters on the meta device.

    Args:
        spec: the layer.
        setting: what is done to it.
        has_bias: whether the second factor has a bias.

    Returns:
        Two modules in a container.
    """
    return nn.Sequential(*empty_pair(spec, setting.form, setting.rank, has_bias=has_bias))


class _Builder:
    """One sequential build: the original and the new model run in lockstep over the same samples."""

    def __init__(
        self, working: nn.Module, plan: Plan, data: Data, notes: list[Note], *, knows_tails: bool
    ) -> None:
        self._original = data.original
        self._original_layers = dict(self._original.named_modules())
        self._working = working
        self._settings = plan.settings
        self._has_bias = plan.has_bias
        self._specs = plan.steps[-1].structure.layers if plan.steps else {}
        self._index = {name: index for index, name in enumerate(self._specs)}
        self._data = data
        self._notes = notes
        fit, held_out = self._samples()
        # Without a backward pass a forward may hold more samples; fewer threads also waste less memory.
        feed = replace(data.feed, micro=_FORWARDS_PER_MICRO * data.feed.micro)
        self._batches = [(batch, False) for batch in feed.stream(fit)]
        self._batches += [(batch, True) for batch in feed.stream(held_out)]
        self._n_fit = len(fit)
        self._shared = self._moments_of_shared()
        # What on_layer changes is kept, so nothing is made up for then.
        alone = [name for name in self._settings if name not in self._shared]
        self._tails = self._tails_of(alone) if knows_tails else {}
        both = [batch for batch, _ in self._batches]
        self._is_interleaved = can_interleave(self._original, both, list(self._settings))
        if not self._is_interleaved:
            notes.append(
                Note(
                    where="apply",
                    text="the model keeps state on itself during a forward, so batches were run one after "
                    "the other, from the start for every layer: slower, equally exact",
                )
            )

    def _steps(self, model: nn.Module, stops: Sequence[str]) -> Lockstep | OneByOne:
        batches = [batch for batch, _ in self._batches]
        kind = Lockstep if self._is_interleaved else OneByOne
        found = {name: tail.shortcut for name, tail in self._tails.items() if tail.shortcut is not None}
        return kind(model, batches, stops, found)

    def _tails_of(self, names: Sequence[str]) -> Mapping[str, Tail]:
        """What follows layers, where fits are sequential and so can make up for it, or make use of it."""
        if not self._data.sequential or not names:
            return {}
        batch, _ = self._batches[0]
        return find_tails(self._original, batch if batch.is_whole else take_samples(batch, [0]), names)

    def _affine(self, norm: str | None) -> tuple[Tensor, Tensor]:
        """Gain and offset, (C_out,) or () float32, of the batch norm after a layer."""
        if norm is None:
            return torch.ones(()), torch.zeros(())
        module = self._original_layers[norm]
        mean, variance = module.running_mean, module.running_var
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            raise TypeError(f"{norm} is a {type(module).__name__} without running statistics")
        gain = (variance.double() + float(str(module.eps))).rsqrt()
        if isinstance(module.weight, Tensor):
            gain = gain * module.weight.detach().double()
        offset = -mean.double() * gain
        if isinstance(module.bias, Tensor):
            offset = offset + module.bias.detach().double()
        return gain.float(), offset.float()

    def _samples(self) -> tuple[Sequence[int], Sequence[int]]:
        """Samples that can be held alive at one depth of both networks.

        The share of held-out ones is kept.
        """
        feed = self._data.feed
        largest = max(
            (prod(call.input_shape) for spec in self._specs.values() for call in spec.calls), default=1
        )
        # Two networks; each was seen to hold about four of its largest layer inputs, slack included.
        limit = max(_MIN_LIVE_SAMPLES, _LIVE_BYTES // (2 * 4 * 4 * largest))
        # A forward is a thread in each network.
        limit = min(limit, _MAX_FORWARDS * max(feed.micro, 1))
        if feed.n_samples <= limit:
            return feed.fit, feed.held_out
        n_fit = max(1, round(limit * len(feed.fit) / feed.n_samples))
        self._notes.append(
            Note(
                where="apply",
                text=f"layers were fitted to {n_fit} of {len(feed.fit)} samples, which keeps the activations "
                "that are alive at one depth below 2 GB (estimated), and forwards below 64",
            )
        )
        return spread(feed.fit, n_fit), spread(feed.held_out, max(1, limit - n_fit))

    def _moments_of_shared(self) -> Mapping[str, Moments]:
        """Moments of layers that are called several times, over all their calls in the original."""
        shared = {
            self._index[name]: self._specs[name]
            for name in self._settings
            if len(self._specs[name].calls) > 1
        }
        if not shared:
            return {}
        return collect_moments(
            self._original, self._data.feed, shared, seed=self._data.seed, advance=lambda _n: None
        )

    def build(
        self,
        names: Sequence[str],
        on_layer: OnLayer | None,
        journal: Journal | None,
        advance: Callable[[str], None],
    ) -> dict[str, str]:
        """Fits and installs every layer, in order."""
        fits: dict[str, str] = {}
        sources: dict[str, nn.Module] = {}
        if on_layer is None:
            # The containers stand in place before the forwards start, so that a paused call finds its new
            # content.
            for name in names:
                sources[name] = self._working.get_submodule(name)
                replace_module(self._working, name, nn.Sequential(sources[name]))
        with contextlib.ExitStack() as stack:
            before = self._steps(self._original, names)
            stack.enter_context(before)
            after = None if on_layer is not None else self._steps(self._working, names)
            if after is not None:
                stack.enter_context(after)
            trim = Trimmer()
            for name, following in pairwise([*names, ""]):
                stored = journal.load(name) if journal is not None else None
                fit = None if stored is None else _from_journal(stored, self._settings[name])
                if after is not None:
                    reached = _reach(before, after, name)
                    if fit is None:
                        seen = self._gather(name, sources[name], reached)
                        del reached
                        if following:
                            # The original does not wait for the fit.
                            before.start(following)
                        fit = self._fit(name, sources[name], seen)
                    container = self._working.get_submodule(name)
                    _fill(container, self._specs[name], sources[name], fit)
                else:
                    self._working.eval()
                    sources[name] = _checked(self._working.get_submodule(name), self._specs[name])
                    with self._steps(self._working, [name]) as fresh:
                        reached = _reach(before, fresh, name)
                        fit = fit or self._fit(
                            name, sources[name], self._gather(name, sources[name], reached)
                        )
                    _install(self._working, name, self._specs[name], sources[name], fit)
                if journal is not None and stored is None:
                    journal.store(name, _to_journal(fit))
                fits[name] = fit.kind
                trim.after(_gathered_bytes(self._specs[name]))
                _call(on_layer, self._working, name)
                advance(name)
        return fits

    def _fit(self, name: str, source: nn.Module, seen: _Gathered | None) -> Fit:
        spec, setting = self._specs[name], self._settings[name]
        if seen is None:
            return self._fit_shared(name, source)
        if not seen.joint.n_rows:
            self._notes.append(
                Note(
                    where=name,
                    text="no calibration sample reached it; its factors come from the weights alone",
                )
            )
            return _fit_weights(spec, setting, source)
        weight = dense_weight(source)
        root, inverse_root = metric_roots(self._data.grams.get(name), len(weight), weight.device)
        moments = seen.joint.moments()
        cross, mean_out = seen.joint.cross()
        sample = Sample(
            moments=moments,
            cross=cross,
            mean_out=mean_out,
            held_out=_joined(seen.held_out, _HELD_OUT_ROWS),
            rows=_joined(seen.rows, None),
            clipping=seen.clipping,
        )
        n_rows, width = seen.joint.n_rows, row_width(spec)
        ridge = ridge_of(n_rows, width)
        is_joint = seen.moved and self._data.sequential

        def targets() -> Iterator[tuple[str, Target]]:
            base = moments if is_joint or not seen.moved else seen.own.moments()
            for value in _ridges(ridge, n_rows, width):
                dense = least_squares_weight(weight, cross, moments, ridge=value) if is_joint else weight
                yield (
                    "sequential" if self._data.sequential else "independent",
                    Target(dense=dense, moments=base, root=root, inverse_root=inverse_root, ridge=value),
                )
            if is_joint and seen.own.n_rows:
                alone = seen.own.moments()
                yield (
                    "independent",
                    Target(dense=weight, moments=alone, root=root, inverse_root=inverse_root, ridge=ridge),
                )

        return self._with_planned_bias(best_fit(spec, setting, sample, weight, targets()), source)

    def _with_planned_bias(self, fit: Fit, source: nn.Module) -> Fit:
        """A plan made without data counts no bias where the layer has none."""
        keeps = self._has_bias or isinstance(source.bias, Tensor)
        return fit if keeps else replace(fit, bias=None)

    def _fit_shared(self, name: str, source: nn.Module) -> Fit:
        """A layer that is called several times: one pair for all calls, fitted to the original's inputs."""
        spec, setting, moments = self._specs[name], self._settings[name], self._shared[name]
        weight = dense_weight(source)
        root, inverse_root = metric_roots(self._data.grams.get(name), len(weight), weight.device)
        ridge = ridge_of(moments.n_rows, row_width(spec))
        target = Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=ridge)
        pair = fit_pair(spec, setting.form, setting.rank, target, alternations=ALTERNATIONS)
        mean_out = weight @ moments.mean + _bias_of(source, weight)
        bias = mean_out - effective_weight(spec, pair) @ moments.mean
        return self._with_planned_bias(Fit(pair=pair, bias=bias, kind="independent"), source)

    def _gather(self, name: str, source: nn.Module, reached: Sequence[_Reached]) -> _Gathered | None:
        """Rows of a layer, in the original and in the new model; None where all its calls share moments."""
        if name in self._shared:
            return None
        spec = self._specs[name]
        original = self._original_layers[name]
        width, n_out, keep = row_width(spec), spec.weight_shape[0], keeps_rows(spec)
        # A layer that on_layer changed is fitted to its own, changed output, whatever follows.
        is_changed = not _same_parameters(source, original)
        tail = Tail() if is_changed else self._tails.get(name, Tail())
        gains, offset = (part.to(dense_weight(source).device) for part in self._affine(tail.norm))
        clipping = None
        if tail.bounds is not None:
            clipping = Clipping(gains=gains.expand(n_out), low=tail.bounds[0], high=tail.bounds[1])
        seen = _Gathered(
            own=MomentSums(width, keep_rows=keep),
            joint=MomentSums(width, keep_rows=keep, other_width=n_out),
            clipping=clipping,
        )
        # With rows in plenty a fit to the original's inputs has nothing to win.
        needs_own = not self._data.sequential or self._is_scarce(spec)
        limit = min(max(_CLIPPED_ROWS, 8 * width), _CLIPPED_BYTES // (4 * (width + 2 * n_out)))
        step = max(1, row_cap(spec) // max(limit, 1))
        for number, ((batch, is_held_out), here) in enumerate(zip(self._batches, reached, strict=True)):
            x, x_hat = here.x, here.x_hat
            if x is None or x_hat is None or x.shape != x_hat.shape:
                continue
            generator = torch.Generator().manual_seed(
                layer_seed(self._data.seed, self._index[name], number, 0)
            )
            positions = draw_positions(spec, x, self._wanted(spec, batch), generator, token_mask(batch))
            rows = input_rows(original, spec, x, positions).float()
            rows_hat = input_rows(original, spec, x_hat, positions).float()
            weight = dense_weight(source if is_changed else original).float()
            wanted = (rows_hat if is_changed else rows) @ weight.T
            wanted = wanted + _bias_of(source if is_changed else original, weight)
            offsets = offset.expand_as(wanted)
            if tail.shortcut is not None and here.shortcut is not None and here.shortcut_hat is not None:
                places = positions.to(wanted.device)
                added = output_rows(spec, here.shortcut_hat)[places].float()
                lost = output_rows(spec, here.shortcut)[places].float() - added
                # What the shortcut lost so far, in units of the layer's output; channels that hardly reach
                # the sum cannot make up for it.
                wanted = wanted + torch.where(reaching(gains.expand(n_out)), lost / gains, 0.0)
                offsets = offsets + added
                seen.moved = seen.moved or bool(lost.any())
            elif tail.shortcut is not None:
                # Read on one sample, absent here: then nothing is known of what is clipped.
                seen.clipping = None
            here_rows = Rows(inputs=rows_hat, outputs=wanted, offsets=offsets)
            if is_held_out:
                seen.held_out.append(here_rows)
                continue
            seen.moved = seen.moved or not torch.equal(rows, rows_hat)
            if needs_own:
                seen.own.add(rows_hat if is_changed else rows)
            seen.joint.add(rows_hat, wanted)
            if clipping is not None:
                seen.rows.append(_every(here_rows, step))
        return seen

    def _is_scarce(self, spec: LayerSpec) -> bool:
        """Whether fewer rows reach a layer than a fit to moving inputs wants."""
        return rows_available(spec, self._n_fit) < _ENOUGH_ROWS * row_width(spec)

    def _wanted(self, spec: LayerSpec, batch: Batch) -> int:
        share = batch.n_samples / max(self._n_fit, 1)
        return min(rows_wanted(spec, share), row_cap(spec))


def _gathered_bytes(spec: LayerSpec) -> int:
    """About what the rows and moments of a layer hold."""
    width = row_width(spec)
    return 4 * row_cap(spec) * (width + 2 * spec.weight_shape[0]) + 32 * width * width


def _reach(before: Lockstep | OneByOne, after: Lockstep | OneByOne, name: str) -> list[_Reached]:
    """Runs both networks up to a layer."""
    inputs = zip(before.advance(name), after.advance(name), strict=True)
    shortcuts = zip(before.shortcut(name), after.shortcut(name), strict=True)
    return [_Reached(*here, *added) for here, added in zip(inputs, shortcuts, strict=True)]


def _checked(layer: nn.Module, spec: LayerSpec) -> nn.Module:
    """A layer still to come, as ``on_layer`` left it."""
    if not isinstance(layer.weight, Tensor) or tuple(layer.weight.shape) != spec.weight_shape:
        raise OptionError(
            f"layer {spec.name!r}: on_layer put a {type(layer).__name__} there that the plan does not fit; "
            f"it may change values, or exchange the layer for one with a weight {list(spec.weight_shape)}"
        )
    return layer


def _same_parameters(layer: nn.Module, other: nn.Module) -> bool:
    own, others = list(layer.parameters()), list(other.parameters())
    return len(own) == len(others) and all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def _ridges(least: float, n_rows: int, width: int) -> tuple[float, ...]:
    """Ridges to choose among on held-out samples: more where rows are few."""
    larger = tuple(value for value in _RIDGES if value > least)
    return (least, *larger[:1]) if n_rows >= _ENOUGH_ROWS * width else (least, *larger)


def _fit_weights(spec: LayerSpec, setting: Setting, layer: nn.Module) -> Fit:
    weight = dense_weight(layer)
    pair = fit_pair(spec, setting.form, setting.rank, weights_target(weight), alternations=ALTERNATIONS)
    bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else None
    return Fit(pair=pair, bias=bias, kind="weights")


def _bias_of(layer: nn.Module, like: Tensor) -> Tensor:
    if isinstance(layer.bias, Tensor):
        return layer.bias.detach().to(like.dtype)
    return like.new_zeros(len(like))


def _install(model: nn.Module, name: str, spec: LayerSpec, source: nn.Module, fit: Fit) -> None:
    container = nn.Sequential(source)
    _fill(container, spec, source, fit)
    replace_module(model, name, container)


def _fill(container: nn.Module, spec: LayerSpec, source: nn.Module, fit: Fit) -> None:
    if not isinstance(container, nn.Sequential):
        raise TypeError(f"{spec.name} is a {type(container).__name__}, not the container that was put there")
    first, second = build_pair(spec, source, fit.pair, fit.bias)
    container[0] = first
    container.append(second)
    container.train(source.training)


def _call(on_layer: OnLayer | None, model: nn.Module, name: str) -> None:
    if on_layer is None:
        return
    with torch.enable_grad():
        on_layer(model, name)


_KINDS = ("sequential", "independent", "weights")


def _to_journal(fit: Fit) -> Mapping[str, Tensor]:
    tensors = {
        "first": fit.pair.first,
        "second": fit.pair.second,
        "kind": torch.tensor(_KINDS.index(fit.kind)),
    }
    return tensors if fit.bias is None else tensors | {"bias": fit.bias}


def _from_journal(tensors: Mapping[str, Tensor], setting: Setting) -> Fit:
    pair = Pair(form=setting.form, first=tensors["first"], second=tensors["second"])
    return Fit(pair=pair, bias=tensors.get("bias"), kind=_KINDS[int(tensors["kind"])])
