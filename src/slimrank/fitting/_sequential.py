# SPDX-License-Identifier: Apache-2.0
"""Layers fitted in execution order to what reaches them: the loop."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

from torch import nn

from slimrank._names import listed
from slimrank.cost import fitting_bytes
from slimrank.fitting._context import BuildContext, pending_layer
from slimrank.fitting._data import OnLayer, call_hook
from slimrank.fitting._fit import Fit
from slimrank.fitting._fit_layer import fit_layer
from slimrank.fitting._gather import gather, run_to_layer
from slimrank.fitting._install import checked_layer, fill, install
from slimrank.fitting._journal import FitJournal, fit_from_journal, fit_to_tensors
from slimrank.forward import Lockstep, OneByOne, Trimmer, out_of_memory_at
from slimrank.methods import open_container
from slimrank.records import Note
from slimrank.surgery import named_layer, replace_module

# Name of a layer that was just fitted, its fit, and whether this is new: not read from a journal.
_Fits = Generator[tuple[str, Fit, bool], None, None]


def fit_in_order(
    context: BuildContext,
    model: nn.Module,
    *,
    on_layer: OnLayer | None,
    journal: FitJournal | None,
    advance: Callable[[str], None],
) -> tuple[dict[str, str], tuple[Note, ...]]:
    """Fits every layer to what reaches it in the original and in the new model.

    Args:
        context: of the build.
        model: the new model, slimmed, in eval mode; its layers are replaced or given new values (in place).
        on_layer: called as ``on_layer(model, layer_name)`` after each layer.
        journal: fitted layers of an earlier, killed run, and where to keep new ones.
        advance: told every layer that is done.

    Returns:
        "sequential", "independent" or "weights" by layer name, and what the user should know.
    """
    kinds: dict[str, str] = {}
    notes: list[Note] = []
    unpaired: list[str] = []
    trim = Trimmer(context.data.budgets.freed)
    steps = _in_lockstep if on_layer is None else _between_hooks
    # Closed even where the hook fails: the paused forwards have to end before the caller sees the error.
    with (
        out_of_memory_at(
            lambda: f"layer {next((name for name in context.tasks if name not in kinds), '')!r}"
        ),
        contextlib.closing(steps(context, model, journal)) as fitted,
    ):
        for name, fit, is_new in fitted:
            if is_new and journal is not None:
                journal.store(name, fit_to_tensors(fit))
            if is_new and fit.kind == "weights":
                notes.append(_unreached(name))
            if fit.is_unpaired:
                unpaired.append(name)
            kinds[name] = fit.kind
            del fit, context.alive[name]
            trim.after(fitting_bytes(context.tasks[name].spec))
            call_hook(on_layer, model, name)
            advance(name)
    if unpaired:
        notes.append(_unpaired(unpaired))
    return kinds, tuple(notes)


def _in_lockstep(context: BuildContext, model: nn.Module, journal: FitJournal | None) -> _Fits:
    """Fits layers while the forwards of both models are paused at them: each batch runs once in all."""
    names = list(context.tasks)
    layers = {name: named_layer(model, name) for name in names}
    # The containers stand in place before the forwards start, so that a paused call finds its new content.
    for name, task in context.tasks.items():
        if task.setting is not None:
            replace_module(model, name, open_container(layers[name]))
    # The original stops behind each layer: what the layer gives there is what its fit shall give.
    before = _forwards(context, context.data.original, names, keep_outputs=True)
    after = _forwards(context, model, names)
    with before, after:
        for name, following in pairwise([*names, ""]):
            layer = pending_layer(context, name, layers[name])
            # The fit of the layer before is let go here, before the forwards need memory.
            fit = fit_from_journal(journal, layer.task)
            is_new = fit is None
            # A layer with a stored fit is run up to as well, since forwards cannot skip it.
            batches = run_to_layer(before, after, name)
            gathered = gather(context, layer, batches) if fit is None else None
            # The inputs are freed before the fit needs memory, and before the original goes on.
            del batches
            if fit is None:
                if following:
                    # The original does not wait for the fit.
                    before.start(following)
                fit = fit_layer(context, layer, gathered)
            fill(model, layer.task, layer.current, fit)
            yield name, fit, is_new


def _between_hooks(context: BuildContext, model: nn.Module, journal: FitJournal | None) -> _Fits:
    """Fits layers of a model that may change after each: it runs from the start for every layer."""
    names = list(context.tasks)
    with _forwards(context, context.data.original, names, keep_outputs=True) as before:
        for name, task in context.tasks.items():
            # The hook may have trained it.
            model.eval()
            layer = pending_layer(context, name, checked_layer(model.get_submodule(name), task))
            stored_fit = fit_from_journal(journal, task)
            with _forwards(context, model, [name]) as after:
                batches = run_to_layer(before, after, name)
                fit = stored_fit or fit_layer(context, layer, gather(context, layer, batches))
            install(model, task, layer.current, fit)
            yield name, fit, stored_fit is None


def _forwards(
    context: BuildContext, model: nn.Module, stops: Sequence[str], *, keep_outputs: bool = False
) -> Lockstep | OneByOne:
    """Forwards of a model over the batches that reach its stops, each to the last one that it reaches.

    They read the shortcuts of layers on the way.
    """
    # A shortcut from inside a block that is gone cannot be read in the new model.
    present = {name for name, _ in model.named_modules()}
    shortcuts = {
        name: epilogue.shortcut
        for name, epilogue in context.epilogues.items()
        if epilogue.shortcut is not None and epilogue.shortcut.source in present
    }
    kind = Lockstep if context.can_interleave else OneByOne
    ends = {batch: name for name in stops for batch in context.alive[name].batches}
    return kind(model, list(ends), stops, shortcuts, ends=list(ends.values()), keep_outputs=keep_outputs)


def _unpaired(names: Sequence[str]) -> Note:
    return Note(
        where="apply",
        text=f"{listed(names)}: other rows reach them in the new model than in the original (a router "
        "chose other experts), which cannot be paired, so they were fitted to the original's inputs",
    )


def _unreached(name: str) -> Note:
    return Note(
        where=name,
        text="no calibration sample reached it; its factors come from the weights alone",
    )
