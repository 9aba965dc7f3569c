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
from slimrank._work import Work, work_of
from slimrank.calibrate import (
    Feed,
    collect_moments,
    draw_positions,
    input_rows,
    layer_seed,
    output_rows,
    rows_wanted,
    spread,
    token_mask,
)
from slimrank.capture import Tail, find_tails
from slimrank.channels import slim_failures
from slimrank.cost import keeps_rows, row_cap, row_width, rows_available, slimmed_spec
from slimrank.forward import Batch, Lockstep, OneByOne, Trimmer, can_interleave, take_samples
from slimrank.linalg import (
    Clipping,
    Moments,
    MomentSums,
    least_squares_weight,
    narrowed_weight,
    reaching,
    ridge_of,
)
from slimrank.methods import Pair, Target, build_pair, empty_pair, fit_pair, metric_roots, weights_target
from slimrank.plan import Plan, Step
from slimrank.records import LayerSpec, Note, Setting
from slimrank.surgery import (
    bias_of_taps,
    copy_model,
    dense_weight,
    drop_blocks,
    replace_module,
    set_weights,
    shift_mean,
    slim,
)

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
_VERIFIED = 2


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
        plan: what was built: the plan, less the groups that turned out to be no groups in this model.
        fits: "sequential", "independent" or "weights" by layer name.
        notes: what the user should know.
    """

    model: nn.Module
    plan: Plan
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

    def add(self, own: Tensor, here: Rows, *, with_own: bool, step: int) -> None:
        """Rows that are fitted to.

        Args:
            own: (S, D) inputs in the original.
            here: the same rows in the new model.
            with_own: sum over the former as well.
            step: keep one of so many rows where a clipping follows.
        """
        self.moved = self.moved or not torch.equal(own, here.inputs)
        if with_own:
            self.own.add(own)
        self.joint.add(here.inputs, here.outputs)
        if self.clipping is not None:
            self.rows.append(_every(here, step))


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
    fits: dict[str, str] = {}
    notes: list[Note] = []
    plan = _slimmed(working, plan, data, notes)
    work = work_of(plan)
    if data is None:
        for name, one in work.items():
            layer = working.get_submodule(name)
            fit = _fit_weights(one, layer, has_bias=plan.has_bias)
            _install(working, one, layer, fit)
            fits[name] = fit.kind
            _call(on_layer, working, name)
            advance(name)
    else:
        builder = _Builder(working, plan, work, data, notes, knows_tails=on_layer is None)
        fits = builder.build(list(work), on_layer, journal, advance)
    for name, module in working.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], module.training))
    return Applied(model=working, plan=plan, fits=fits, notes=tuple(notes))


def _slimmed(working: nn.Module, plan: Plan, data: Data | None, notes: list[Note]) -> Plan:
    """Takes channels and blocks out of the model (in place), each group only where that is exact.

    Returns:
        The plan, less the groups that could not go.
    """
    if not plan.steps or not (plan.groups or plan.dropped):
        return plan
    step = plan.steps[-1]
    channels = step.structure.channels
    kept = dict(plan.groups)
    if data is not None and kept:
        feed = data.feed
        batches = [batch for batch, _ in zip(feed.stream(feed.held_out), range(_VERIFIED), strict=False)]
        failures = slim_failures(data.original, channels, kept, batches)
        for name, problem in failures.items():
            del kept[name]
            notes.append(
                Note(
                    where=name,
                    text=f"the plan slims it, but its channels all stay, so more is left: {problem}",
                )
            )
        if failures:
            steps = (*plan.steps[:-1], replace(step, groups=kept))
            # What was predicted and promised belonged to the plan that cannot be built.
            plan = replace(
                plan, steps=steps, select="manual", damage=None, score_loss=None, gap=None, budgets={}
            )
    slim(working, channels, kept)
    drop_blocks(working, plan.dropped)
    return plan


def empty_replacement(step: Step, name: str, *, has_bias: bool) -> nn.Sequential:
    """The container that takes the place of a layer, its parameters on the meta device.

    Args:
        step: of a plan.
        name: a layer that the step sets.
        has_bias: whether the second factor has a bias.

    Returns:
        Two modules in a container.
    """
    setting = step.settings[name]
    spec = slimmed_spec(step.structure.layers[name], step.structure.channels, step.groups)
    return nn.Sequential(*empty_pair(spec, setting.form, setting.rank, has_bias=has_bias))


class _Builder:
    """One sequential build: the original and the new model run in lockstep over the same samples."""

    def __init__(
        self,
        working: nn.Module,
        plan: Plan,
        work: Mapping[str, Work],
        data: Data,
        notes: list[Note],
        *,
        knows_tails: bool,
    ) -> None:
        self._original = data.original
        self._original_layers = dict(self._original.named_modules())
        self._working = working
        self._work = work
        self._as_they_were: Mapping[str, list[Tensor]] = {}
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
        alone = [name for name in work if name not in self._shared and not work[name].is_transposed]
        self._tails = self._tails_of(alone) if knows_tails else {}
        both = [batch for batch, _ in self._batches]
        self._is_interleaved = can_interleave(self._original, both, list(work))
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
        # A shortcut from inside a block that is gone cannot be read in the new model.
        present = {name for name, _ in model.named_modules()}
        found = {
            name: tail.shortcut
            for name, tail in self._tails.items()
            if tail.shortcut is not None and tail.shortcut.source in present
        }
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
            self._index[name]: work.spec for name, work in self._work.items() if len(work.spec.calls) > 1
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
        sources = {name: self._working.get_submodule(name) for name in names}
        if on_layer is None:
            # The containers stand in place before the forwards start, so that a paused call finds its new
            # content.
            for name in names:
                if self._work[name].setting is not None:
                    replace_module(self._working, name, nn.Sequential(sources[name]))
        else:
            self._as_they_were = {name: _parameters_of(source) for name, source in sources.items()}
        with contextlib.ExitStack() as stack:
            before = self._steps(self._original, names)
            stack.enter_context(before)
            after = None if on_layer is not None else self._steps(self._working, names)
            if after is not None:
                stack.enter_context(after)
            trim = Trimmer()
            for name, following in pairwise([*names, ""]):
                work = self._work[name]
                stored = journal.load(name) if journal is not None else None
                fit = None if stored is None else _from_journal(stored, work.setting)
                if after is not None:
                    reached = _reach(before, after, name)
                    if fit is None:
                        seen = self._gather(name, sources[name], reached)
                        del reached
                        if following:
                            # The original does not wait for the fit.
                            before.start(following)
                        fit = self._fit(name, sources[name], seen)
                    _fill(self._working, work, sources[name], fit)
                else:
                    self._working.eval()
                    sources[name] = _checked(self._working.get_submodule(name), work)
                    with self._steps(self._working, [name]) as fresh:
                        reached = _reach(before, fresh, name)
                        fit = fit or self._fit(
                            name, sources[name], self._gather(name, sources[name], reached)
                        )
                    _install(self._working, work, sources[name], fit)
                if journal is not None and stored is None:
                    journal.store(name, _to_journal(fit))
                fits[name] = fit.kind
                trim.after(_gathered_bytes(work.spec))
                _call(on_layer, self._working, name)
                advance(name)
        return fits

    def _is_changed(self, name: str, source: nn.Module) -> bool:
        """Whether ``on_layer`` has changed a layer that is still to be fitted."""
        known = self._as_they_were.get(name)
        return known is not None and not _same_tensors(_parameters_of(source), known)

    def _metric(self, work: Work, device: torch.device) -> tuple[Tensor, Tensor]:
        """Roots of the output metric, of the outputs that stay."""
        gram = work.gram_of(self._data.grams.get(work.spec.name))
        return metric_roots(gram, work.n_channels, device)

    def _fit(self, name: str, source: nn.Module, seen: _Gathered | None) -> Fit:
        work = self._work[name]
        if seen is None:
            return self._fit_shared(name, source)
        if not seen.joint.n_rows:
            self._notes.append(
                Note(
                    where=name,
                    text="no calibration sample reached it; its factors come from the weights alone",
                )
            )
            return _fit_weights(work, source, has_bias=self._has_bias)
        weight = dense_weight(source)
        moments = seen.joint.moments()
        cross, mean_out = seen.joint.cross()
        means = (moments.mean, mean_out)
        if work.is_transposed:
            # A channel has one bias for all its taps, so the kernel has to keep their means.
            moments, cross = moments.about_zero(), cross.addr(mean_out, moments.mean)
            mean_out = torch.zeros_like(mean_out)
        sample = Sample(
            moments=moments,
            cross=cross,
            mean_out=mean_out,
            held_out=_joined(seen.held_out, _HELD_OUT_ROWS),
            rows=_joined(seen.rows, None),
            clipping=seen.clipping,
            groups=work.groups,
        )
        if work.columns is None or self._is_changed(name, source):
            targets = self._targets(work, weight, seen, moments, cross)
        else:
            targets = self._narrowed_targets(work, work.columns, seen, moments, cross)
        fit = best_fit(work.slimmed, work.setting, sample, weight, targets)
        return self._with_planned_bias(_with_tap_bias(work, fit, source, *means), source)

    def _targets(
        self, work: Work, weight: Tensor, seen: _Gathered, moments: Moments, cross: Tensor
    ) -> Iterator[tuple[str, Target]]:
        """What a layer that reads as many inputs as before may be fitted to."""
        n_rows, width = seen.joint.n_rows, row_width(work.slimmed) // work.groups
        root, inverse_root = self._metric(work, weight.device)
        ridge = ridge_of(n_rows, width)
        is_joint = seen.moved and self._data.sequential
        base = moments if is_joint or not seen.moved else _own_moments(work, seen)
        for value in _ridges(ridge, n_rows, width):
            dense = weight
            if is_joint:
                dense = least_squares_weight(weight, cross, moments, ridge=value, groups=work.groups)
            yield (
                "sequential" if self._data.sequential else "independent",
                Target(dense=dense, moments=base, root=root, inverse_root=inverse_root, ridge=value),
            )
        if is_joint and seen.own.n_rows:
            alone = _own_moments(work, seen)
            yield (
                "independent",
                Target(dense=weight, moments=alone, root=root, inverse_root=inverse_root, ridge=ridge),
            )

    def _narrowed_targets(
        self, work: Work, columns: Tensor, seen: _Gathered, moments: Moments, cross: Tensor
    ) -> Iterator[tuple[str, Target]]:
        """What a layer that lost columns may be fitted to; more ridge trusts the old inputs more."""
        n_rows, width = seen.joint.n_rows, row_width(work.slimmed) // work.groups
        full = work.wanted(dense_weight(self._original_layers[work.spec.name]).T).T
        root, inverse_root = self._metric(work, full.device)
        own = _own_moments(work, seen)
        for value in _ridges(ridge_of(n_rows, width), n_rows, width):
            prior, alone = narrowed_weight(full, own, columns, ridge=value, groups=work.groups)
            if not self._data.sequential:
                target = Target(dense=prior, moments=alone, root=root, inverse_root=inverse_root, ridge=value)
                yield "independent", target
                continue
            dense = least_squares_weight(prior, cross, moments, ridge=value, groups=work.groups)
            yield (
                "sequential",
                Target(dense=dense, moments=moments, root=root, inverse_root=inverse_root, ridge=value),
            )

    def _with_planned_bias(self, fit: Fit, source: nn.Module) -> Fit:
        """A plan made without data counts no bias where the layer has none."""
        keeps = self._has_bias or isinstance(source.bias, Tensor)
        return fit if keeps else replace(fit, bias=None)

    def _fit_shared(self, name: str, source: nn.Module) -> Fit:
        """A layer that is called several times: one pair for all calls, fitted to the original's inputs."""
        work, moments = self._work[name], self._shared[name]
        original = self._original_layers[name]
        full = work.wanted(dense_weight(original).T).T
        means = (moments.mean, full @ moments.mean)
        if work.is_transposed:
            moments, mean_out = moments.about_zero(), torch.zeros_like(means[1])
        else:
            mean_out = means[1] + work.wanted(_bias_of(original, dense_weight(original)))
        ridge = ridge_of(moments.n_rows, row_width(work.slimmed) // work.groups)
        dense = full
        if work.columns is not None:
            dense, moments = narrowed_weight(full, moments, work.columns, ridge=ridge, groups=work.groups)
        root, inverse_root = self._metric(work, full.device)
        target = Target(dense=dense, moments=moments, root=root, inverse_root=inverse_root, ridge=ridge)
        sample = Sample(
            moments=moments, cross=dense, mean_out=mean_out, held_out=None, rows=None, clipping=None
        )
        fit = best_fit(work.slimmed, work.setting, sample, dense, [("independent", target)])
        mean_in = means[0] if work.columns is None else means[0][work.columns.to(full.device)]
        return self._with_planned_bias(_with_tap_bias(work, fit, source, mean_in, means[1]), source)

    def _gather(self, name: str, source: nn.Module, reached: Sequence[_Reached]) -> _Gathered | None:
        """Rows of a layer, in the original and in the new model; None where all its calls share moments."""
        if name in self._shared:
            return None
        work = self._work[name]
        spec, n_out = work.spec, work.slimmed.weight_shape[0]
        original = self._original_layers[name]
        keep = keeps_rows(spec)
        # A layer that on_layer changed is fitted to its own, changed output, whatever follows.
        is_changed = self._is_changed(name, source)
        width, width_own = row_width(work.slimmed), row_width(work.slimmed if is_changed else spec)
        tail = Tail() if is_changed else self._tails.get(name, Tail())
        device = dense_weight(source).device
        gains, offset = (work.rows_of(part.to(device)) for part in self._affine(tail.norm))
        clipping = None
        if tail.bounds is not None:
            clipping = Clipping(gains=gains.expand(n_out), low=tail.bounds[0], high=tail.bounds[1])
        seen = _Gathered(
            own=MomentSums(width_own, keep_rows=keep),
            joint=MomentSums(width, keep_rows=keep, other_width=n_out),
            clipping=clipping,
            # Other columns are another input.
            moved=work.columns is not None,
        )
        # With rows in plenty a fit to the original's inputs has nothing to win.
        needs_own = not self._data.sequential or self._is_scarce(spec) or work.columns is not None
        limit = min(max(_CLIPPED_ROWS, 8 * width), _CLIPPED_BYTES // (4 * (width + 2 * n_out)))
        step = max(1, row_cap(spec) // max(limit, 1))
        for number, ((batch, is_held_out), here) in enumerate(zip(self._batches, reached, strict=True)):
            x, x_hat = here.x, here.x_hat
            if x is None or x_hat is None or not _same_places(spec, x, x_hat):
                continue
            generator = torch.Generator().manual_seed(
                layer_seed(self._data.seed, self._index[name], number, 0)
            )
            positions = draw_positions(spec, x, self._wanted(spec, batch), generator, token_mask(batch))
            rows = input_rows(original, spec, x, positions).float()
            rows_hat = input_rows(original, spec, x_hat, positions).float()
            wanted = self._wanted_outputs(work, source if is_changed else None, rows, rows_hat)
            offsets = offset.expand_as(wanted)
            if tail.shortcut is not None and here.shortcut is not None and here.shortcut_hat is not None:
                places = positions.to(wanted.device)
                added = output_rows(spec, here.shortcut_hat)[places].float()
                lost = work.last_of(output_rows(spec, here.shortcut)[places].float()) - added
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
            seen.add(rows_hat if is_changed else rows, here_rows, with_own=needs_own, step=step)
        return seen

    def _wanted_outputs(
        self, work: Work, changed: nn.Module | None, rows: Tensor, rows_hat: Tensor
    ) -> Tensor:
        """Outputs of the original, those that stay; of the changed layer itself where there is one.

        What a transposed convolution gives through its taps is without a bias.
        """
        source = self._original_layers[work.spec.name] if changed is None else changed
        weight = dense_weight(source).float()
        outputs = (rows if changed is None else rows_hat) @ weight.T
        if not work.is_transposed:
            outputs = outputs + _bias_of(source, weight)
        return work.wanted(outputs) if changed is None else outputs

    def _is_scarce(self, spec: LayerSpec) -> bool:
        """Whether fewer rows reach a layer than a fit to moving inputs wants."""
        return rows_available(spec, self._n_fit) < _ENOUGH_ROWS * row_width(spec)

    def _wanted(self, spec: LayerSpec, batch: Batch) -> int:
        share = batch.n_samples / max(self._n_fit, 1)
        return min(rows_wanted(spec, share), row_cap(spec))


def _same_places(spec: LayerSpec, x: Tensor, x_hat: Tensor) -> bool:
    """Whether two inputs of a layer differ in their channels alone."""
    channel = x.ndim - 1 if spec.kind == "linear" else x.ndim - 1 - len(spec.kernel)
    return x.ndim == x_hat.ndim and all(
        a == b for dim, (a, b) in enumerate(zip(x.shape, x_hat.shape, strict=True)) if dim != channel
    )


def _gathered_bytes(spec: LayerSpec) -> int:
    """About what the rows and moments of a layer hold."""
    width = row_width(spec)
    return 4 * row_cap(spec) * (width + 2 * spec.weight_shape[0]) + 32 * width * width


def _reach(before: Lockstep | OneByOne, after: Lockstep | OneByOne, name: str) -> list[_Reached]:
    """Runs both networks up to a layer."""
    inputs = zip(before.advance(name), after.advance(name), strict=True)
    shortcuts = zip(before.shortcut(name), after.shortcut(name), strict=True)
    return [_Reached(*here, *added) for here, added in zip(inputs, shortcuts, strict=True)]


def _checked(layer: nn.Module, work: Work) -> nn.Module:
    """A layer still to come, as ``on_layer`` left it."""
    if not isinstance(layer.weight, Tensor) or tuple(layer.weight.shape) != work.shape:
        raise OptionError(
            f"layer {work.spec.name!r}: on_layer put a {type(layer).__name__} there that the plan does not "
            f"fit; it may change values, or exchange the layer for one with a weight {list(work.shape)}"
        )
    return layer


def _parameters_of(layer: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [parameter.detach().clone() for parameter in layer.parameters()]


def _same_tensors(own: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(own) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(own, others, strict=True)
    )


def _ridges(least: float, n_rows: int, width: int) -> tuple[float, ...]:
    """Ridges to choose among on held-out samples: more where rows are few."""
    larger = tuple(value for value in _RIDGES if value > least)
    return (least, *larger[:1]) if n_rows >= _ENOUGH_ROWS * width else (least, *larger)


def _fit_weights(work: Work, layer: nn.Module, *, has_bias: bool) -> Fit:
    weight, setting = dense_weight(layer), work.setting
    bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else None
    if bias is None and has_bias and work.norm is None:
        # The plan counts one, and a later step may build on it.
        bias = weight.new_zeros(work.n_channels)
    if setting is None:
        return Fit(factors=weight, bias=bias, kind="weights")
    pair = fit_pair(
        work.slimmed, setting.form, setting.rank, weights_target(weight), alternations=ALTERNATIONS
    )
    return Fit(factors=pair, bias=bias, kind="weights")


def _own_moments(work: Work, seen: _Gathered) -> Moments:
    """Moments of the inputs in the original."""
    return seen.own.moments().about_zero() if work.is_transposed else seen.own.moments()


def _with_tap_bias(work: Work, fit: Fit, source: nn.Module, mean_in: Tensor, mean_out: Tensor) -> Fit:
    """The fit of a transposed convolution with the bias that makes up, on average, for what its taps miss.

    Args:
        work: of the layer; any other than a transposed convolution keeps its fit.
        fit: of the layer.
        source: the layer as it stands.
        mean_in: (D',) float64, of its inputs.
        mean_out: (O',) float64, of what its taps should give.
    """
    if not work.is_transposed or not isinstance(fit.factors, Tensor):
        return fit
    bias = bias_of_taps(source, work.spec.calls, mean_out - fit.factors @ mean_in)
    known = source.bias
    return replace(fit, bias=bias + known.detach().double() if isinstance(known, Tensor) else bias)


def _bias_of(layer: nn.Module, like: Tensor) -> Tensor:
    if isinstance(layer.bias, Tensor):
        return layer.bias.detach().to(like.dtype)
    return like.new_zeros(len(like))


def _install(model: nn.Module, work: Work, source: nn.Module, fit: Fit) -> None:
    if work.setting is not None:
        replace_module(model, work.spec.name, nn.Sequential(source))
    _fill(model, work, source, fit)


def _fill(model: nn.Module, work: Work, source: nn.Module, fit: Fit) -> None:
    """Puts a fit where its layer is: new values, or a pair in the container around it."""
    if isinstance(fit.factors, Tensor):
        if work.norm is None or fit.bias is None:
            set_weights(source, fit.factors, fit.bias)
            return
        set_weights(source, fit.factors, None)
        shift_mean(model.get_submodule(work.norm), fit.bias)
        return
    place = model.get_submodule(work.spec.name)
    if not isinstance(place, nn.Sequential):
        raise TypeError(f"{work.spec.name} is a {type(place).__name__}, not the container that was put there")
    first, second = build_pair(work.slimmed, source, fit.factors, fit.bias)
    place[0] = first
    place.append(second)
    place.train(source.training)


def _call(on_layer: OnLayer | None, model: nn.Module, name: str) -> None:
    if on_layer is None:
        return
    with torch.enable_grad():
        on_layer(model, name)


_KINDS = ("sequential", "independent", "weights")


def _to_journal(fit: Fit) -> Mapping[str, Tensor]:
    tensors = {"kind": torch.tensor(_KINDS.index(fit.kind))}
    if isinstance(fit.factors, Tensor):
        tensors["weight"] = fit.factors
    else:
        tensors |= {"first": fit.factors.first, "second": fit.factors.second}
    return tensors if fit.bias is None else tensors | {"bias": fit.bias}


def _from_journal(tensors: Mapping[str, Tensor], setting: Setting | None) -> Fit:
    kind = _KINDS[int(tensors["kind"])]
    if setting is None:
        return Fit(factors=tensors["weight"], bias=tensors.get("bias"), kind=kind)
    pair = Pair(form=setting.form, first=tensors["first"], second=tensors["second"])
    return Fit(factors=pair, bias=tensors.get("bias"), kind=kind)
