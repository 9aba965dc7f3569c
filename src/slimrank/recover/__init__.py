# SPDX-License-Identifier: Apache-2.0
"""Training that wins back what compression lost."""

from slimrank.recover._distill import distill
from slimrank.recover._examples import Inputs
from slimrank.recover._finetune import LossFn, finetune
from slimrank.recover._train import Epoch, MakeOptimizer, NormsChoice, OnEpoch, ScheduleChoice

__all__ = [
    "Epoch",
    "Inputs",
    "LossFn",
    "MakeOptimizer",
    "NormsChoice",
    "OnEpoch",
    "ScheduleChoice",
    "distill",
    "finetune",
]
