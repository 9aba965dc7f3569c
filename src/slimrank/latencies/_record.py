# SPDX-License-Identifier: Apache-2.0
"""What was measured, as a file keeps it: grown variant by variant."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from slimrank.latencies._parts import Parts
from slimrank.plan import Step, Structure, step_of
from slimrank.records import Setting, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantTime:
    """What one variant took.

    Attributes:
        settings: layer -> what took its place.
        kept: group -> units that stayed.
        dropped: blocks that were dropped.
        parts: times of its parts, by the runtime's profile.
        before_ms: median time of the original, runs taking turns with the variant or with the network as it
            stands in the variant's precision; of the quietest turns where other work disturbed some.
        before_spread: interquartile range of that time over its median, of all turns.
        ratio: time of the variant over that of the original.
        spread: interquartile range over its median, of the ratio that was measured: in another precision
            than the original's that to the network as it stands in this precision.
        standing_ratio: of the network as it stands in that precision to the original, measured just before;
            it is a factor of ``ratio``. None in the original's precision, and in files of earlier versions.
    """

    settings: Mapping[str, Setting]
    kept: Mapping[str, int]
    dropped: tuple[str, ...]
    parts: Parts
    before_ms: float
    before_spread: float
    ratio: float
    spread: float
    standing_ratio: float | None = None

    def step(self, structure: Structure) -> Step:
        """What was done to a network of this structure, as the step of a plan."""
        kept = {name: range(count) for name, count in self.kept.items()}
        return step_of(structure, self.settings, kept, self.dropped, where="variant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what conditions is measured.

    Attributes:
        backend: the runtime.
        threads: that it has.
        batch: samples of the batch.
        precision: of the files.
        machine: processor, cores, architecture.
        versions: of the packages that make and run the files.
        fingerprint: of the network: its layers, and the sizes that they work on.
        methods: that plans may use.
    """

    backend: str
    threads: int
    batch: int
    precision: str
    machine: str
    versions: Mapping[str, str]
    fingerprint: Mapping[str, str]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRecord:
    """All that was measured so far.

    Attributes:
        conditions: under which.
        steps: of the hardware's stairs.
        original: parts of the network as it stands.
        variants: that were measured, in order.
    """

    conditions: Conditions
    steps: Steps
    original: Parts
    variants: tuple[VariantTime, ...] = field(default=())
