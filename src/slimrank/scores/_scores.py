# SPDX-License-Identifier: Apache-2.0
"""The eval-score table."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from slimrank._errors import ScoreError
from slimrank.records import Method
from slimrank.report import render_table
from slimrank.scores._aimet import StudyLike, read_aimet
from slimrank.scores._file import ScoreEntry, read_scores, write_scores


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores:
    """Scores of the whole model, each with only one layer compressed.

    Made by ``slimrank.measure_scores`` or ``Scores.load``. One table serves any number of plans.

    Attributes:
        fingerprint: of the study: structure, weights, inputs and the like.
        baseline: score of the untouched model.
        lower_is_better: the score is a loss or an error rate.
        methods: that were tried.
        candidates: shares of a layer's MACs that were asked for, in (0, 1), ascending.
        entries: what was tried of each layer, in execution order; per method by rising ``keep_ratio``.
        notes: what the user should know.

    Example:
        >>> entry = ScoreEntry(method="weight_svd", form="linear", rank=16, keep_ratio=0.5, score=0.75)
        >>> table = Scores(
        ...     fingerprint={}, baseline=0.875, lower_is_better=False, methods=("weight_svd",),
        ...     candidates=(0.5,), entries={"fc": (entry,)},
        ... )
        >>> print(table.summary())
        score with only this layer at this share of its MACs; untouched 0.8750, higher is better
        layer  method        0.50
        -------------------------
        fc     weight_svd  0.7500
        <BLANKLINE>
    """

    fingerprint: Mapping[str, str]
    baseline: float
    lower_is_better: bool
    methods: tuple[Method, ...]
    candidates: tuple[float, ...]
    entries: Mapping[str, tuple[ScoreEntry, ...]]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Reads a table that ``save`` or ``measure_scores(path=)`` wrote, finished or not.

        Args:
            path: of the JSON file.

        Returns:
            The table.

        Raises:
            FileError: the file is missing or cannot be read.
            ScoreError: it is no score table, is cut short, holds unknown keys, or is of another format.
        """
        return cls(**read_scores(path))

    @classmethod
    def from_aimet(
        cls,
        path: str | os.PathLike[str],
        study: StudyLike,
        *,
        method: Method,
        baseline: float | None = None,
        lower_is_better: bool = False,
    ) -> "Scores":
        """Reads the eval-score dictionary that AIMET pickled; nothing in the file can run code.

        Args:
            path: of the pickle, ``{layer name: {Decimal ratio: score}}``.
            study: of the same model; the table is tied to it.
            method: that AIMET explored.
            baseline: score of the untouched model, which AIMET does not keep; None takes the best score in
                the file, and says so in ``notes``.
            lower_is_better: the score is a loss or an error rate.

        Returns:
            The table; ranks are those whose counted MACs come closest to each ratio from below, in AIMET's
            form.

        Raises:
            FileError: the file is missing or cannot be read.
            ScoreError: it is no such pickle, or names a class that is refused.
            UnknownNameError: a layer or method that does not exist.
            OptionError: a layer to which the method does not apply.
        """
        return cls(
            **read_aimet(path, study, method=method, baseline=baseline, lower_is_better=lower_is_better)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as JSON, whole or not at all.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            FileError: the file cannot be written.
            ScoreError: the table holds a number that is not finite.
        """
        write_scores(path, self)

    def loss(self, entry: ScoreEntry) -> float:
        """What the score of an entry is worse than the baseline by; negative where it is better."""
        return entry.score - self.baseline if self.lower_is_better else self.baseline - entry.score

    def summary(self) -> str:
        """The table as plain text: layers by candidates, each at the dearest tried rank within it.

        Where no rank is within a candidate, the score of the cheapest pair stands in brackets.
        """
        better = "lower" if self.lower_is_better else "higher"
        heading = (
            f"score with only this layer at this share of its MACs; untouched {self.baseline:.4f}, "
            f"{better} is better"
        )
        rows = []
        for name, entries in self.entries.items():
            for method in self.methods:
                own = [entry for entry in entries if entry.method == method]
                if own:
                    rows.append((name, method, *(_cell(own, ratio) for ratio in self.candidates)))
        columns = ("layer", "method", *(f">{ratio:.2f}" for ratio in self.candidates))
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"{heading}\n{render_table(columns, rows)}\n{notes}"

    def __repr__(self) -> str:
        count = sum(len(entries) for entries in self.entries.values())
        return f"Scores({count} scores of {len(self.entries)} layers, baseline {self.baseline:g})"


def check_scores(scores: Scores, fingerprint: Mapping[str, str]) -> None:
    """Check that a table belongs to a study.

    Args:
        scores: the table.
        fingerprint: of the study.

    Raises:
        ScoreError: it belongs to another one; the message names what differs.
    """
    differing = differing_keys(fingerprint, scores.fingerprint)
    if differing:
        raise ScoreError(
            f"score table: it was measured with other {' and '.join(differing)} than this study; pass the "
            "study it was measured with, or measure the scores again"
        )


def differing_keys(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """What two fingerprints do not have in common."""
    return [key for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]


def _cell(entries: list[ScoreEntry], ratio: float) -> str:
    """The score of the largest keep ratio within a candidate; in brackets of the smallest where none is."""
    within = [entry for entry in entries if entry.keep_ratio <= ratio]
    return f"{within[-1].score:.4f}" if within else f"({entries[0].score:.4f})"
