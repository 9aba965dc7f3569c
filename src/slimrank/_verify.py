# SPDX-License-Identifier: Apache-2.0
"""From a plan to a result: the model is built, then counted and measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor, nn

from slimrank._progress import Phases
from slimrank._result import Result, unwarned
from slimrank.calibrate import Feed, measure_agreement, part_of, reference_outputs
from slimrank.capture import count_by_module, peak_activation_bytes, stored
from slimrank.cost import layer_cost, pair_has_bias, setting_cost, slimmed_spec
from slimrank.deploy import ExportSource
from slimrank.fitting import Applied, Data, LayerFiles, OnLayer, apply_plan, layer_tasks
from slimrank.forward import Batch, eval_mode, run
from slimrank.plan import Plan, is_inside
from slimrank.records import METRICS, ActivationBytes, Agreement, Cost, LayerResult, LayerSpec, Note, ratio_of
from slimrank.report import agreement_text, slimmed_text
from slimrank.survey import Session, restored_copy

_AGAINST_START = Note(where="verify", text="divergence is measured against the model this step started from")
_AGAINST_FIRST = Note(where="verify", text="divergence is measured against the original, over all steps")
# Share of what the outputs tell, mean over outputs and elements, above which a warning says that little is
# left of it. On the benchmark's networks results above it had lost more than 20 points of accuracy, those
# below it fewer (``make bench-agreement``): they are of use once they are trained.
_MUCH_LOST = 0.25
# Samples that tell about how good a plan is: fewer fit wide layers badly, more take longer.
ROUGH_SAMPLES = 100


def build_result(
    session: Session,
    plan: Plan,
    phases: Phases,
    *,
    grams: Mapping[str, Tensor],
    on_layer: OnLayer | None = None,
    sequential: bool = True,
) -> Result:
    """Applies a plan with data, then counts and measures what came out.

    Args:
        session: model, data and options.
        plan: checked against the model.
        phases: progress.
        grams: second moments of output gradients by layer, (C_out, C_out) or diagonal.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer.
        sequential: fit layers to the inputs of the compressed model.

    Returns:
        The result, without the damages that a study predicts.
    """
    data = None
    if not session.options.data_free:
        data = _data_of(session, session.feed, grams, sequential=sequential)
    journal = None
    if session.run_dir is not None and on_layer is None:
        journal = LayerFiles(session.run_dir, plan, sequential, session.fingerprint)
    applied = _applied(session, plan, phases, data, on_layer=on_layer, journal=journal)
    with phases.phase("verify", 1) as advance:
        agreement = _agreement(session, applied.model)
        with eval_mode(applied.model):
            after, by_module, _ = count_by_module(applied.model, session.captured.sample)
        activations = _activations(session, applied.model) if len(plan.steps) == 1 else None
        advance(1)
    plan = applied.plan
    phases.emit(
        "result",
        **{metric: ratio_of(session.captured.before, after, metric) for metric in METRICS},
        divergence=agreement.divergence if isfinite(agreement.divergence) else None,
    )
    return Result(
        model=applied.model,
        plan=plan,
        before=plan.before if len(plan.steps) > 1 else session.captured.before,
        after=after,
        layers=_layer_results(applied, session.captured.layers, by_module),
        divergence=agreement.divergence,
        agreement=agreement,
        damage=plan.damage,
        unit=session.likelihood.unit,
        damage_unit=session.damage_unit,
        notes=(*applied.notes, *_warnings(session, agreement), *_mode_notes(session), *_step_notes(plan)),
        seconds=phases.seconds,
        activation_bytes=activations,
        _source=_source(session),
    )


def rough_feed(session: Session) -> Feed:
    """The samples that rough divergences fit to: 100 at most, read in one pass and held in memory."""
    return part_of(session.feed, ROUGH_SAMPLES)


def rough_divergence(
    session: Session, plan: Plan, phases: Phases, *, grams: Mapping[str, Tensor], feed: Feed
) -> float:
    """About the divergence of what a plan builds, in a part of the time: fitted to a few samples.

    Args:
        session: model, data and options; not data-free.
        plan: checked against the model.
        phases: progress.
        grams: second moments of output gradients by layer, (C_out, C_out) or diagonal.
        feed: the few samples, of ``rough_feed``.

    Returns:
        The divergence on all held-out samples of the session.
    """
    applied = _applied(session, plan, phases, _data_of(session, feed, grams))
    return _agreement(session, applied.model).divergence


def _data_of(session: Session, feed: Feed, grams: Mapping[str, Tensor], *, sequential: bool = True) -> Data:
    """What fits to some samples draw on."""
    return Data(
        original=session.original,
        feed=feed,
        grams=grams,
        seed=session.options.seed,
        budgets=session.budgets,
        sequential=sequential,
        seen=session.seen,
    )


def _applied(
    session: Session,
    plan: Plan,
    phases: Phases,
    data: Data | None,
    *,
    on_layer: OnLayer | None = None,
    journal: LayerFiles | None = None,
) -> Applied:
    """What a plan makes of a copy of the model."""
    with phases.phase("apply", len(layer_tasks(plan))) as advance:
        return apply_plan(
            restored_copy(session),
            plan,
            data=data,
            on_layer=on_layer,
            journal=journal,
            advance=lambda _name: advance(1),
        )


def _source(session: Session, *, is_first: bool = False) -> ExportSource:
    """What an export of a result needs of the session."""
    feed = session.feed

    def batches() -> Iterable[Batch]:
        return feed.stream(range(feed.n_samples))

    return ExportSource(
        original=session.original,
        batches=batches,
        outputs=session.outputs,
        likelihood=session.likelihood,
        is_first=is_first,
    )


def _warnings(session: Session, agreement: Agreement) -> list[Note]:
    """The warning of a result that lost much; none of another."""
    is_finite = isfinite(agreement.lost) and isfinite(agreement.divergence)
    if is_finite and agreement.lost <= _MUCH_LOST:
        return []
    measured = f"divergence {agreement.divergence:.3g} {session.likelihood.unit}, {agreement_text(agreement)}"
    if not is_finite:
        text = (
            f"{measured}: outputs are not finite, or far outside of what they were; give a larger budget, or "
            "compress the model in float32"
        )
    else:
        of_outputs = f", mean over {len(agreement)} outputs" if len(agreement) > 1 else ""
        text = (
            f"{measured}; {agreement.lost:.0%} of what always answering the average would lose{of_outputs}: "
            "the outputs have little left of the original's; give a larger budget or more samples, or train "
            "the result"
        )
    return [Note(where="verify", text=text, is_warning=True)]


def _mode_notes(session: Session) -> list[Note]:
    """A note on a result that is in train mode; none on another."""
    if not any(session.modes.values()):
        return []
    return [
        Note(
            where="verify",
            text="the model came in train mode and so is the result; it was measured in eval mode: call "
            ".eval() before you use or compare it",
        )
    ]


def _step_notes(plan: Plan) -> list[Note]:
    """Notes on a result of several steps; none for one step."""
    if len(plan.steps) < 2:
        return []
    started = f"{ratio_of(plan.before, plan.start, 'macs'):.4f}"
    layers = Note(
        where="verify",
        text=f"this is step {len(plan.steps)}: the layers are those of the model it started from, which had "
        f"{started} of the original's MACs",
    )
    return [layers, _AGAINST_START]


def build_from_weights(model: nn.Module, plan: Plan, on_layer: OnLayer | None, phases: Phases) -> Result:
    """Applies a plan without data: factors from the weights alone, nothing measured.

    Args:
        model: a copy that is given up for it: it becomes the compressed model.
        plan: checked against the model.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer.
        phases: progress.

    Returns:
        The result; its notes say that there were no data.
    """
    with phases.phase("apply", len(layer_tasks(plan))) as advance:
        applied = apply_plan(
            model,
            plan,
            data=None,
            on_layer=on_layer,
            journal=None,
            advance=lambda _name: advance(1),
        )
    params, n_bytes = stored(applied.model)
    layers = tuple(plan.steps[-1].structure.layers.values()) if plan.steps else ()
    return Result(
        model=applied.model,
        plan=plan,
        before=plan.before,
        after=Cost(macs=plan.after.macs, params=params, bytes=n_bytes),
        layers=_layer_results(applied, layers, None),
        divergence=None,
        damage=None,
        unit="",
        damage_unit="",
        notes=(
            Note(
                where="apply",
                text="no batches were given: factors come from the weights alone, nothing was measured, and "
                "MACs are computed from the shapes in the plan; pass batches= to fit to data",
                is_warning=True,
            ),
            *applied.notes,
            *(note for note in _step_notes(plan) if note != _AGAINST_START),
        ),
        seconds=phases.seconds,
    )


def measured_from(session: Session, result: Result) -> Result:
    """A result of several steps, its divergence measured from the session's model.

    Args:
        session: of the original model, and data.
        result: its model takes the same inputs.

    Returns:
        The result with that divergence and what it warns of, and a note that says so where there are several
        steps.
    """
    if len(result.plan.steps) < 2:
        if result.divergence is not None:
            # One step starts from the original, so this was measured when it was built.
            return result
        agreement = _agreement(session, result.model)
        notes = (*unwarned(result.notes), *_warnings(session, agreement))
        return replace(result, divergence=agreement.divergence, agreement=agreement, notes=notes)
    agreement = _agreement(session, result.model)
    notes = tuple(note for note in unwarned(result.notes) if note != _AGAINST_START)
    return replace(
        result,
        before=session.captured.before,
        activation_bytes=_activations(session, result.model),
        divergence=agreement.divergence,
        agreement=agreement,
        notes=(*notes, *_warnings(session, agreement), _AGAINST_FIRST),
        _source=_source(session, is_first=True),
    )


def _agreement(session: Session, model: nn.Module) -> Agreement:
    """How far a model agrees with the session's on held-out samples, in eval mode, one batch at a time.

    Args:
        session: original and data.
        model: takes the same inputs.

    Returns:
        The agreement, its divergence in the session's unit.
    """
    feed, outputs, likelihood = session.feed, session.outputs, session.likelihood
    with torch.no_grad(), eval_mode(model):
        return measure_agreement(
            (run(model, batch) for batch in feed.stream(feed.held_out)),
            (
                reference
                for batch in feed.stream(feed.held_out)
                for reference in reference_outputs(
                    session.original, [batch], outputs, whole=likelihood.loss is not None
                )
            ),
            feed.stream(feed.held_out),
            likelihood,
            outputs,
        )


def _activations(session: Session, model: nn.Module) -> ActivationBytes:
    """Peaks of the activations of the session's model and of another one, for one sample."""
    peaks = []
    for network in (session.original, model):
        with eval_mode(network):
            peaks.append(peak_activation_bytes(network, session.captured.sample))
    return ActivationBytes(before=peaks[0], after=peaks[1])


def _layer_results(
    applied: Applied, layers: Sequence[LayerSpec], macs_by_module: Mapping[str, int] | None
) -> tuple[LayerResult, ...]:
    """What became of each layer; ``macs_by_module`` as counted, None where no batch is known."""
    plan = applied.plan
    results = []
    for spec in layers:
        before = Cost(macs=spec.macs, params=spec.params, bytes=spec.params * spec.itemsize)
        setting, slimmed = plan.settings.get(spec.name), slimmed_text(plan.steps[-1], spec)
        if slimmed is None and setting is None and spec.name in applied.fits:
            slimmed = "fitted anew behind a dropped block"
        if setting is None and slimmed is None:
            # The reason of the study's structure, which knows that channels of a layer without a pair may go.
            reason = plan.steps[-1].structure.layers[spec.name].reason or "left alone by the plan"
            results.append(LayerResult(name=spec.name, before=before, after=before, reason=reason))
            continue
        results.append(
            LayerResult(
                name=spec.name,
                before=before,
                after=_cost_of_layer(plan, spec, applied.model, macs_by_module),
                setting=setting,
                slimmed=slimmed,
                fit=applied.fits.get(spec.name),
            )
        )
    return tuple(results)


def _cost_of_layer(
    plan: Plan, spec: LayerSpec, model: nn.Module, macs_by_module: Mapping[str, int] | None
) -> Cost:
    """Cost of what stands in a layer's place: params stored, MACs counted or else from shapes."""
    step = plan.steps[-1]
    if is_inside(spec.name, step.dropped):
        return Cost(macs=0, params=0, bytes=0)
    if spec.is_recurrent:
        return _cost_by_shape(plan, spec)
    params, n_bytes = stored(model.get_submodule(spec.name))
    if macs_by_module is not None:
        return Cost(macs=macs_by_module.get(spec.name, 0), params=params, bytes=n_bytes)
    return Cost(macs=_cost_by_shape(plan, spec).macs, params=params, bytes=n_bytes)


def _cost_by_shape(plan: Plan, spec: LayerSpec) -> Cost:
    """What shapes say of what stands in a layer's place; of a recurrent layer, of its input matrix."""
    step, setting = plan.steps[-1], plan.settings.get(spec.name)
    slimmed = slimmed_spec(spec, step.structure.channels, step.groups)
    if setting is None:
        return layer_cost(slimmed)
    return setting_cost(slimmed, setting, has_bias=pair_has_bias(spec, plan_has_bias=plan.has_bias))
