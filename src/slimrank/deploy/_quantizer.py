# SPDX-License-Identifier: Apache-2.0
"""What a format does to write a file whose products run in int8."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimrank.deploy._program import Program
from slimrank.deploy._runtime import Runtime
from slimrank.forward import Batch
from slimrank.records import Note

# "int8": weights and activations. "int8_weights": weights; activations are measured while it runs, or stay.
Precision = Literal["int8", "int8_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What became of the layers of an int8 file.

    Attributes:
        layers: names, as in ``model.named_modules()``, of those whose products run in int8.
        left: (layer or operator, why) of what stays in float by necessity.
        notes: what the user should know besides.
    """

    layers: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """How a format writes one precision.

    Attributes:
        write: writes the int8 file. Takes the captured program, the float file that was made of it, the path
            of the file to write (in a folder of its own, which is there), batches to calibrate with, each of
            a size that the program takes, and names of layers that shall stay in float.
        extra: of slimrank that brings its packages; "" where those of the format are enough.
        packages: that it needs besides those of the format.
        open: opens the int8 file; None where the format opens it as any other.
        open_timed: opens a file of the format, in int8 or in float, as it shall be run where time counts;
            None for ``open``.
        has_batches: it calibrates; otherwise batches only judge.
    """

    write: Callable[[Program, Path, Path, Sequence[Batch], Collection[str]], Quantized]
    extra: str = ""
    packages: tuple[str, ...] = ()
    open: Callable[[Path, Program, int], Runtime] | None = None
    open_timed: Callable[[Path, Program, int], Runtime] | None = None
    has_batches: bool = True
