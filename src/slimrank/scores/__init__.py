# SPDX-License-Identifier: Apache-2.0
"""Eval-score tables."""

from slimrank.scores._curves import score_curves
from slimrank.scores._entry import ScoreEntry
from slimrank.scores._evaluate import AnyTrial, Bench, GroupTrial, ScoreFn, Trial, score_model
from slimrank.scores._file import CHANNELS
from slimrank.scores._group_curves import score_group_curves
from slimrank.scores._journal import Journal
from slimrank.scores._scores import Scores, check_scores
from slimrank.scores._source import ScoredSource, scored_source
from slimrank.scores._workers import count_workers, evaluate_spread

__all__ = [
    "CHANNELS",
    "AnyTrial",
    "Bench",
    "GroupTrial",
    "Journal",
    "ScoreEntry",
    "ScoreFn",
    "ScoredSource",
    "Scores",
    "Trial",
    "check_scores",
    "count_workers",
    "evaluate_spread",
    "score_curves",
    "score_group_curves",
    "score_model",
    "scored_source",
]
