# SPDX-License-Identifier: Apache-2.0
"""Scores of a model with one layer or one group compressed."""

from slimrank.scoring._evaluate import AnyTrial, Evaluator, GroupTrial, LayerTrial, ScoreFn, score_model
from slimrank.scoring._workers import count_workers, evaluate_with_workers

__all__ = [
    "AnyTrial",
    "Evaluator",
    "GroupTrial",
    "LayerTrial",
    "ScoreFn",
    "count_workers",
    "evaluate_with_workers",
    "score_model",
]
