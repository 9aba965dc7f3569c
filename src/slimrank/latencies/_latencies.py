# SPDX-License-Identifier: Apache-2.0
"""The table of measured times."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from slimrank._errors import LatencyError, OptionError
from slimrank.latencies._file import ResultFields, read_latencies, write_latencies
from slimrank.latencies._record import LatencyRecord
from slimrank.latencies._tie import differing_topics, tie_of
from slimrank.plan import HasSteps, Structure, predicted_time
from slimrank.records import NetworkTimes, Note
from slimrank.report import notebook_html, render_table

# The precision of the original that ratios are to.
_FLOAT = "float32"


@dataclass(frozen=True, kw_only=True, repr=False)
class Latencies:
    """What each layer of a network takes inside it, in a runtime on a machine, in all forms that plans use.

    Made by ``slimrank.measure_latency`` or ``Latencies.load``. One table serves any number of plans, and
    networks of the same shapes, whatever their weights.

    Attributes:
        before_ms: median time of the original in float32, over turns as in ``ReachedLatency``; with one
            thread in milliseconds of the processor, which other work does not stretch.
        spread: interquartile range over median of the original's times, of all turns.
        error: share by which a predicted time may be off, by the variants that were measured; widened where
            the machine was busy.
        times: the formulas that plans are chosen by.
        notes: what the user should know.
    """

    before_ms: float
    spread: float
    error: float
    times: NetworkTimes
    notes: tuple[Note, ...]
    _record: LatencyRecord

    @property
    def backend(self) -> str:
        """The runtime."""
        return self._record.conditions.backend

    @property
    def threads(self) -> int:
        """That the runtime had."""
        return self._record.conditions.threads

    @property
    def batch(self) -> int:
        """Samples of the batch that all times are of."""
        return self._record.conditions.batch

    @property
    def precision(self) -> str:
        """Of the files: "float32" or "int8"."""
        return self._record.conditions.precision

    @property
    def machine(self) -> str:
        """Where it was measured: processor, cores, architecture."""
        return self._record.conditions.machine

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that made and ran the files."""
        return self._record.conditions.versions

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Of the network: its layers, and the sizes that they work on."""
        return self._record.conditions.fingerprint

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Latencies":
        """Reads a table that ``save`` or ``measure_latency(path=)`` wrote.

        Args:
            path: of the JSON file.

        Returns:
            The table.

        Raises:
            FileError: the file is missing or cannot be read.
            LatencyError: it is no such table, is cut short, holds unknown keys, is of another format, or its
                measurement was stopped and has to go on first.
        """
        record, result = read_latencies(path)
        if result is None:
            raise LatencyError(
                f"latency table {os.fspath(path)}: its measurement was stopped after {len(record.variants)} "
                "variants; go on with slimrank.measure_latency(study, path=...)"
            )
        return cls(_record=record, **result)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as JSON, whole or not at all.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            FileError: the file cannot be written.
        """
        result = ResultFields(
            before_ms=self.before_ms,
            spread=self.spread,
            error=self.error,
            times=self.times,
            notes=self.notes,
        )
        write_latencies(path, self._record, result)

    def predict(self, plan: HasSteps) -> float:
        """The time that a plan leaves, by the formulas of the table. Runs nothing.

        Args:
            plan: for the network of the table; of several steps the last one.

        Returns:
            Milliseconds for one batch; ``error`` tells how far off it may be.

        Raises:
            OptionError: no plan.
            LatencyError: the plan is for another network.
        """
        steps = getattr(plan, "steps", None)
        if not isinstance(steps, tuple):
            raise OptionError(f"plan is a {type(plan).__name__}; give a Plan, e.g. study.plan(macs=0.5)")
        if not steps:
            return self._whole_ms
        self.check(steps[-1].structure)
        return predicted_time(self.times, steps[-1]) / 1e6

    def check(self, structure: Structure) -> None:
        """Refuses a table of another network.

        Args:
            structure: of the network at hand.

        Raises:
            LatencyError: the table belongs to another one; the message names what differs.
        """
        topics = differing_topics(self.fingerprint, tie_of(structure))
        if topics:
            raise LatencyError(
                f"the latency table was measured with other {' and '.join(topics)}; measure one for this "
                "study with slimrank.measure_latency(study)"
            )

    def summary(self) -> str:
        """The table as plain text: layers by the share of the time that they take, and what pairs save."""
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"{self._conditions()}\n{self._versions()}\n{render_table(*self._table())}\n{notes}"

    def _repr_html_(self) -> str:
        return notebook_html("Latencies", [self._conditions(), self._versions()], [self._table()])

    def _conditions(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        whole = f"{self._whole_ms:.3f} ms"
        if self.precision != _FLOAT:
            whole = f"{whole}, {self.before_ms:.3f} ms in {_FLOAT}"
        return (
            f"{self.backend}, {self.precision}, {threads}, batch {self.batch}: {whole} "
            f"(spread {self.spread:.0%}); a predicted time may be off by {self.error:.1%}; ranks and widths "
            f"in steps of {self.times.step}"
        )

    def _versions(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(self.versions.items()))
        return f"{self.machine}; {versions}"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows."""
        rows: list[tuple[str, ...]] = [
            (
                name,
                f"{share:.1%}",
                f"{share * self._whole_ms:.3f}",
                ", ".join(self.times.layers[name].pairs) or "-",
            )
            for name, share in self._shares()
        ]
        rest = 1 - sum(share for _, share in self._shares())
        rows.append(("all else", f"{rest:.1%}", f"{rest * self._whole_ms:.3f}", ""))
        return ("layer", ">share", ">ms", "pairs that can be faster"), rows

    @property
    def _whole_ms(self) -> float:
        """Of the network as it stands, in the precision of the table."""
        return self.before_ms if self.precision == _FLOAT else self.times.before / 1e6

    def _shares(self) -> list[tuple[str, float]]:
        """The layers and their shares of the whole network's time, as its profile has them."""
        # Of very short runs, the profile itself takes more than the run.
        scale = max(1e6 * self._whole_ms, self._record.original.total)
        return [(name, sum(times) / scale) for name, times in self._record.original.factors.items()]

    def __repr__(self) -> str:
        return (
            f"Latencies({self.backend}, {self.precision}, threads {self.threads}, batch {self.batch}: "
            f"{self._whole_ms:.3f} ms, {len(self.times.layers)} layers)"
        )
