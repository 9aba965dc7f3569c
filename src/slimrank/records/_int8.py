# SPDX-License-Identifier: Apache-2.0
"""What is known of the int8 in an exported file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """What int8 did to a file, beside the float file of the same model in the same format.

    Attributes:
        precision: "int8" or "int8_weights".
        divergence: per sample, from the float model, in the unit of the study; None where outputs hold no
            numbers that could be compared.
        noise_db: signal over noise of the output that has most noise, in decibels; inf where nothing differs.
        layers: names of the layers whose products run in int8.
        kept: names of the layers that stayed in float since they hurt, as ``max_quant_drop`` asks.
        left: layers and operators that stay in float since the format has no int8 for them.
        float_bytes: on disk, of the float file.
        float_ms: median time of one batch through the float file, by the clock.
        float_spread: interquartile range of these times over their median.
    """

    precision: str
    divergence: float | None
    noise_db: float
    layers: tuple[str, ...]
    kept: tuple[str, ...]
    left: tuple[str, ...]
    float_bytes: int
    float_ms: float
    float_spread: float

    def summary(self) -> str:
        """How far it is from float, and what float takes, as text."""
        parts = [f"signal over noise {self.noise_db:.1f} dB"]
        if self.divergence is not None:
            parts.append(f"divergence {self.divergence:.3g}")
        parts.append(f"{len(self.layers)} layers in int8")
        if self.kept:
            parts.append(f"{len(self.kept)} kept in float")
        parts.append(f"in float {self.float_bytes / 1e6:,.3f} MB")
        parts.append(f"{self.float_ms:.3f} ms (spread {self.float_spread:.0%})")
        return ", ".join(parts)
