# SPDX-License-Identifier: Apache-2.0
"""Model + plan -> new model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from slimrank.channels import slim_failures
from slimrank.cost import slimmed_spec
from slimrank.fitting._data import Data, OnLayer, call_hook, check_on_layer
from slimrank.fitting._goals import fit_from_weights
from slimrank.fitting._install import install
from slimrank.fitting._journal import Journal
from slimrank.fitting._layer_tasks import work_of
from slimrank.fitting._sequential import Builder
from slimrank.methods import empty_replacement as replacement_without_values
from slimrank.plan import Plan, Step
from slimrank.records import Note
from slimrank.surgery import copy_model, drop_blocks, slim

_VERIFIED = 2


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
            fit = fit_from_weights(one, layer, has_bias=plan.has_bias)
            install(working, one, layer, fit)
            fits[name] = fit.kind
            call_hook(on_layer, working, name)
            advance(name)
    else:
        builder = Builder(working, plan, work, data, notes, knows_tails=on_layer is None)
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
        has_bias: whether the last factor has a bias.

    Returns:
        Its modules in a container.
    """
    spec = slimmed_spec(step.structure.layers[name], step.structure.channels, step.groups)
    return replacement_without_values(spec, step.settings[name], has_bias=has_bias)
