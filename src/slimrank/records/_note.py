# SPDX-License-Identifier: Apache-2.0
"""What the user should know about a run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One remark on a study or a result.

    Attributes:
        where: dotted layer name, or the phase ("calibrate", "select", "apply") it concerns.
        text: the remark, one sentence.
        is_warning: it says that the result may be of no use: shown before everything else.
    """

    where: str
    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"
