# SPDX-License-Identifier: Apache-2.0
"""How the bytes that are alive at each place of a forward pass go with widths and ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from torch import nn

from slimrank.capture import Alive, Place, alive_by_place, peak_activation_bytes
from slimrank.forward import Batch, eval_mode, on_cpu, outside_inference_mode
from slimrank.latency import build_variant, untouched
from slimrank.plan import Step, Structure, slimmable_groups, step_of
from slimrank.records import Curve, Form, PairBytes, PeakPoint, Setting

# Bytes of a form in the place of a layer: of a low and a high rank, rank and what is alive.
_TwoRanks = tuple[tuple[int, Mapping[Place, Alive]], tuple[int, Mapping[Place, Alive]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeakProfile:
    """What is alive where in a network, and in variants of it.

    Attributes:
        model: that it is of; it is not changed.
        structure: of the model.
        sample: one, on the CPU.
        modules: whose calls divide the forward pass.
        peak: bytes of the network as it stands, at the worst place.
        whole: what is alive at each place then.
        narrowed: group -> units that were taken away from it alone, and what is alive then.
        paired: (layer, form) -> what is alive at a low and a high rank.
    """

    model: nn.Module
    structure: Structure
    sample: Batch
    modules: tuple[str, ...]
    peak: int
    whole: Mapping[Place, Alive]
    narrowed: Mapping[str, tuple[int, Mapping[Place, Alive]]]
    paired: Mapping[tuple[str, Form], _TwoRanks]

    def alive_with(self, step: Step) -> dict[Place, Alive]:
        """What is alive at each place once a step is carried out."""
        return _alive(self.model, step, self.sample, self.modules)

    def point(self, place: Place) -> PeakPoint:
        """The formula of one place."""
        whole = self.whole[place].bytes if place in self.whole else 0
        groups = self.structure.channels.groups
        units = {}
        for name, (gone, alive) in self.narrowed.items():
            # Rounded down, so that slimming is never counted on for more than it saves.
            each = (whole - alive[place].bytes) // gone if place in alive else 0
            if each > 0:
                units[name] = each
        pairs = {}
        for (layer, form), ranks in self.paired.items():
            if layer == place.module and place.is_inside and all(place in alive for _, alive in ranks):
                (low, first), (high, last) = ranks
                less, more = first[place].bytes, last[place].bytes
                per_rank = max(ceil((more - less) / (high - low)), 0) if high > low else 0
                pairs[form] = PairBytes(
                    fixed=max(less - low * per_rank, more - high * per_rank) - whole, per_rank=per_rank
                )
        return PeakPoint(
            module=place.module,
            is_inside=place.is_inside,
            peak=self.peak,
            whole=whole,
            units=units,
            group_units={name: groups[name].units for name in units},
            pairs=pairs,
        )


@outside_inference_mode
def profile_peaks(
    model: nn.Module, structure: Structure, sample: Batch, *, curves: Iterable[Curve]
) -> PeakProfile:
    """Runs a network and variants of it, one sample through each: one for each group, two for each form.

    Args:
        model: in eval mode; it is not changed.
        structure: of the model.
        sample: one sample.
        curves: of the pairs that plans may use.

    Returns:
        The profile.
    """
    modules = tuple(name for name, module in model.named_modules() if name and not any(module.children()))
    with eval_mode(model):
        peak = peak_activation_bytes(model, sample)
    sample = on_cpu(sample)
    narrowed = {}
    for name, group in slimmable_groups(structure.channels).items():
        if group.units > 1:
            step = step_of(structure, {}, {name: tuple(range((group.units + 1) // 2))}, (), where="variant")
            narrowed[name] = (group.units // 2, _alive(model, step, sample, modules))
    by_form: dict[Form, list[Curve]] = {}
    for curve in curves:
        if len(curve.ranks):
            by_form.setdefault(curve.form, []).append(curve)
    paired: dict[tuple[str, Form], _TwoRanks] = {}
    for form, offered in by_form.items():
        ends = [{curve.layer: curve.setting(int(curve.ranks[end])) for curve in offered} for end in (0, -1)]
        low, high = (_alive(model, _step(structure, settings), sample, modules) for settings in ends)
        for curve in offered:
            paired[curve.layer, form] = ((int(curve.ranks[0]), low), (int(curve.ranks[-1]), high))
    return PeakProfile(
        model=model,
        structure=structure,
        sample=sample,
        modules=modules,
        peak=peak,
        whole=_alive(model, untouched(structure), sample, modules),
        narrowed=narrowed,
        paired=paired,
    )


def count_peak(model: nn.Module, step: Step, sample: Batch, *, has_bias: bool) -> int:
    """The peak of the activations of one sample that a step leaves of a network, built with random weights.

    Args:
        model: that the step starts from; it is not changed.
        step: of a plan.
        sample: one sample.
        has_bias: of the plan.

    Returns:
        The bytes.
    """
    variant = build_variant(model, step, has_bias=has_bias, seed=0)
    with eval_mode(variant):
        return peak_activation_bytes(variant, on_cpu(sample))


def _step(structure: Structure, settings: Mapping[str, Setting]) -> Step:
    return step_of(structure, settings, {}, (), where="variant")


def _alive(model: nn.Module, step: Step, sample: Batch, modules: Iterable[str]) -> dict[Place, Alive]:
    variant = build_variant(model, step, has_bias=False, seed=0)
    there = dict(variant.named_modules())
    with eval_mode(variant):
        # What is inside a dropped block is not there.
        return alive_by_place(variant, sample, [name for name in modules if name in there])
