# SPDX-License-Identifier: Apache-2.0
"""What is evaluated for a table of scores: layers with their pairs, and slimmed groups, fitted one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor, nn

from slimrank._study import Study
from slimrank.calibrate import Collecting
from slimrank.cost import carries_mean
from slimrank.fitting import state_fits
from slimrank.forward import Batch, run, watch_modules
from slimrank.methods import Target, weights_target
from slimrank.recipes._score_candidates import Candidate
from slimrank.records import ChannelMap, GroupSpec, LayerSpec
from slimrank.scoring import GroupTrial, LayerTrial
from slimrank.surgery import bias_of, dense_weight
from slimrank.survey import (
    GroupSurvey,
    Session,
    fits_alone,
    group_chunks,
    independent_pair,
    layer_chunks,
    target_of,
)


def pair_trials(
    session: Session,
    grams: Mapping[str, Tensor],
    candidates: Mapping[int, tuple[LayerSpec, Sequence[Candidate]]],
    tell: Callable[[str], None],
) -> Iterator[LayerTrial]:
    """Fitted factors, layer after layer, each decomposed once.

    Args:
        session: model and data.
        grams: (C_out, C_out) second moments of output gradients by layer; may lack some.
        candidates: each layer with what is tried of it, by its index in the study.
        tell: told what goes on beside the evaluations.

    Yields:
        What takes the place of a layer.
    """
    by_name = {spec.name: of_layer for spec, of_layer in candidates.values()}
    specs = {index: spec for index, (spec, _) in candidates.items()}
    for spec, layer, target in _targets(session, grams, specs, tell):
        for candidate in by_name[spec.name]:
            pair, bias = independent_pair(spec, layer, candidate.setting, target)
            has_bias = carries_mean(
                has_bias=bias_of(layer) is not None, plan_has_bias=session.options.has_bias
            )
            yield LayerTrial(
                spec=spec,
                method=candidate.setting.method,
                keep_ratio=candidate.keep_ratio,
                pair=pair,
                bias=bias if has_bias else None,
            )


def _targets(
    session: Session,
    grams: Mapping[str, Tensor],
    specs: Mapping[int, LayerSpec],
    tell: Callable[[str], None],
) -> Iterator[tuple[LayerSpec, nn.Module, Target]]:
    """Each layer with its module and what pairs of it are fitted to."""
    if session.options.data_free:
        for spec in specs.values():
            layer = session.original.get_submodule(spec.name)
            yield spec, layer, weights_target(dense_weight(layer))
        return
    for chunk in layer_chunks(session, specs, _announcing(tell, "inputs of the layers")):
        for index in chunk.indices:
            spec = specs[index]
            layer = session.original.get_submodule(spec.name)
            yield spec, layer, target_of(spec, layer, chunk.moments.pop(spec.name), grams)


def _announcing(tell: Callable[[str], None], text: str) -> Collecting:
    """Tells what goes on whenever moments are gathered; progress counts evaluations, not these samples."""

    @contextmanager
    def collecting() -> Iterator[Callable[[int], None]]:
        tell(text)
        yield lambda _n_samples: None

    return collecting


def group_trials(
    session: Session, study: Study, counts: Mapping[str, Sequence[int]], tell: Callable[[str], None]
) -> Iterator[GroupTrial]:
    """Slimmed groups, one after the other; what reads them is fitted to the original's inputs.

    Args:
        session: model and data.
        study: of the session.
        counts: numbers of units to try, by group.
        tell: told what goes on beside the evaluations.

    Yields:
        Units that stay of one group, and what its consumers become.
    """
    if not counts:
        return
    survey = GroupSurvey(
        session=session,
        layers=study.structure.layers,
        channels=study.structure.channels,
        grams=study.grams,
    )
    curves = {curve.group: curve for curve in study.group_curves}
    order = _call_order(session.original, session.captured.sample)
    groups = {index: group for index, group in survey.slimmable.items() if group.name in counts}
    collecting = _announcing(tell, "inputs of the layers that read the groups")
    for chunk in group_chunks(survey, groups, collecting):
        for group in (groups[index] for index in chunk.indices):
            channels = _map_of_group(survey.channels, group)
            for count in counts[group.name]:
                kept = curves[group.name].channels_kept(count)
                yield GroupTrial(
                    name=group.name,
                    kept=kept,
                    channels=channels,
                    fits=fits_alone(survey, group.name, kept, chunk.moments),
                    start=_first_producer(channels, group, order),
                    states=state_fits(session.original, channels, {group.name: kept}, chunk.moments),
                )


def _map_of_group(channels: ChannelMap, group: GroupSpec) -> ChannelMap:
    """One group, and the tensors that it touches: what is sent to other processes."""
    tensors = {
        name: replace(tensor, axes=axes)
        for name, tensor in channels.tensors.items()
        if (axes := tuple(axis for axis in tensor.axes if axis.group == group.name))
    }
    return ChannelMap(groups={group.name: group}, tensors=tensors)


def _call_order(model: nn.Module, batch: Batch) -> Mapping[str, int]:
    """When each module is first called in a forward; those that are not called are left out."""
    order: dict[str, int] = {}

    def enter(name: str, _args: object, _kwargs: object) -> None:
        order.setdefault(name, len(order))

    modules = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    with watch_modules(modules, enter=enter), torch.no_grad():
        run(model, batch)
    return order


def _first_producer(channels: ChannelMap, group: GroupSpec, order: Mapping[str, int]) -> str | None:
    """The module at which forwards with a slimmed group may start; None where they start at the inputs.

    It is the innermost module that is called and holds every producer, or is the only one: which of several
    producers comes first may depend on the samples. All else that changes reads what they make; where some of
    it is called earlier as well, on something else, forwards start at the inputs.
    """
    paths = [name.split(".") for name in group.producers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    start = _innermost_called(".".join(parts[0] for parts in shared), order)
    owners = {_innermost_called(name.rpartition(".")[0], order) for name in channels.tensors}
    if not start or any(not owner or order[owner] < order[start] for owner in owners):
        return None
    return start


def _innermost_called(name: str, order: Mapping[str, int]) -> str:
    """A module, or the innermost one around it that is called; "" for the model itself."""
    while name and name not in order:
        name = name.rpartition(".")[0]
    return name
