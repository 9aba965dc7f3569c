# SPDX-License-Identifier: Apache-2.0
"""Model + plan -> new model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from slimrank._names import listed
from slimrank.channels import StaleSize, slim_failures, stale_sizes
from slimrank.cost import slimmed_spec
from slimrank.fitting._context import open_build
from slimrank.fitting._data import Data, OnLayer, call_hook
from slimrank.fitting._fit_layer import fit_from_weights
from slimrank.fitting._install import install
from slimrank.fitting._journal import FitJournal
from slimrank.fitting._layer_tasks import LayerTask, layer_tasks
from slimrank.fitting._sequential import fit_in_order
from slimrank.fitting._states import state_fits, states_in
from slimrank.forward import take_samples
from slimrank.methods import empty_replacement
from slimrank.plan import Plan, Step
from slimrank.records import Note
from slimrank.surgery import (
    Bypass,
    FollowedForward,
    SlimAttention,
    drop_blocks,
    flatten_recurrent,
    named_layer,
    set_parameters,
    slim,
)

# Held-out batches on which the slimmed model must equal the masked one: two, since a network may take another
# branch with another batch; each takes two forwards.
_N_CHECK_BATCHES = 2
# What stands for the model itself, whose dotted name is empty.
_ROOT = "(model)"
# Samples in each of them, where batches can be cut. A few show it: what differs does so for every sample.
_N_CHECK_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Applied:
    """A new model, and how its layers were fitted.

    Attributes:
        model: with pairs in place; modes and requires_grad as they were.
        plan: what was built: the plan, less the groups that turned out to be no groups in this model.
        fits: "sequential", "independent" or "weights" by layer name.
        notes: what the user should know.
    """

    model: nn.Module
    plan: Plan
    fits: Mapping[str, str]
    notes: tuple[Note, ...]


def apply_plan(
    model: nn.Module,
    plan: Plan,
    *,
    data: Data | None,
    on_layer: OnLayer | None,
    journal: FitJournal | None,
    advance: Callable[[str], None],
) -> Applied:
    """Builds the compressed model (in place).

    Args:
        model: a copy that is given up for it: it becomes the compressed model.
        plan: checked against the model by the caller.
        data: what fits draw on; None takes factors from the weights alone.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer; the caller checks it.
        journal: fitted layers of an earlier, killed run, and where to keep new ones.
        advance: told every layer that is done.

    Returns:
        The new model, and how its layers were fitted.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    plan, notes = (plan, ()) if data is None else _without_failures(plan, data)
    if plan.groups or plan.dropped:
        step = plan.steps[-1]
        channels = step.structure.channels
        notes = (*notes, *_stale_notes(stale_sizes(model, channels, plan.groups)))
        slim(model, channels, plan.groups)
        if data is not None:
            moments = states_in(step, data)
            set_parameters(model, state_fits(data.original, channels, step.groups, moments))
        drop_blocks(model, plan.dropped, channels.blocks)
    tasks = layer_tasks(plan)
    if data is None:
        fits = _fitted_from_weights(model, plan, tasks, on_layer, advance)
    else:
        context, context_notes = open_build(model, plan, tasks, data, has_hook=on_layer is not None)
        fits, fit_notes = fit_in_order(context, model, on_layer=on_layer, journal=journal, advance=advance)
        notes = (*notes, *context_notes, *fit_notes)
    notes = (*notes, *_own_classes_note(model))
    for name, module in model.named_modules():
        # The factors of a pair are new; they take the mode of the layer that they replace.
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], module.training))
    flatten_recurrent(model)
    return Applied(model=model, plan=plan, fits=fits, notes=notes)


def _is_own(module: nn.Module) -> bool:
    return isinstance(module, Bypass | SlimAttention) or isinstance(
        vars(module).get("forward"), FollowedForward
    )


def _own_classes_note(model: nn.Module) -> tuple[Note, ...]:
    """What the user should know of modules that torch has no class for."""
    names = [name for name, module in model.named_modules() if _is_own(module)]
    if not names:
        return ()
    text = (
        f"{listed(names, 4)}: torch has no module for what is left of them, so a pickle of the model needs "
        "slimrank where it is read (a file that is exported does not)"
    )
    return (Note(where="apply", text=text),)


def _stale_notes(sizes: Sequence[StaleSize]) -> list[Note]:
    """One on each attribute of a kind that methods beside the forward read as a size."""
    by_kind: dict[tuple[str, int, int, tuple[str, ...]], list[str]] = {}
    for size in sizes:
        by_kind.setdefault((size.path, size.value, size.fitting, size.methods), []).append(size.module)
    return [
        Note(
            where="apply",
            text=f"{path} is still {value} in {listed([name or _ROOT for name in modules])}, where {fitting} "
            f"channels are left: the forward does without it, but {listed(methods)} may read it as a size; "
            f"set it to {fitting} before you call that, if so",
        )
        for (path, value, fitting, methods), modules in by_kind.items()
    ]


def _without_failures(plan: Plan, data: Data) -> tuple[Plan, tuple[Note, ...]]:
    """The plan, less the groups that cannot go from the original exactly, and a note on each of these."""
    if not plan.groups:
        return plan, ()
    step = plan.steps[-1]
    feed = data.feed
    batches = [
        batch if batch.is_whole else take_samples(batch, range(min(_N_CHECK_SAMPLES, batch.n_samples)))
        for batch, _ in zip(feed.stream(feed.held_out), range(_N_CHECK_BATCHES), strict=False)
    ]
    failures = slim_failures(data.original, step.structure.channels, dict(plan.groups), batches)
    if not failures:
        return plan, ()
    groups = {name: units for name, units in plan.groups.items() if name not in failures}
    # What was predicted and promised belonged to the plan that cannot be built.
    plan = replace(
        plan,
        steps=(*plan.steps[:-1], replace(step, groups=groups)),
        select="manual",
        damage=None,
        score_loss=None,
        gap=None,
        budgets={},
        asked={},
        latency=None,
        fixed={},
        activations=None,
    )
    return plan, tuple(
        Note(where=name, text=f"the plan slims it, but its channels all stay, so more is left: {problem}")
        for name, problem in failures.items()
    )


def _fitted_from_weights(
    model: nn.Module,
    plan: Plan,
    tasks: Mapping[str, LayerTask],
    on_layer: OnLayer | None,
    advance: Callable[[str], None],
) -> dict[str, str]:
    """Replaces every layer by its plain decomposition (in place); "weights" by layer name."""
    fits = {}
    for name, task in tasks.items():
        layer = named_layer(model, name)
        fit = fit_from_weights(task, layer, has_bias=plan.has_bias)
        install(model, task, layer, fit)
        fits[name] = fit.kind
        call_hook(on_layer, model, name)
        advance(name)
    return fits


def empty_replacement_in(step: Step, name: str, layer: nn.Module, *, has_bias: bool) -> nn.Sequential:
    """The container that takes the place of a layer, its parameters on the meta device.

    Args:
        step: of a plan.
        name: a layer that the step sets.
        layer: its module, channels of the step gone.
        has_bias: whether the last factor has a bias.

    Returns:
        Its modules in a container.
    """
    spec = slimmed_spec(step.structure.layers[name], step.structure.channels, step.groups)
    return empty_replacement(spec, step.settings[name], has_bias=has_bias, layer=layer)
