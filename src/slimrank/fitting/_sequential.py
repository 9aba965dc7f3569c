# SPDX-License-Identifier: Apache-2.0
"""Layers fitted in execution order to what reaches them: the loop."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from slimrank.calibrate import (
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
from slimrank.cost import carries_mean, keeps_rows, row_cap, row_width, rows_available
from slimrank.fitting._data import Data, OnLayer, call_hook
from slimrank.fitting._fit import Fit, Rows, Sample, best_fit
from slimrank.fitting._gather import Gathered, Reached, gathered_bytes, have_same_places, joined_rows, reach
from slimrank.fitting._goals import (
    ENOUGH_ROWS,
    bias_of,
    fit_from_weights,
    moments_in_original,
    ridges_to_try,
    with_tap_bias,
)
from slimrank.fitting._install import are_same_tensors, checked_layer, copied_parameters, fill, install
from slimrank.fitting._journal import Journal, from_tensors, to_tensors
from slimrank.fitting._layer_tasks import Work
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
from slimrank.methods import Target, metric_roots, open_container
from slimrank.plan import Plan
from slimrank.records import LayerSpec, Note
from slimrank.surgery import dense_weight, replace_module

_LIVE_BYTES = 2_000_000_000
_MIN_LIVE_SAMPLES = 32
_HELD_OUT_ROWS = 8192
_MAX_FORWARDS = 64
_FORWARDS_PER_MICRO = 4
_CLIPPED_BYTES = 250_000_000
_CLIPPED_ROWS = 16_384


class Builder:
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
                    replace_module(self._working, name, open_container(sources[name]))
        else:
            self._as_they_were = {name: copied_parameters(source) for name, source in sources.items()}
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
                fit = None if stored is None else from_tensors(stored, work.setting)
                if after is not None:
                    reached = reach(before, after, name)
                    if fit is None:
                        seen = self._gather(name, sources[name], reached)
                        del reached
                        if following:
                            # The original does not wait for the fit.
                            before.start(following)
                        fit = self._fit(name, sources[name], seen)
                    fill(self._working, work, sources[name], fit)
                else:
                    self._working.eval()
                    sources[name] = checked_layer(self._working.get_submodule(name), work)
                    with self._steps(self._working, [name]) as fresh:
                        reached = reach(before, fresh, name)
                        fit = fit or self._fit(
                            name, sources[name], self._gather(name, sources[name], reached)
                        )
                    install(self._working, work, sources[name], fit)
                if journal is not None and stored is None:
                    journal.store(name, to_tensors(fit))
                fits[name] = fit.kind
                trim.after(gathered_bytes(work.spec))
                call_hook(on_layer, self._working, name)
                advance(name)
        return fits

    def _is_changed(self, name: str, source: nn.Module) -> bool:
        """Whether ``on_layer`` has changed a layer that is still to be fitted."""
        known = self._as_they_were.get(name)
        return known is not None and not are_same_tensors(copied_parameters(source), known)

    def _metric(self, work: Work, device: torch.device) -> tuple[Tensor, Tensor]:
        """Roots of the output metric, of the outputs that stay."""
        gram = work.gram_of(self._data.grams.get(work.spec.name))
        return metric_roots(gram, work.n_channels, device)

    def _fit(self, name: str, source: nn.Module, seen: Gathered | None) -> Fit:
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
            return fit_from_weights(work, source, has_bias=self._has_bias)
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
            held_out=joined_rows(seen.held_out, _HELD_OUT_ROWS),
            rows=joined_rows(seen.rows, None),
            clipping=seen.clipping,
            groups=work.groups,
        )
        if work.columns is None or self._is_changed(name, source):
            targets = self._targets(work, weight, seen, moments, cross)
        else:
            targets = self._narrowed_targets(work, work.columns, seen, moments, cross)
        fit = best_fit(work.slimmed, work.setting, sample, weight, targets)
        return self._with_planned_bias(with_tap_bias(work, fit, source, *means), source)

    def _targets(
        self, work: Work, weight: Tensor, seen: Gathered, moments: Moments, cross: Tensor
    ) -> Iterator[tuple[str, Target]]:
        """What a layer that reads as many inputs as before may be fitted to."""
        n_rows, width = seen.joint.n_rows, row_width(work.slimmed) // work.groups
        root, inverse_root = self._metric(work, weight.device)
        ridge = ridge_of(n_rows, width)
        is_joint = seen.moved and self._data.sequential
        base = moments if is_joint or not seen.moved else moments_in_original(work, seen)
        for value in ridges_to_try(ridge, n_rows, width):
            dense = weight
            if is_joint:
                dense = least_squares_weight(weight, cross, moments, ridge=value, groups=work.groups)
            yield (
                "sequential" if self._data.sequential else "independent",
                Target(dense=dense, moments=base, root=root, inverse_root=inverse_root, ridge=value),
            )
        if is_joint and seen.own.n_rows:
            alone = moments_in_original(work, seen)
            yield (
                "independent",
                Target(dense=weight, moments=alone, root=root, inverse_root=inverse_root, ridge=ridge),
            )

    def _narrowed_targets(
        self, work: Work, columns: Tensor, seen: Gathered, moments: Moments, cross: Tensor
    ) -> Iterator[tuple[str, Target]]:
        """What a layer that lost columns may be fitted to; more ridge trusts the old inputs more."""
        n_rows, width = seen.joint.n_rows, row_width(work.slimmed) // work.groups
        full = work.wanted(dense_weight(self._original_layers[work.spec.name]).T).T
        root, inverse_root = self._metric(work, full.device)
        own = moments_in_original(work, seen)
        for value in ridges_to_try(ridge_of(n_rows, width), n_rows, width):
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
        keeps_mean = carries_mean(has_bias=isinstance(source.bias, Tensor), plan_has_bias=self._has_bias)
        return fit if keeps_mean else replace(fit, bias=None)

    def _fit_shared(self, name: str, source: nn.Module) -> Fit:
        """A layer that is called several times: one pair for all calls, fitted to the original's inputs."""
        work, moments = self._work[name], self._shared[name]
        original = self._original_layers[name]
        full = work.wanted(dense_weight(original).T).T
        means = (moments.mean, full @ moments.mean)
        if work.is_transposed:
            moments, mean_out = moments.about_zero(), torch.zeros_like(means[1])
        else:
            mean_out = means[1] + work.wanted(bias_of(original, dense_weight(original)))
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
        return self._with_planned_bias(with_tap_bias(work, fit, source, mean_in, means[1]), source)

    def _gather(self, name: str, source: nn.Module, reached: Sequence[Reached]) -> Gathered | None:
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
        seen = Gathered(
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
            if x is None or x_hat is None or not have_same_places(spec, x, x_hat):
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
            outputs = outputs + bias_of(source, weight)
        return work.wanted(outputs) if changed is None else outputs

    def _is_scarce(self, spec: LayerSpec) -> bool:
        """Whether fewer rows reach a layer than a fit to moving inputs wants."""
        return rows_available(spec, self._n_fit) < ENOUGH_ROWS * row_width(spec)

    def _wanted(self, spec: LayerSpec, batch: Batch) -> int:
        share = batch.n_samples / max(self._n_fit, 1)
        return min(rows_wanted(spec, share), row_cap(spec))
