# SPDX-License-Identifier: Apache-2.0
"""The eval-score table."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import cast

from slimrank._errors import OptionError, ScoreError
from slimrank.files import Json, write_text
from slimrank.records import Frame, Method, data_frame
from slimrank.report import ScoreLine, finite_or_none, notebook_html, render_scores_html, render_table
from slimrank.scores._aimet import StudyLike, read_aimet
from slimrank.scores._entry import ScoreEntry
from slimrank.scores._file import ScoresFields, read_scores, write_scores

# How the note on a table begins whose scores are all equal.
_FLAT = "all scores are the same"


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores:
    """Scores of the whole model, each with only one layer compressed, or one channel group slimmed.

    Made by ``slimrank.measure_scores`` or ``Scores.load``. One table serves any number of plans.

    Attributes:
        fingerprint: of the study: structure, weights, inputs and the like.
        baseline: score of the untouched model.
        lower_is_better: the score is a loss or an error rate.
        methods: that were tried.
        candidates: shares of a layer's MACs, and of a group's units, that were asked for, in (0, 1),
            ascending.
        entries: what was tried of each layer, in execution order; per method by rising ``keep_ratio``.
        notes: what the user should know.
        groups: what was tried of each channel group, likewise. A group has the name of a layer, so these are
            no ``entries``.

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
    groups: Mapping[str, tuple[ScoreEntry, ...]] = field(default_factory=dict)

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
        write_scores(path, _scores_fields(self))

    def loss(self, entry: ScoreEntry) -> float:
        """By how much the score of an entry is worse than the baseline; negative where it is better."""
        return entry.score - self.baseline if self.lower_is_better else self.baseline - entry.score

    def summary(self) -> str:
        """The table as plain text: layers and groups by candidates, each at the dearest tried rank within it.

        Where no rank is within a candidate, the score of the cheapest pair, or of the fewest units, stands in
        brackets.
        """
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"{self._heading()}\n{render_table(*self._table())}\n{notes}"

    def _repr_html_(self) -> str:
        return notebook_html("Scores", [self._heading()], [self._table()])

    def _heading(self) -> str:
        better = "lower" if self.lower_is_better else "higher"
        what = "this layer at this share of its MACs"
        if self.groups:
            what += ", or this channel group at this share of its units"
        return f"score with only {what}; untouched {self.baseline:.4f}, {better} is better"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows."""
        rows = [
            (name, method, *(_cell(entries, ratio) for ratio in self.candidates))
            for name, method, entries in self._rows()
        ]
        first = "layer or group" if self.groups else "layer"
        return (first, "method", *(f">{ratio:.2f}" for ratio in self.candidates)), rows

    def to_dataframe(self) -> Frame:
        """A row for each score.

        Returns:
            Columns name, kind ("layer" or "group"), method, form, rank (of a group the units kept),
            keep_ratio, score and loss.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        rows = [
            (name, kind, entry)
            for kind, table in (("layer", self.entries), ("group", self.groups))
            for name, entries in table.items()
            for entry in entries
        ]
        return data_frame(
            {
                "name": [name for name, _, _ in rows],
                "kind": [kind for _, kind, _ in rows],
                "method": [entry.method for _, _, entry in rows],
                "form": [entry.form for _, _, entry in rows],
                "rank": [entry.rank for _, _, entry in rows],
                "keep_ratio": [entry.keep_ratio for _, _, entry in rows],
                "score": [entry.score for _, _, entry in rows],
                "loss": [self.loss(entry) for _, _, entry in rows],
            }
        )

    def report(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as one self-contained HTML page, with a chart for every layer and group.

        Args:
            path: of the file; an existing one is replaced, whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        lines = [
            ScoreLine(
                layer=name,
                method=method,
                points=[
                    (entry.keep_ratio, entry.score, f"{entry.tried}: {entry.score:.6g}") for entry in entries
                ],
            )
            for name, method, entries in self._rows()
        ]
        html = render_scores_html(
            lines, baseline=self.baseline, lower_is_better=self.lower_is_better, table=self.summary()
        )
        write_text(path, html.rstrip("\n"), what="report")

    def _facts(self) -> dict[str, Json]:
        rows: list[Json] = [
            {
                "name": name,
                "method": method,
                "points": [[entry.keep_ratio, finite_or_none(entry.score), entry.rank] for entry in entries],
            }
            for name, method, entries in self._rows()
        ]
        return {
            "baseline": finite_or_none(self.baseline),
            "lower_is_better": self.lower_is_better,
            "rows": rows,
        }

    def _rows(self) -> list[tuple[str, Method, list[ScoreEntry]]]:
        """Name, method and entries of every layer, then of every group."""
        # No dictionary: a group may have the name of a layer.
        named = [*self.entries.items(), *self.groups.items()]
        return [
            (name, method, of_method)
            for name, entries in named
            for method in self.methods
            if (of_method := [entry for entry in entries if entry.method == method])
        ]

    def __repr__(self) -> str:
        count = sum(len(entries) for table in (self.entries, self.groups) for entries in table.values())
        groups = f" and {len(self.groups)} group{'s' * (len(self.groups) > 1)}" if self.groups else ""
        return f"Scores({count} scores of {len(self.entries)} layers{groups}, baseline {self.baseline:g})"


def _scores_fields(scores: Scores) -> ScoresFields:
    # mypy does not follow a dictionary that a comprehension builds into the TypedDict.
    return cast(ScoresFields, {known.name: getattr(scores, known.name) for known in fields(scores)})


def with_flat_note(table: Scores) -> Scores:
    """A table that says so where all its scores are equal, and only there."""
    tried = [*table.entries.values(), *table.groups.values()]
    entries = [entry for of_name in tried for entry in of_name]
    notes = tuple(note for note in table.notes if not note.startswith(_FLAT))
    if len(entries) > 1 and len({entry.score for entry in entries}) == 1:
        notes += (
            f"{_FLAT} ({entries[0].score:g}, the untouched model {table.baseline:g}): they do not tell "
            "layers apart, and plans made with them choose by cost alone. Check score_fn, or give a finer "
            "score: more samples, or a loss in place of an accuracy",
        )
    return replace(table, notes=notes)


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


def differing_keys(fingerprint: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The keys under which two fingerprints differ."""
    keys = dict.fromkeys((*fingerprint, *other))
    return [key for key in keys if fingerprint.get(key) != other.get(key)]


def _cell(entries: list[ScoreEntry], ratio: float) -> str:
    """The score of the largest keep ratio within a candidate; in brackets of the smallest where none is."""
    # Entries are sorted by keep ratio, so the last one within is the largest.
    within = [entry for entry in entries if entry.keep_ratio <= ratio]
    return f"{within[-1].score:.4f}" if within else f"({entries[0].score:.4f})"


def scores_facts(table: Scores) -> dict[str, Json]:
    """A table as JSON, for a page.

    Args:
        table: any.

    Returns:
        Baseline, direction, and for each layer or group and method points of [share that stays, score, rank].

    Raises:
        OptionError: something else than a table.
    """
    if not isinstance(table, Scores):
        raise OptionError(
            f"scores is a {type(table).__name__}; give a table, e.g. slimrank.Scores.load(path)"
        )
    return table._facts()
