# SPDX-License-Identifier: Apache-2.0
"""What is fixed before the first layer is fitted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank.calibrate import Feed, collect_moments, evenly_spaced
from slimrank.capture import Epilogue
from slimrank.cost import SAMPLING, bytes_text, fitting_bytes
from slimrank.fitting._data import Data
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.forward import Batch
from slimrank.linalg import Moments
from slimrank.plan import Plan
from slimrank.records import LayerSpec, Note

# Fitted to so many samples even where their activations exceed the memory budget: a fit to fewer says little.
_MIN_LIVE_SAMPLES = 32
# Each forward is a thread in each network, and a thread costs memory. The note below says 64.
_MAX_FORWARDS = 64
# Micro-batches of the study per forward. Without a backward pass a forward may hold more samples, and fewer
# threads need less memory; a larger forward is alive at once with all it holds.
_FORWARDS_PER_MICRO = 4
# Samples of a forward above which micro-batches are left as they are: larger tensors leave the cache.
_ENOUGH_SAMPLES = 128
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
        batches: forwards of both networks: the first are fitted to, the others are held out.
        n_fit_batches: how many of them are fitted to.
        n_fit_samples: samples in these.
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
    batches: Sequence[Batch]
    n_fit_batches: int
    n_fit_samples: int
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
    fit, held_out, sample_notes = _live_samples(data.feed, data.seen.paused)
    feed = replace(data.feed, micro_size=forward_size(data.feed))
    fit_batches = list(feed.stream(fit))
    batches = (*fit_batches, *feed.stream(held_out))
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
    may_interleave = not tasks or data.seen.may_interleave(batches)
    needed = _most_while_paused(
        data.seen.paused, [task.spec for task in tasks.values()], len(fit) + len(held_out), len(data.feed.fit)
    )
    fits_at_once = needed <= data.budgets.fits
    context = BuildContext(
        original_layers=dict(data.original.named_modules()),
        tasks=tasks,
        data=data,
        has_bias=plan.has_bias,
        layer_indices=layer_indices,
        batches=batches,
        n_fit_batches=len(fit_batches),
        n_fit_samples=len(fit),
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


def forward_size(feed: Feed) -> int:
    """Samples per forward at most, while layers are fitted; 0 where batches cannot be cut."""
    return max(feed.micro_size, min(_FORWARDS_PER_MICRO * feed.micro_size, _ENOUGH_SAMPLES))


def _one_by_one_to_save(n_bytes: int) -> Note:
    return Note(
        where="apply",
        text="batches were run one after the other, from the start for every layer: all of them at one depth "
        f"of both networks would have taken {bytes_text(n_bytes)} (estimated), more than memory= leaves; "
        "slower, equally exact",
    )


def _most_while_paused(
    paused: Mapping[str, int], specs: Iterable[LayerSpec], n_samples: int, n_fit: int
) -> int:
    """Memory of paused forwards and a fit, at the layer where that is most."""
    return max(
        (n_samples * paused.get(spec.name, 0) + fitting_bytes(spec, n_fit) for spec in specs), default=0
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


def _live_samples(
    feed: Feed, paused: Mapping[str, int]
) -> tuple[Sequence[int], Sequence[int], tuple[Note, ...]]:
    """Samples to fit to and held-out ones that can be held alive at one depth of both networks.

    The share of held-out ones is kept. Then what the user should know.
    """
    largest = max(paused.values(), default=0)
    limit = max(_MIN_LIVE_SAMPLES, SAMPLING.live_activations // max(largest, 1))
    limit = min(limit, _MAX_FORWARDS * max(feed.micro_size, 1))
    if feed.n_samples <= limit:
        return feed.fit, feed.held_out, ()
    n_fit = max(1, round(limit * len(feed.fit) / feed.n_samples))
    note = Note(
        where="apply",
        text=f"layers were fitted to {n_fit} of {len(feed.fit)} samples, which keeps what is alive at one "
        f"depth below {bytes_text(SAMPLING.live_activations)} (estimated), and forwards below 64",
    )
    held_out = evenly_spaced(feed.held_out, max(1, limit - n_fit))
    return evenly_spaced(feed.fit, n_fit), held_out, (note,)


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
