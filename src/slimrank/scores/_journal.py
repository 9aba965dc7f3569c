# SPDX-License-Identifier: Apache-2.0
"""A score table that grows: its file is written after every score."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from slimrank._errors import FileError, ScoreError
from slimrank.records import Method, replaces_groups
from slimrank.scores._entry import EntryKey, ScoreEntry
from slimrank.scores._scores import Scores, differing_keys, with_flat_note

_Entries = Mapping[str, tuple[ScoreEntry, ...]]


class ScoreJournal:
    """A score table that grows.

    Args:
        path: of its file; an existing one is continued. None keeps the table in memory.
        fingerprint: of the study.
        methods: to try.
        candidates: shares of a layer's MACs, and of a group's units, ascending.
        lower_is_better: the score is a loss or an error rate.
        layers: every layer, in execution order.
        groups: every channel group, in execution order.

    Raises:
        FileError: the file cannot be read, or could not be written.
        ScoreError: the file holds a table of another study or of other options; the message names them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        fingerprint: Mapping[str, str],
        methods: tuple[Method, ...],
        candidates: tuple[float, ...],
        lower_is_better: bool,
        layers: Iterable[str],
        groups: Iterable[str] = (),
    ) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self._methods = methods
        self._candidates = candidates
        self._lower_is_better = lower_is_better
        self._layers = list(layers)
        self._groups = list(groups)
        self._table: Scores | None = None
        if self._path is None:
            return
        if self._path.is_file():
            self._table = self._read(self._path)
        # Found out here, not after the first score, which may take long.
        elif self._path.exists() or not self._path.parent.is_dir():
            raise FileError(f"score table {self._path}: cannot be written; give a file in an existing folder")

    def _read(self, path: Path) -> Scores:
        found = Scores.load(path)
        differing = differing_keys(self._fingerprint, found.fingerprint)
        for name, old, new in (
            ("methods", found.methods, self._methods),
            ("candidates", found.candidates, self._candidates),
            ("lower_is_better", found.lower_is_better, self._lower_is_better),
        ):
            if old != new:
                differing.append(f"{name} ({old!r} there, {new!r} here)")
        if differing:
            raise ScoreError(
                f"score table {path}: it was measured with other {' and '.join(differing)}; give another "
                "path, or delete the file"
            )
        return found

    @property
    def is_started(self) -> bool:
        """Whether the untouched model has its score."""
        return self._table is not None

    def known(self, layer: str) -> frozenset[EntryKey]:
        """Form and ranks of what has been scored of a layer."""
        entries = () if self._table is None else self._table.entries.get(layer, ())
        return frozenset(entry.key for entry in entries)

    def known_counts(self, group: str) -> frozenset[int]:
        """Units kept at which a channel group has been scored."""
        entries = () if self._table is None else self._table.groups.get(group, ())
        return frozenset(entry.rank for entry in entries)

    def start(self, baseline: float) -> None:
        """The first score: of the untouched model."""
        self._update(
            Scores(
                fingerprint=dict(self._fingerprint),
                baseline=baseline,
                lower_is_better=self._lower_is_better,
                methods=self._methods,
                candidates=self._candidates,
                entries={},
            )
        )

    def add(self, name: str, entry: ScoreEntry) -> None:
        """One more score, of a layer or, by its method, of a group; it is in the file when this returns."""
        table = self.finished()
        if replaces_groups(entry.method):
            self._update(
                replace(table, groups=self._joined_entries(self._groups, table.groups, {name: (entry,)}))
            )
        else:
            self._update(
                replace(table, entries=self._joined_entries(self._layers, table.entries, {name: (entry,)}))
            )

    def closed(self) -> Scores:
        """The table once all is scored, with a note where it tells nothing; in the file as well.

        Raises:
            ScoreError: nothing was scored.
        """
        table = with_flat_note(self.finished())
        if table != self._table:
            self._update(table)
        return table

    def finished(self) -> Scores:
        """The table as it stands.

        Raises:
            ScoreError: nothing was scored.
        """
        if self._table is None:
            raise ScoreError("score table: the untouched model has no score; measure it first")
        return self._table

    def _update(self, table: Scores) -> None:
        if self._path is not None and self._path.is_file():
            # Another run may have added to the same file meanwhile: its scores stay.
            table = self._merged(table, self._read(self._path))
        self._table = table
        if self._path is not None:
            table.save(self._path)

    def _merged(self, table: Scores, other: Scores) -> Scores:
        return replace(
            table,
            entries=self._joined_entries(self._layers, table.entries, other.entries),
            groups=self._joined_entries(self._groups, table.groups, other.groups),
        )

    def _joined_entries(self, order: Iterable[str], table: _Entries, other: _Entries) -> _Entries:
        """The entries of both tables; those of the first where both hold the same."""
        joined: dict[str, tuple[ScoreEntry, ...]] = {}
        for name in order:
            entries = table.get(name, ())
            known = {entry.key for entry in entries}
            added = [entry for entry in other.get(name, ()) if entry.key not in known]
            if entries or added:
                joined[name] = tuple(sorted((*entries, *added), key=self._sort_key))
        return joined

    def _sort_key(self, entry: ScoreEntry) -> tuple[int, float, str, int, int]:
        order = self._methods.index(entry.method)
        return order, entry.keep_ratio, entry.form, entry.rank, entry.rank_in or 0
