# SPDX-License-Identifier: Apache-2.0
"""The eval-score table, measured: every layer and group at every candidate, the rest as it is."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain

from slimrank._errors import OptionError
from slimrank._numbers import whole_number
from slimrank._study import Study, session_of, shown_live_of_study
from slimrank.forward import kept_text, out_of_memory_told, outside_inference_mode
from slimrank.recipes._score_candidates import (
    Candidate,
    candidates_of,
    counts_to_try,
    methods_to_try,
    names_to_try,
    ratios_to_try,
)
from slimrank.recipes._score_trials import group_trials, pair_trials
from slimrank.records import LayerSpec, Method
from slimrank.scores import ScoreJournal, Scores
from slimrank.scoring import AnyTrial, Evaluator, ScoreFn, count_workers, evaluate_with_workers
from slimrank.surgery import quiet_copy


@shown_live_of_study
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
    prefix_cache: int | None = None,
    progress: bool = True,
    serve: bool = False,
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
            again start at the layer under test; 0 for none, None for a share of the study's
            ``memory=``. Scores do not depend on it.
        progress: show a bar on stderr.
        serve: as in ``slimrank.study``; shows the study's ``run_dir``.

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
    tried = methods_to_try(study, methods)
    ratios = ratios_to_try(candidates)
    workers, prefix_cache = _checked_numbers(score_fn, workers, prefix_cache)
    layer_names, group_names = names_to_try(study, tried, layers)
    journal = ScoreJournal(
        path,
        fingerprint=study.fingerprint,
        methods=tried,
        candidates=ratios,
        lower_is_better=lower_is_better,
        layers=study.structure.layers,
        groups=study.structure.channels.groups,
    )
    to_try: dict[int, tuple[LayerSpec, list[Candidate]]] = {}
    for index, spec in enumerate(study.layers):
        if spec.name not in layer_names:
            continue
        scored = journal.known(spec.name)
        all_candidates = candidates_of(spec, study.curves, tried, ratios)
        new = [candidate for candidate in all_candidates if candidate.key not in scored]
        if new:
            to_try[index] = (spec, new)
    counts: dict[str, list[int]] = {}
    for curve in study.group_curves:
        scored_counts = journal.known_counts(curve.group)
        new_counts = [count for count in counts_to_try(curve, ratios) if count not in scored_counts]
        if new_counts and curve.group in group_names:
            counts[curve.group] = new_counts
    n_workers = count_workers(workers)
    cache_bytes = session.budgets.prefix_cache if prefix_cache is None else prefix_cache
    model = quiet_copy(session.original)
    # Workers keep caches of their own.
    evaluator = Evaluator(model, score_fn, max_bytes=cache_bytes if n_workers == 1 else 0)
    total = sum(len(new) for _, new in to_try.values()) + sum(map(len, counts.values()))
    total += not journal.is_started
    phases = session.phases(shown=progress)
    with (
        out_of_memory_told(lambda: "phase 'scores'", kept_text(path, keyword="path")),
        phases.phase("scores", total) as advance,
    ):
        if not journal.is_started:
            advance(0, "the untouched model")
            journal.start(evaluator.baseline())
            advance(1, "")
        trials: Iterator[AnyTrial] = chain(
            pair_trials(session, study.grams, to_try, lambda text: advance(0, text)),
            group_trials(session, study, counts, lambda text: advance(0, text)),
        )
        results: Generator[tuple[AnyTrial, float], None, None]
        if n_workers == 1:
            results = ((trial, evaluator.score(trial)) for trial in trials)
        else:
            results = evaluate_with_workers(model, score_fn, trials, workers=workers, max_bytes=cache_bytes)
        with closing(results):
            for trial, score in results:
                entry = trial.entry(score)
                journal.add(trial.name, entry)
                phases.emit(
                    "score",
                    layer=trial.name,
                    method=entry.method,
                    form=entry.form,
                    rank=entry.rank,
                    keep_ratio=entry.keep_ratio,
                    score=entry.score,
                )
                advance(1, f"{trial.name} {entry.tried}: {score:.4g}")
    return journal.closed()


def _checked_numbers(score_fn: ScoreFn, workers: object, prefix_cache: object) -> tuple[int, int | None]:
    """Workers and bytes of the cache as Python's own numbers."""
    if not callable(score_fn):
        raise OptionError(
            f"score_fn is a {type(score_fn).__name__}; give a function of a model that returns a number"
        )
    n_workers = whole_number(workers)
    if n_workers is None or n_workers < 1:
        raise OptionError(f"workers={workers!r}; give a whole number of at least 1")
    if prefix_cache is None:
        return n_workers, None
    n_bytes = whole_number(prefix_cache)
    if n_bytes is None or n_bytes < 0:
        raise OptionError(f"prefix_cache={prefix_cache!r}; give a number of bytes, or 0 for none")
    return n_workers, n_bytes
