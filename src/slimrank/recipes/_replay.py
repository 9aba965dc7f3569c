# SPDX-License-Identifier: Apache-2.0
"""Plans replayed, and saved models loaded."""

import os
from collections.abc import Iterable

from torch import nn

from slimrank._errors import PlanError
from slimrank._progress import Phases
from slimrank._result import Result
from slimrank._study import check_plan
from slimrank._verify import build_from_weights, build_result, measured_from
from slimrank.calibrate import OwnLossFn
from slimrank.capture import check_weights, describe_layers
from slimrank.deploy import load_architecture, load_artifact
from slimrank.fitting import OnLayer, check_on_layer, layer_tasks
from slimrank.forward import OutputChoice, out_of_memory_told, outside_inference_mode
from slimrank.interop import receive
from slimrank.measured import Options, check_options
from slimrank.plan import Plan, check_structure, structure_of
from slimrank.records import LikelihoodChoice, Weights, likelihood_of, weights_of
from slimrank.surgery import copy_model
from slimrank.survey import (
    DataSource,
    Inputs,
    MemoryOption,
    Run,
    Session,
    as_planned,
    gather_gradients,
    open_session,
)


@outside_inference_mode
def apply(  # noqa: D417 - the others are named in one sentence; a test checks that
    model: nn.Module,
    plan: Plan,
    batches: Iterable[object] | None = None,
    *,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    weights: Weights = None,
    loss: OwnLossFn | None = None,
    fisher: bool = True,
    draws: int = 4,
    holdout: float = 0.2,
    on_layer: OnLayer | None = None,
    progress: bool = True,
    memory: MemoryOption = None,
    seed: int = 0,
) -> Result:
    """Replays a plan on a freshly built copy of the model it was made for.

    These arguments are explained in ``slimrank.study``: ``inputs``, ``outputs``, ``likelihood``, ``weights``,
    ``loss``, ``fisher``, ``draws``, ``holdout``, ``progress``, ``memory`` and ``seed``.

    Args:
        model: the same architecture, trained; it is copied.
        plan: e.g. from ``Plan.load``.
        batches: unlabelled inputs to fit layers to; None takes factors from the weights alone, and the result
            says so.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer, in order.

    Returns:
        The result.

    Raises:
        PlanError: the plan belongs to another model.
        OutOfMemoryError: memory is used up.
        SlimrankError: as in ``slimrank.study``, for the batches.
    """
    received = receive(model)
    model = received.model
    check_plan(plan)
    check_on_layer(on_layer)
    model, folded = as_planned(model, plan)
    check_structure(plan, structure_of(describe_layers(model)))
    check_weights(model)
    phases = Phases(shown=progress)
    # What a plan holds is decided: methods, globs and channel order are without effect here.
    options = Options(
        likelihood=likelihood_of(likelihood),
        weights=weights_of(weights),
        fisher=fisher,
        draws=draws,
        holdout=holdout,
        seed=seed,
    )
    check_options(options)

    source = (
        None if batches is None else DataSource(batches=batches, inputs=inputs, outputs=outputs, loss=loss)
    )

    def opened(start: nn.Module, part: Plan) -> Session | None:
        if source is None:
            return None
        return open_session(
            start, source, options, phases, memory=memory, names=set(layer_tasks(part)), fold=False
        )

    def replayed(start: nn.Module, part: Plan, session: Session | None) -> Result:
        if session is None:
            return build_from_weights(copy_model(start), part, on_layer, phases)
        gradients = gather_gradients(session, list(layer_tasks(part)), Run(phases=phases))
        done = build_result(session, part, phases, grams=gradients.grams, on_layer=on_layer)
        return done.with_notes(session.notes, phases.seconds)

    kept = "apply keeps nothing; a study with run_dir= would, and its apply goes on where it stopped"
    with out_of_memory_told(lambda: f"phase {phases.name!r}", kept):
        first_part = plan.up_to(1)
        first = opened(model, first_part)
        result = replayed(model, first_part, first).with_notes(folded, phases.seconds)
        for count in range(2, len(plan.steps) + 1):
            earlier_notes = result.notes
            _check_complete(result, plan.up_to(count - 1))
            part = plan.up_to(count)
            result = replayed(result.model, part, opened(result.model, part))
            lost_notes = [note for note in earlier_notes if note not in result.notes]
            result = result.with_notes(lost_notes, phases.seconds)
        result = result.with_notes(received.notes, phases.seconds)
        if len(plan.steps) < 2 or first is None:
            return result
        return measured_from(first, result)


def _check_complete(result: Result, plan: Plan) -> None:
    """Refuses to build a step on a step of which a part could not be done."""
    failed = sorted(set(plan.groups) - set(result.plan.groups))
    if failed:
        why = next((note.text for note in result.notes if note.where == failed[0]), "")
        raise PlanError(
            f"plan: step {len(plan.steps)} slims {', '.join(failed)}, which cannot go from this model "
            f"({why}), and step {len(plan.steps) + 1} builds on that; apply plan.up_to({len(plan.steps)}) "
            "and study its result for the next step"
        )


def load(path: str | os.PathLike[str], *, model: nn.Module | None = None) -> nn.Module:
    """Rebuilds a compressed model that ``Result.save`` wrote, without its class where that was recorded.

    Args:
        path: the directory.
        model: the original architecture, freshly built; it is copied, its weights do not matter. None where
            the architecture was recorded (``result.save(path, architecture=True)``): then a module comes back
            that computes what was recorded. It has the parameters under their names and takes gradients, but
            not the class, and does what the model did in eval mode for inputs of the recorded shapes.

    Returns:
        The compressed model with its weights, in eval mode.

    Raises:
        FileError: a file is missing, truncated or altered; or ``model`` is None and no architecture, or that
            of another version of torch, is there.
        PlanError: the directory belongs to another model.
    """
    if model is None:
        return load_architecture(path)
    return load_artifact(path, receive(model, needs_weights=False).model)
