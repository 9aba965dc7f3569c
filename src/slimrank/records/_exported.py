# SPDX-License-Identifier: Apache-2.0
"""What is known of an exported file."""

from dataclasses import dataclass
from pathlib import Path

from slimrank.records._int8 import Int8
from slimrank.records._note import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that a runtime reads, checked and timed in that runtime.

    Attributes:
        path: of the file; of "openvino" the ``.xml`` file, beside which is a ``.bin`` file.
        format: "onnx", "torch", "openvino" or "executorch".
        bytes: on disk, all files of the export together.
        before_bytes: the same of the original, written in the same format in float; None without an original.
        max_error: largest difference from the model that was exported, in float, relative to the largest
            value of that output; of the output that differs most.
        agreement: share of equal classes with the same model, 0 to 1; None where outputs are no classes.
        before_ms: median time of one batch through the original in float in the same runtime, by the clock;
            None without an original.
        after_ms: the same of this file.
        before_spread: interquartile range of these times over their median; None without an original.
        after_spread: the same of this file.
        batch: samples in the batches that were timed.
        threads: that the runtime had.
        notes: what the user should know.
        int8: what int8 did; None of a float file.
    """

    path: Path
    format: str
    bytes: int
    before_bytes: int | None
    max_error: float
    agreement: float | None
    before_ms: float | None
    after_ms: float
    before_spread: float | None
    after_spread: float
    batch: int
    threads: int
    notes: tuple[Note, ...] = ()
    int8: Int8 | None = None

    def summary(self) -> str:
        """What was written, how exact and how fast it is, as text."""
        kind = self.format if self.int8 is None else f"{self.format}, {self.int8.precision}"
        lines = [
            f"{self.path} ({kind}): {self._sizes()}",
            f"largest relative error {self.max_error:.1e}"
            + ("" if self.agreement is None else f", equal classes {self.agreement:.2%}"),
            *([] if self.int8 is None else [self.int8.summary()]),
            self._times(),
            *(f"- {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _sizes(self) -> str:
        after = f"{self.bytes / 1e6:,.3f} MB"
        return after if self.before_bytes is None else f"{after}, original {self.before_bytes / 1e6:,.3f} MB"

    def _times(self) -> str:
        after = f"{self.after_ms:.3f} ms (spread {self.after_spread:.0%})"
        where = f"batch {self.batch}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"
        if self.before_ms is None or self.before_spread is None:
            return f"{after}; {where}"
        before = f"{self.before_ms:.3f} ms (spread {self.before_spread:.0%})"
        return f"original {before}, this file {after}, ratio {self.after_ms / self.before_ms:.2f}; {where}"
