# SPDX-License-Identifier: Apache-2.0
"""What is fixed before the first layer is fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank.calibrate import collect_moments
from slimrank.capture import Epilogue
from slimrank.cost import bytes_text, fitting_bytes
from slimrank.fitting._alive_batches import AliveBatches, choose_alive
from slimrank.fitting._data import Data
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.linalg import Moments
from slimrank.plan import Plan
from slimrank.records import Note

_ONE_BY_ONE = Note(
    where="apply",
    text="the model keeps state on itself during a forward, so batches were run one after "
    "the other, from the start for every layer: slower, equally exact",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuildContext:
    """What is fixed before the first layer is fitted, and the same for all layers.

    Attributes:
        original_layers: modules of the original model by name.
        tasks: what is asked of every layer that is fitted, by its name, in execution order.
        data: what fits draw on.
        has_bias: whether the plan counts a bias where the layer has none.
        layer_indices: of every layer in the study, by its name; rows are drawn by it.
        alive: forwards of both networks that reach each layer, by its name; a layer is taken out once it is
            fitted, so that batches go that none of the others needs.
        shared_moments: of the inputs of layers that are called several times, over all calls in the original.
        epilogues: what follows layers, where fits may know of it.
        can_interleave: whether forwards may pause side by side; else they run one after the other.
        known_parameters: of the layers, as they were before ``on_layer`` was first called; empty without it.
    """

    original_layers: Mapping[str, nn.Module]
    tasks: Mapping[str, LayerTask]
    data: Data
    has_bias: bool
    layer_indices: Mapping[str, int]
    alive: dict[str, AliveBatches]
    shared_moments: Mapping[str, Moments]
    epilogues: Mapping[str, Epilogue]
    can_interleave: bool
    known_parameters: Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingLayer:
    """One layer that is about to be fitted.

    Attributes:
        task: what is asked of it.
        original: the layer in the original model.
        current: the layer in the new model: slimmed, not yet fitted.
        is_changed: whether ``on_layer`` has changed the latter, which is then fitted to its own output.
    """

    task: LayerTask
    original: nn.Module
    current: nn.Module
    is_changed: bool


def open_build(
    model: nn.Module, plan: Plan, tasks: Mapping[str, LayerTask], data: Data, *, has_hook: bool
) -> tuple[BuildContext, tuple[Note, ...]]:
    """Looks at the original model once, before layers are fitted.

    Args:
        model: the new model, slimmed, no layer fitted yet.
        plan: its last step is built.
        tasks: of this plan.
        data: what fits draw on.
        has_hook: whether ``on_layer`` is called: what it changes is kept, so nothing is made up for then.

    Returns:
        The context, and what the user should know.
    """
    specs = plan.steps[-1].structure.layers if plan.steps else {}
    alive, sample_notes = choose_alive(data.feed, list(specs), tasks, data.seen.paused)
    batches = alive[next(iter(tasks))].batches if tasks else ()
    layer_indices = {name: index for index, name in enumerate(specs)}
    shared_moments = _shared_moments(tasks, layer_indices, data)
    # An epilogue follows one call of a layer, a transposed convolution only once its taps are summed, and the
    # input matrix of a recurrent layer never: gates do.
    one_call = [
        name
        for name, task in tasks.items()
        if name not in shared_moments and not task.is_transposed and not task.spec.is_recurrent
    ]
    epilogues: Mapping[str, Epilogue] = {}
    if data.sequential and one_call and not has_hook:
        found = data.seen.epilogues(batches)
        epilogues = {name: found[name] for name in one_call if name in found}
    gives_up = len({found.n_samples for found in alive.values()}) > 1
    may_interleave = data.seen.may_interleave(batches, gives_up=gives_up)
    needed = max(
        (
            alive[name].n_samples * data.seen.paused.get(name, 0)
            + fitting_bytes(task.spec, len(data.feed.fit))
            for name, task in tasks.items()
        ),
        default=0,
    )
    fits_at_once = needed <= data.budgets.fits
    context = BuildContext(
        original_layers=dict(data.original.named_modules()),
        tasks=tasks,
        data=data,
        has_bias=plan.has_bias,
        layer_indices=layer_indices,
        alive=alive,
        shared_moments=shared_moments,
        epilogues=epilogues,
        can_interleave=may_interleave and fits_at_once,
        known_parameters=(
            {name: _copied_parameters(model.get_submodule(name)) for name in tasks} if has_hook else {}
        ),
    )
    run_notes = () if may_interleave else (_ONE_BY_ONE,)
    if may_interleave and not fits_at_once:
        run_notes = (_one_by_one_to_save(needed),)
    return context, (*sample_notes, *run_notes)


def _one_by_one_to_save(n_bytes: int) -> Note:
    return Note(
        where="apply",
        text="batches were run one after the other, from the start for every layer: all of them at one depth "
        f"of both networks would have taken {bytes_text(n_bytes)} (estimated), more than memory= leaves; "
        "slower, equally exact",
    )


def pending_layer(context: BuildContext, name: str, current: nn.Module) -> PendingLayer:
    """A layer whose turn has come.

    Args:
        context: of the build.
        name: of the layer.
        current: its module in the new model.

    Returns:
        The layer, compared with what it was before ``on_layer`` was first called.
    """
    known = context.known_parameters.get(name)
    return PendingLayer(
        task=context.tasks[name],
        original=context.original_layers[name],
        current=current,
        is_changed=known is not None and not _are_same_tensors(_copied_parameters(current), known),
    )


def _shared_moments(
    tasks: Mapping[str, LayerTask], layer_indices: Mapping[str, int], data: Data
) -> Mapping[str, Moments]:
    """Moments of layers that are called several times, over all their calls in the original."""
    shared = {layer_indices[name]: task.spec for name, task in tasks.items() if len(task.spec.calls) > 1}
    if not shared:
        return {}
    return collect_moments(data.original, data.feed, shared, seed=data.seed, advance=lambda _n: None)


def _copied_parameters(layer: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in layer.parameters()]


def _are_same_tensors(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors, others, strict=True)
    )
