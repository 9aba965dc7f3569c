# SPDX-License-Identifier: Apache-2.0
"""The geometry that ties a plan to a model, and the steps on it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from slimrank._errors import PlanError
from slimrank._names import listed
from slimrank.cost import model_cost
from slimrank.records import ChannelMap, Cost, LayerSpec, Setting

# Layers that an error writes out for each kind of difference; a wrong model may differ in hundreds.
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The layers of a model, without its weights.

    Attributes:
        sha256: fingerprint of names and shapes (``structure_of`` makes it).
        layers: every captured layer by dotted name, in execution order.
        channels: groups and blocks, where they were looked for; no part of the fingerprint.
    """

    sha256: str
    layers: Mapping[str, LayerSpec]
    channels: ChannelMap = field(default_factory=ChannelMap)


StepKey = tuple[list[tuple[str, Setting]], list[tuple[str, tuple[int, ...]]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is done to the layers of one structure.

    Attributes:
        structure: the model that the step starts from.
        layers: settings per layer, in execution order; one each so far. A rank is that of the slimmed layer.
        groups: group -> units that stay (channels_kept), ascending; groups that stay whole are not in it.
        dropped: blocks that the identity replaces, in execution order.
    """

    structure: Structure
    layers: Mapping[str, tuple[Setting, ...]]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Layer -> setting, in execution order; layers left alone are not in it."""
        return {name: settings[-1] for name, settings in self.layers.items() if settings}

    @property
    def key(self) -> StepKey:
        """All that the step does: two steps of one structure with equal keys build the same model.

        Its ``repr`` goes into checksums on disk (plan files, fingerprints of runs), so its form is fixed.
        """
        groups = [(name, tuple(kept)) for name, kept in sorted(self.groups.items())]
        return sorted(self.settings.items()), groups, self.dropped


def are_same_steps(steps: Sequence[Step], others: Sequence[Step]) -> bool:
    """Whether steps do the same to the same structures, whatever chose them."""
    keys, other_keys = (
        [(step.structure.sha256, step.key) for step in compared] for compared in (steps, others)
    )
    return keys == other_keys


class HasSteps(Protocol):
    """Anything with steps: a plan."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """In the order in which they are done."""
        ...


def structure_of(specs: Iterable[LayerSpec], channels: ChannelMap | None = None) -> Structure:
    """The structure of a model from its layers.

    Args:
        specs: every captured layer, in execution order.
        channels: groups and blocks; None where they were not looked for.

    Returns:
        The structure. Its fingerprint covers names and geometry; input size, dtype and order leave it
        unchanged.
    """
    layers = {spec.name: spec for spec in specs}
    # By name, since the order of execution may change with the inputs.
    text = json.dumps([[name, _geometry(layers[name])] for name in sorted(layers)])
    return Structure(
        sha256=sha256(text.encode()).hexdigest(), layers=layers, channels=channels or ChannelMap()
    )


def names_of(structure: Structure) -> tuple[str, ...]:
    """What a person may name: layers, and groups that can be slimmed; each once."""
    groups = (name for name, group in structure.channels.groups.items() if group.reason is None)
    return tuple(dict.fromkeys((*structure.layers, *groups)))


def check_structure(plan: HasSteps, structure: Structure, *, step: int = 0) -> None:
    """Check that a plan belongs to this model.

    Args:
        plan: the plan.
        structure: of the model.
        step: index of the step that starts from this model; -1 for the last.

    Raises:
        PlanError: layers are missing, additional or of another shape.
    """
    steps = plan.steps
    if not steps:
        return
    # In a file that was edited, the names may be others than those that the fingerprint was made of.
    has_same_names = steps[step].structure.layers.keys() == structure.layers.keys()
    if has_same_names and steps[step].structure.sha256 == structure.sha256:
        return
    planned, present = steps[step].structure.layers, structure.layers
    changed = [
        f"{name!r} {_changed_geometry(planned[name], present[name])}"
        for name in planned
        if name in present and _geometry(planned[name]) != _geometry(present[name])
    ]
    parts = []
    for word, names in (
        ("missing in the model", [name for name in planned if name not in present]),
        ("unknown to the plan", [name for name in present if name not in planned]),
    ):
        if names:
            parts.append(f"{len(names)} {word}: {listed(names, _NAMES_SHOWN)}")
    if changed:
        rest = f" and {len(changed) - _NAMES_SHOWN} more" if len(changed) > _NAMES_SHOWN else ""
        parts.append(f"{len(changed)} of another shape: {', '.join(changed[:_NAMES_SHOWN])}{rest}")
    what = "; layers " + "; ".join(parts) if parts else "; same layers, but other tensors besides them"
    raise PlanError(
        f"plan: it belongs to another model (structure {steps[step].structure.sha256[:12]}, the model has "
        f"{structure.sha256[:12]}){what}; build the model the plan was made for, or plan anew"
    )


def cost_after(before: Cost, steps: Iterable[Step], *, has_bias: bool) -> Cost:
    """Cost of the whole model once every step is done.

    Args:
        before: of the whole model.
        steps: of the plan.
        has_bias: whether every second factor, and every consumer that is fitted anew, carries a bias; else
            only where the layer has one.

    Returns:
        The cost, for one sample.
    """
    cost = before
    for step in steps:
        cost = model_cost(
            cost,
            step.structure.layers,
            step.structure.channels,
            settings=step.settings,
            kept=step.groups,
            dropped=step.dropped,
            has_bias=has_bias,
        )
    return cost


def _geometry(spec: LayerSpec) -> dict[str, object]:
    # Only what decides whether a pair fits the layer: a plan then also serves another input size or dtype.
    return {
        "kind": spec.kind,
        "weight_shape": spec.weight_shape,
        "has_bias": spec.has_bias,
        "stride": spec.stride,
        "dilation": spec.dilation,
        "padding": spec.padding,
        "padding_mode": spec.padding_mode,
        "groups": spec.groups,
    }


def _changed_geometry(planned: LayerSpec, present: LayerSpec) -> str:
    found = _geometry(present)
    return ", ".join(
        f"{key} {value} -> {found[key]}" for key, value in _geometry(planned).items() if found[key] != value
    )
