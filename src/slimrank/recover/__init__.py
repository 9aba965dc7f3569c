# SPDX-License-Identifier: Apache-2.0
"""Training that wins back what compression lost."""

from slimrank.recover._distill import distill
from slimrank.recover._finetune import finetune
from slimrank.recover._train import Epoch

__all__ = [
    "Epoch",
    "distill",
    "finetune",
]
