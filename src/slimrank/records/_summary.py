# SPDX-License-Identifier: Apache-2.0
"""What a report shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slimrank.records._agreement import Agreement
from slimrank.records._cost import Cost
from slimrank.records._exported import Exported
from slimrank.records._note import Note
from slimrank.records._setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """What happened to one layer.

    Attributes:
        name: dotted name in the original model.
        before, after: counted cost; equal where the layer was left alone.
        setting: the pair that took its place; None where none did.
        slimmed: what became of its channels, such as "64 -> 24 outputs, 64 -> 30 inputs"; or with which
            block it was dropped; or that it was fitted anew behind a dropped block. None for none of these.
        damage: predicted divergence of this layer alone, in the unit of the study; None without a setting.
        fit: "sequential", "independent" or "weights": what factors or weight were fitted to; None where
            nothing was fitted.
        reason: why the layer was left alone; None where something was done to it.
    """

    name: str
    before: Cost
    after: Cost
    setting: Setting | None = None
    slimmed: str | None = None
    damage: float | None = None
    fit: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number measured before and after, beside the costs.

    Attributes:
        name: what was measured ("accuracy", "latency, batch 1").
        before, after: the values.
        unit: "%", "ms", ...
    """

    name: str
    before: float
    after: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything a report shows.

    Attributes:
        title: heading.
        before, after: counted cost of the whole model.
        start: cost of the model whose layers are listed: ``before``, or what an earlier step left of it.
        layers: every layer, in execution order.
        divergence: measured on held-out samples, original against compressed; None if not measured.
        damage: predicted divergence, the sum over the layers; None if nothing was predicted.
        unit: of divergence ("nats per sample", "relative squared error").
        damage_unit: of damage; the same, or "share of weight energy" where the study had no data.
        notes: what the user should know.
        seconds: wall time of each phase.
        measurements: accuracy, latency and the like, where somebody measured them.
        group_damages: predicted damage of each slimmed group alone, by name, where it is known.
        block_damages: what each dropped block adds to those with less damage, by name, where it is known.
        agreement: of outputs with the original's; None if not measured.
        exports: files that the model was exported to, under the names that the reader shall see.
    """

    title: str
    before: Cost
    after: Cost
    start: Cost
    layers: tuple[LayerResult, ...]
    divergence: float | None
    damage: float | None
    unit: str
    damage_unit: str
    notes: tuple[Note, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    group_damages: Mapping[str, float] = field(default_factory=dict)
    block_damages: Mapping[str, float] = field(default_factory=dict)
    agreement: Agreement | None = None
    exports: tuple[Exported, ...] = ()
