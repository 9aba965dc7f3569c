# SPDX-License-Identifier: Apache-2.0
"""Eval-score tables."""

from slimrank.scores._curves import score_curves
from slimrank.scores._entry import ScoreEntry
from slimrank.scores._file import CHANNELS
from slimrank.scores._group_curves import score_group_curves
from slimrank.scores._journal import ScoreJournal
from slimrank.scores._scores import Scores, check_scores, scores_facts
from slimrank.scores._source import UNSCORED, ScoredSource, scored_source

__all__ = [
    "CHANNELS",
    "UNSCORED",
    "ScoreEntry",
    "ScoreJournal",
    "ScoredSource",
    "Scores",
    "check_scores",
    "score_curves",
    "score_group_curves",
    "scored_source",
    "scores_facts",
]
