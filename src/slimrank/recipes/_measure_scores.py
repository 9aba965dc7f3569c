# SPDX-License-Identifier: Apache-2.0
"""The eval-score table, measured: every layer and group at every candidate, the rest as it is."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import chain, takewhile
from math import floor
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from slimrank._errors import OptionError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._progress import Phases
from slimrank._study import Study, session_of
from slimrank.calibrate import Collecting
from slimrank.cost import FORMS, MEMORY
from slimrank.forward import Batch, outside_inference_mode, run, watch_modules
from slimrank.methods import Target, weights_target
from slimrank.records import (
    PRUNING,
    ChannelMap,
    Curve,
    Form,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    Method,
    Setting,
)
from slimrank.scores import (
    AnyTrial,
    Evaluator,
    GroupTrial,
    LayerTrial,
    ScoreFn,
    ScoreJournal,
    Scores,
    count_workers,
    evaluate_with_workers,
)
from slimrank.surgery import dense_weight, quiet_copy
from slimrank.survey import (
    GroupSurvey,
    Session,
    fits_alone,
    group_chunks,
    independent_pair,
    layer_chunks,
    target_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """What shall be tried of one layer."""

    method: Method
    form: Form
    rank: int
    keep_ratio: float


@outside_inference_mode
def measure_scores(
    study: Study,
    score_fn: ScoreFn,
    *,
    methods: Sequence[Method] | None = None,
    layers: Sequence[str] | None = None,
    candidates: int | Sequence[float] = 10,
    path: str | os.PathLike[str] | None = None,
    lower_is_better: bool = False,
    workers: int = 1,
    prefix_cache: int = MEMORY.prefix_cache,
    progress: bool = True,
) -> Scores:
    """Scores of the whole model, each with one layer compressed or one channel group slimmed: AIMET's table.

    Factors, and the layers that read a slimmed group, are fitted without labels, as a plan's would be; labels
    are needed by the score function only.

    Args:
        study: with its model.
        score_fn: of a model in eval mode; returns one number. It must leave the model as it was.
        methods: to try; None for those of the study.
        layers: names or globs of layers to try, and of groups or the layers that make them; None for all that
            can be compressed.
        candidates: N for the ratios k / N, k = 1 to N - 1, of each layer's MACs and of each group's units, or
            the ratios themselves, in (0, 1). Each is tried at the largest rank, and the largest number of
            units, within it; those below what a layer can reach at its cheapest pair.
        path: of a JSON file, written after every evaluation; if it exists, the table in it is gone on with.
        lower_is_better: the score is a loss or an error rate.
        workers: evaluations at a time, in processes of joblib; 1 for this process alone, or for what an
            active ``joblib.parallel_config`` says. Scores do not depend on it.
        prefix_cache: bytes of outputs of unchanged layers held at most, so that forwards on inputs that come
            again start at the layer under test; 0 for none. Scores do not depend on it.
        progress: show a bar on stderr.

    Returns:
        The table.

    Raises:
        ScoreError: ``score_fn`` fails, returns no finite number or changes the model, or the file holds
            another table.
        StudyError: the study was loaded without a model.
        UnknownNameError: a method that the study did not measure, or a name that does not exist.
        OptionError: another option out of range, or a layer or group that cannot be compressed.
        FileError: ``path`` cannot be read or written.

    Example:
        >>> import torch, slimrank as sr
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
        >>> wanted = model(x).argmax(1)
        >>> study = sr.study(model, [x], progress=False)
        >>> def accuracy(model: torch.nn.Module) -> float:
        ...     return float((model(x).argmax(1) == wanted).float().mean())
        >>> scores = measure_scores(study, accuracy, candidates=4, progress=False)
        >>> scores
        Scores(8 scores of 2 layers and 1 group, baseline 1)
        >>> study.plan(macs=0.8, select="greedy", scores=scores).keep_ratio("macs") <= 0.8
        True
    """
    session = session_of(study)
    tried = _methods(study, methods)
    ratios = _ratios(candidates)
    _check_numbers(score_fn, workers, prefix_cache)
    chosen, slimmed = _chosen(study, tried, layers)
    journal = ScoreJournal(
        path,
        fingerprint=study.fingerprint,
        methods=tried,
        candidates=ratios,
        lower_is_better=lower_is_better,
        layers=study.structure.layers,
        groups=study.structure.channels.groups,
    )
    todo: dict[int, tuple[LayerSpec, list[_Point]]] = {}
    for index, spec in enumerate(study.layers):
        known = journal.known(spec.name)
        points = [] if spec.name not in chosen else _points(spec, study.curves, tried, ratios)
        points = [point for point in points if (point.form, point.rank) not in known]
        if points:
            todo[index] = (spec, points)
    counts: dict[str, list[int]] = {}
    for curve in study.group_curves:
        scored = journal.known_counts(curve.group)
        own = [count for count in _counts(curve, ratios) if count not in scored]
        if own and curve.group in slimmed:
            counts[curve.group] = own
    n_workers = count_workers(workers)
    model = quiet_copy(session.original)
    evaluator = Evaluator(model, score_fn, max_bytes=prefix_cache if n_workers == 1 else 0)
    total = sum(len(points) for _, points in todo.values()) + sum(map(len, counts.values()))
    total += not journal.is_started
    with Phases(shown=progress).phase("scores", total) as advance:
        if not journal.is_started:
            advance(0, "the untouched model")
            journal.start(evaluator.baseline())
            advance(1, "")
        trials: Iterator[AnyTrial] = chain(
            _trials(session, study.grams, todo, lambda text: advance(0, text)),
            _group_trials(session, study, counts, lambda text: advance(0, text)),
        )
        results: Generator[tuple[AnyTrial, float], None, None]
        if n_workers == 1:
            results = ((trial, evaluator.score(trial)) for trial in trials)
        else:
            results = evaluate_with_workers(model, score_fn, trials, workers=workers, max_bytes=prefix_cache)
        with closing(results):
            for trial, score in results:
                entry = trial.entry(score)
                journal.add(trial.name, entry)
                advance(1, f"{trial.name} {entry.form} {entry.rank}: {score:.4g}")
    return journal.finished()


def _methods(study: Study, methods: Sequence[Method] | None) -> tuple[Method, ...]:
    if methods is None:
        return study.methods
    if isinstance(methods, str) or not methods:
        raise OptionError(
            f"methods={methods!r} names no method; give a tuple such as ({study.methods[0]!r},)"
        )
    for method in methods:
        if method not in study.methods:
            raise UnknownNameError(
                f"method {method!r} was not measured by the study; {nearest(str(method), study.methods)}"
            )
    return tuple(method for method in study.methods if method in methods)


def _ratios(candidates: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(candidates, int) and not isinstance(candidates, bool):
        if candidates < 2:
            raise OptionError(
                f"candidates={candidates}; give a whole number of at least 2, or a list of ratios"
            )
        return tuple(k / candidates for k in range(1, candidates))
    if not isinstance(candidates, Sequence) or isinstance(candidates, str) or not candidates:
        raise OptionError(
            f"candidates={candidates!r}; give a whole number such as 10, or ratios such as (0.25, 0.5)"
        )
    for ratio in candidates:
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 < float(ratio) < 1:
            raise OptionError(f"candidates: {ratio!r} is no share of a layer; give ratios in (0, 1)")
    return tuple(sorted({float(ratio) for ratio in candidates}))


def _check_numbers(score_fn: ScoreFn, workers: int, prefix_cache: int) -> None:
    if not callable(score_fn):
        raise OptionError(
            f"score_fn is a {type(score_fn).__name__}; give a function of a model that returns a number"
        )
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise OptionError(f"workers={workers!r}; give a whole number of at least 1")
    if not isinstance(prefix_cache, int) or isinstance(prefix_cache, bool) or prefix_cache < 0:
        raise OptionError(f"prefix_cache={prefix_cache!r}; give a number of bytes, or 0 for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Something that may be tried: a layer, or a group.

    Attributes:
        name: of it.
        called: the names by which people may mean it.
        reason: why it cannot be tried; None where it can.
    """

    name: str
    called: tuple[str, ...]
    reason: str | None


def _chosen(
    study: Study, methods: Sequence[Method], layers: Sequence[str] | None
) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the layers and of the groups to try."""
    tables = [_layers_to_try(study.layers, methods), _groups_to_try(study, methods)]
    if layers is None:
        patterns: tuple[str, ...] = ("*",)
    else:
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        _check_patterns(layers, patterns, [one for table in tables for one in table])
    found = [
        frozenset(
            one.name for one in table if one.reason is None and any(_is_meant(one, p) for p in patterns)
        )
        for table in tables
    ]
    return found[0], found[1]


def _layers_to_try(specs: Sequence[LayerSpec], methods: Sequence[Method]) -> list[_Target]:
    factored = [method for method in methods if method in FORMS]
    return [
        _Target(
            name=spec.name,
            called=(spec.name,),
            reason=None
            if set(spec.methods) & set(factored)
            else spec.reason or f"{listed(methods)} does not apply to it",
        )
        for spec in specs
    ]


def _groups_to_try(study: Study, methods: Sequence[Method]) -> list[_Target]:
    if PRUNING not in methods:
        return []
    offered = {curve.group for curve in study.group_curves if len(curve.kept)}
    return [
        _Target(
            name=group.name,
            called=(group.name, *group.producers),
            reason=None if group.name in offered else group.reason or "no channel of it can go",
        )
        for group in study.structure.channels.groups.values()
    ]


def _is_meant(one: _Target, pattern: str) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in one.called)


def _check_patterns(asked: Sequence[str], patterns: Sequence[str], targets: Sequence[_Target]) -> None:
    """Refuses what means nothing, or nothing that can be tried."""
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptionError(f"layers={asked!r}; give names or globs of layers, or None for all")
    for pattern in patterns:
        found = [one for one in targets if _is_meant(one, pattern)]
        if not found:
            names = dict.fromkeys(name for one in targets for name in one.called)
            raise UnknownNameError(f"layers: {pattern!r} matches no layer; {nearest(pattern, names)}")
        if all(one.reason is not None for one in found):
            raise OptionError(
                f"layers: {pattern!r} matches {found[0].name!r}, which cannot be compressed: "
                f"{found[0].reason}"
            )


def _counts(curve: GroupCurve, ratios: Sequence[float]) -> list[int]:
    """Numbers of units to try of one group, ascending: the largest offered within each candidate.

    Where none is within a candidate, the smallest there is.
    """
    # Through its decimal digits, so that 0.7 means seven tenths.
    limits = [floor(Fraction(repr(ratio)) * len(curve.order)) for ratio in ratios]
    places = np.maximum(np.searchsorted(curve.kept, limits, side="right") - 1, 0)
    return [int(curve.kept[place]) for place in np.unique(places)]


def _points(
    spec: LayerSpec, curves: Sequence[Curve], methods: Sequence[Method], ratios: Sequence[float]
) -> list[_Point]:
    """What to try of one layer: per method and candidate the largest rank within it, cheapest first.

    Of several forms the one with the lowest error is taken, as for anchors; where no rank is within a
    candidate, the cheapest pair there is.
    """
    points: dict[tuple[Form, int], _Point] = {}
    for method in methods:
        own = [curve for curve in curves if curve.layer == spec.name and curve.method == method]
        for ratio in ratios if own and spec.macs else ():
            offers = []
            for curve in own:
                # Through its decimal digits, so that 0.7 means seven tenths.
                limit = floor(Fraction(repr(ratio)) * spec.macs)
                place = int(np.searchsorted(curve.macs, limit, side="right")) - 1
                offers.append((curve, place))
            within = [
                (float(curve.error[place]), at) for at, (curve, place) in enumerate(offers) if place >= 0
            ]
            cheapest = min((int(curve.macs[0]), float(curve.error[0]), at) for at, curve in enumerate(own))
            at = min(within)[1] if within else cheapest[-1]
            curve, place = own[at], max(offers[at][1], 0)
            rank = int(curve.ranks[place])
            points[curve.form, rank] = _Point(
                method=method, form=curve.form, rank=rank, keep_ratio=float(curve.macs[place] / spec.macs)
            )
    return list(points.values())


def _trials(
    session: Session,
    grams: Mapping[str, Tensor],
    todo: Mapping[int, tuple[LayerSpec, Sequence[_Point]]],
    tell: Callable[[str], None],
) -> Iterator[LayerTrial]:
    """Fitted factors, layer after layer, each decomposed once."""
    points = {spec.name: own for spec, own in todo.values()}
    for spec, layer, target in _targets(session, grams, {at: spec for at, (spec, _) in todo.items()}, tell):
        for point in points[spec.name]:
            setting = Setting(method=point.method, form=point.form, rank=point.rank)
            pair, bias = independent_pair(spec, layer, setting, target)
            own = bias if session.options.has_bias or isinstance(layer.bias, Tensor) else None
            yield LayerTrial(spec=spec, method=point.method, keep_ratio=point.keep_ratio, pair=pair, bias=own)


def _targets(
    session: Session,
    grams: Mapping[str, Tensor],
    specs: Mapping[int, LayerSpec],
    tell: Callable[[str], None],
) -> Iterator[tuple[LayerSpec, nn.Module, Target]]:
    """What the pairs of each layer shall reproduce."""
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
    """Says what goes on whenever moments are gathered; their samples are not counted."""

    @contextmanager
    def collecting() -> Iterator[Callable[[int], None]]:
        tell(text)
        yield lambda _n_samples: None

    return collecting


def _group_trials(
    session: Session, study: Study, counts: Mapping[str, Sequence[int]], tell: Callable[[str], None]
) -> Iterator[GroupTrial]:
    """Slimmed groups, one after the other; what reads them is fitted to the original's inputs."""
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
    groups = {index: group for index, group in survey.live.items() if group.name in counts}
    collecting = _announcing(tell, "inputs of the layers that read the groups")
    for chunk in group_chunks(survey, groups, collecting):
        for group in (groups[index] for index in chunk.indices):
            own = _alone(survey.channels, group)
            for count in counts[group.name]:
                kept = curves[group.name].channels_kept(count)
                yield GroupTrial(
                    name=group.name,
                    kept=kept,
                    channels=own,
                    fits=fits_alone(survey, group.name, kept, chunk.moments),
                    start=_start(own, group, order),
                )


def _alone(channels: ChannelMap, group: GroupSpec) -> ChannelMap:
    """One group, and the tensors that it touches: what is sent to other processes."""
    tensors = {
        name: replace(tensor, axes=axes)
        for name, tensor in channels.tensors.items()
        if (axes := tuple(axis for axis in tensor.axes if axis.group == group.name))
    }
    return ChannelMap(groups={group.name: group}, tensors=tensors)


def _call_order(model: nn.Module, sample: Batch) -> Mapping[str, int]:
    """When each module is first called in a forward; those that are not called have no place."""
    order: dict[str, int] = {}

    def enter(name: str, _args: object, _kwargs: object) -> None:
        order.setdefault(name, len(order))

    modules = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    with watch_modules(modules, enter=enter), torch.no_grad():
        run(model, sample)
    return order


def _start(channels: ChannelMap, group: GroupSpec, order: Mapping[str, int]) -> str | None:
    """The innermost module that is called and holds every producer, or is it; None where that is no start.

    Which of several producers comes first may depend on the samples, so that none of them will do. What else
    changes reads what they make; where it is called earlier as well, on something else, there is no start.
    """
    paths = [name.split(".") for name in group.producers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    start = _called(".".join(parts[0] for parts in shared), order)
    owners = {_called(name.rpartition(".")[0], order) for name in channels.tensors}
    if not start or any(not owner or order[owner] < order[start] for owner in owners):
        return None
    return start


def _called(name: str, order: Mapping[str, int]) -> str:
    """A module, or the innermost one around it that is called; "" for the model itself."""
    while name and name not in order:
        name = name.rpartition(".")[0]
    return name
