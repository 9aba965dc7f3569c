# SPDX-License-Identifier: Apache-2.0
"""The eval-score table, measured: every layer at every candidate, the rest of the model as it is."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from numbers import Real

import numpy as np
from torch import Tensor, nn

from slimrank._anchors import independent_pair
from slimrank._build import Session
from slimrank._errors import OptionError, UnknownNameError
from slimrank._study import Study, session_of
from slimrank._survey import chunks_of, target_of
from slimrank.calibrate import collect_moments
from slimrank.cost import FORMS
from slimrank.graph import outside_inference_mode, quiet_copy
from slimrank.methods import Target, dense_weight, weights_target
from slimrank.plan import listed, nearest
from slimrank.records import Curve, Form, LayerSpec, Method
from slimrank.report import Phases
from slimrank.scores import (
    Bench,
    Journal,
    ScoreEntry,
    ScoreFn,
    Scores,
    Trial,
    count_workers,
    evaluate_spread,
)

PREFIX_CACHE = 1_000_000_000


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
    prefix_cache: int = PREFIX_CACHE,
    progress: bool = True,
) -> Scores:
    """Scores of the whole model, each with one layer compressed: AIMET's eval-score table.

    Factors are fitted without labels, as a plan's would be; labels are needed by the score function only.

    Args:
        study: with its model.
        score_fn: of a model in eval mode; returns one number. It must leave the model as it was.
        methods: to try; None for those of the study.
        layers: names or globs of layers to try; None for all that can be compressed.
        candidates: N for the ratios k / N, k = 1 to N - 1, of each layer's MACs, or the ratios themselves, in
            (0, 1). Each is tried at the largest rank within it; those below what a layer can reach at its
            cheapest pair.
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
        UnknownNameError: a method that the study did not measure, or a layer that does not exist.
        OptionError: another option out of range, or a layer that cannot be compressed.
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
        Scores(5 scores of 2 layers, baseline 1)
        >>> study.plan(macs=0.8, select="greedy", scores=scores).keep_ratio("macs") <= 0.8
        True
    """
    session = session_of(study)
    tried = _methods(study, methods)
    ratios = _ratios(candidates)
    _check_numbers(score_fn, workers, prefix_cache)
    chosen = _layers(study.layers, tried, layers)
    journal = Journal(
        path,
        fingerprint=study.fingerprint,
        methods=tried,
        candidates=ratios,
        lower_is_better=lower_is_better,
        order=study.structure.layers,
    )
    todo: dict[int, tuple[LayerSpec, list[_Point]]] = {}
    for index, spec in enumerate(study.layers):
        known = journal.known(spec.name)
        points = [] if spec.name not in chosen else _points(spec, study.curves, tried, ratios)
        points = [point for point in points if (point.form, point.rank) not in known]
        if points:
            todo[index] = (spec, points)
    n_workers = count_workers(workers)
    model = quiet_copy(session.opened.original)
    bench = Bench(model, score_fn, max_bytes=prefix_cache if n_workers == 1 else 0)
    total = sum(len(points) for _, points in todo.values()) + (not journal.is_started)
    with Phases(shown=progress).phase("scores", total) as advance:
        if not journal.is_started:
            advance(0, "the untouched model")
            journal.start(bench.baseline())
            advance(1, "")
        trials = _trials(session, study.grams, todo, lambda text: advance(0, text))
        results: Generator[tuple[Trial, float], None, None]
        if n_workers == 1:
            results = ((trial, bench.score(trial)) for trial in trials)
        else:
            results = evaluate_spread(model, score_fn, trials, workers=workers, max_bytes=prefix_cache)
        with closing(results):
            for trial, score in results:
                journal.add(trial.spec.name, _entry(trial, score))
                advance(1, f"{trial.spec.name} {trial.pair.form} {trial.pair.rank}: {score:.4g}")
    return journal.finished()


def _methods(study: Study, methods: Sequence[Method] | None) -> tuple[Method, ...]:
    if methods is None:
        return tuple(method for method in study.methods if method in FORMS)
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
            raise OptionError(f"candidates: {ratio!r} is no share of a layer's MACs; give ratios in (0, 1)")
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


def _layers(
    specs: Sequence[LayerSpec], methods: Sequence[Method], layers: Sequence[str] | None
) -> frozenset[str]:
    """Names of the layers to try."""
    possible = {spec.name for spec in specs if set(spec.methods) & set(methods)}
    if layers is None:
        return frozenset(possible)
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptionError(f"layers={layers!r}; give names or globs of layers, or None for all")
    chosen: set[str] = set()
    for pattern in patterns:
        found = [spec for spec in specs if pattern == spec.name or fnmatchcase(spec.name, pattern)]
        if not found:
            names = [spec.name for spec in specs]
            raise UnknownNameError(f"layers: {pattern!r} matches no layer; {nearest(str(pattern), names)}")
        useful = {spec.name for spec in found} & possible
        if not useful:
            reason = found[0].reason or f"{listed(methods)} does not apply to it"
            raise OptionError(
                f"layers: {pattern!r} matches {found[0].name!r}, which cannot be compressed: {reason}"
            )
        chosen |= useful
    return frozenset(chosen)


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
) -> Iterator[Trial]:
    """Fitted factors, layer after layer, each decomposed once."""
    points = {spec.name: own for spec, own in todo.values()}
    for spec, layer, target in _targets(session, grams, {at: spec for at, (spec, _) in todo.items()}, tell):
        for point in points[spec.name]:
            pair, bias = independent_pair(spec, layer, point.form, point.rank, target)
            own = bias if session.options.has_bias or isinstance(layer.bias, Tensor) else None
            yield Trial(spec=spec, method=point.method, keep_ratio=point.keep_ratio, pair=pair, bias=own)


def _targets(
    session: Session,
    grams: Mapping[str, Tensor],
    specs: Mapping[int, LayerSpec],
    tell: Callable[[str], None],
) -> Iterator[tuple[LayerSpec, nn.Module, Target]]:
    """What the pairs of each layer shall reproduce."""
    opened = session.opened
    if session.options.data_free:
        for spec in specs.values():
            layer = opened.original.get_submodule(spec.name)
            yield spec, layer, weights_target(dense_weight(layer))
        return
    for chunk in chunks_of(specs):
        tell("inputs of the layers")
        moments = dict(
            collect_moments(
                opened.original, opened.feed, chunk, seed=session.options.seed, advance=lambda _steps: None
            )
        )
        for spec in chunk.values():
            layer = opened.original.get_submodule(spec.name)
            yield spec, layer, target_of(spec, layer, moments.pop(spec.name), grams)


def _entry(trial: Trial, score: float) -> ScoreEntry:
    return ScoreEntry(
        method=trial.method,
        form=trial.pair.form,
        rank=trial.pair.rank,
        keep_ratio=trial.keep_ratio,
        score=score,
    )
