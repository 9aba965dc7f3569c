# SPDX-License-Identifier: Apache-2.0
"""One row of the eval-score table."""

from dataclasses import dataclass
from typing import Literal

from slimrank.records import Form, Method, replaces_groups

EntryForm = Form | Literal["channels"]
EntryKey = tuple[EntryForm, int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreEntry:
    """One score: the whole model with one layer compressed, or with one channel group slimmed.

    Attributes:
        method: a name of ``slimrank.METHODS``.
        form: how the pair is split; "channels" for a group.
        rank: size between the two factors; of a group the units kept.
        rank_in: of three factors the size between the first two, see ``Setting``; None for the others.
        keep_ratio: counted MACs of the pair / MACs of the layer; of a group units kept / units.
        score: what the score function returned.
    """

    method: Method
    form: EntryForm
    rank: int
    keep_ratio: float
    score: float
    rank_in: int | None = None

    @property
    def key(self) -> "EntryKey":
        """What was tried of a layer or group: no two entries of it have the same."""
        return self.form, self.rank, self.rank_in

    @property
    def tried(self) -> str:
        """The same, for people."""
        ranks = f"{self.rank}" if self.rank_in is None else f"{self.rank_in}, {self.rank}"
        return f"{self.rank} units" if replaces_groups(self.method) else f"{self.form} rank {ranks}"
