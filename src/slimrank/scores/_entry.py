# SPDX-License-Identifier: Apache-2.0
"""One row of the eval-score table."""

from dataclasses import dataclass
from typing import Literal

from slimrank.records import Form, Method

EntryForm = Form | Literal["channels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreEntry:
    """One score: the whole model with one layer compressed, or with one channel group slimmed.

    Attributes:
        method: a name of ``slimrank.METHODS``.
        form: how the pair is split; "channels" for a group.
        rank: size between the two factors; of a group the units kept.
        keep_ratio: counted MACs of the pair / MACs of the layer; of a group units kept / units.
        score: what the score function returned.
    """

    method: Method
    form: EntryForm
    rank: int
    keep_ratio: float
    score: float
