# SPDX-License-Identifier: Apache-2.0
"""What the user should know about a run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One remark on a study or a result.

    Attributes:
        where: dotted layer name, or the phase ("calibrate", "select", "apply") it concerns.
        text: the remark, one sentence.
    """

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"
